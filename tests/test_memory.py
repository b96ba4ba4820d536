"""What a merge from disk to disk takes of memory, measured in processes of their own."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import save_shards

LAYERS, SIDE, EXPERTS = 336, 768, 2
SHARDS = 4
LARGEST_BYTES = SIDE * SIDE * (EXPERTS + 6) * 4
BOUND = LARGEST_BYTES + 0.8e9
MERGE = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from apgd import merge, merge_files

folder, out, method, params = Path(sys.argv[1]), *sys.argv[2:4], json.loads(sys.argv[4])
experts = {path.name: path for path in sorted(folder.glob("expert*"))}
if out == "in memory":
    merged = merge(method, folder / "base", experts, **params)
else:
    merge_files(method, folder / "base", experts, Path(out), **params)
[peak] = [line for line in Path("/proc/self/status").open() if line.startswith("VmHWM")]
print(1024 * int(peak.split()[1]))
"""


def make(folder: Path, layers: int, side: int) -> Path:
    """A base and its experts in bfloat16, each a folder of shards, all layers alike."""
    generator = torch.Generator().manual_seed(0)
    for name in ("base", *(f"expert{i}" for i in range(EXPERTS))):
        layer = torch.randn(side, side, generator=generator).bfloat16()
        save_shards(folder / name, {f"w{i:03d}": layer.clone() for i in range(layers)}, SHARDS)
    return folder


def peak(folder: Path, out: Path | str, method: str, params: dict[str, int]) -> int:
    """The most memory in bytes that a new process held."""
    command = [sys.executable, "-c", MERGE, str(folder), str(out), method, json.dumps(params)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """1.2 GB of weights."""
    folder = make(tmp_path_factory.mktemp("large"), LAYERS, SIDE)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tiny"), SHARDS, 8)


METHODS = [("task_arithmetic", {}), ("doge_ta", {"basis_size": 0, "iterations": 1})]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
class TestPeak:
    @pytest.mark.parametrize(("method", "params"), METHODS)
    def test_it_is_that_of_the_largest_matrix_and_of_one_shard(
        self, method: str, params: dict[str, int], large: Path, tiny: Path
    ) -> None:
        used = peak(large, large / "out", method, params)
        used -= peak(tiny, tiny / f"out {method}", method, params)
        shutil.rmtree(large / "out")
        print(f"{method}: {used / 1e9:.3f} GB, bound {BOUND / 1e9:.3f} GB")  # noqa: T201
        assert used < BOUND

    def test_holding_the_result_in_memory_would_exceed_it(self, large: Path, tiny: Path) -> None:
        used = peak(large, "in memory", "task_arithmetic", {})
        used -= peak(tiny, "in memory", "task_arithmetic", {})
        print(f"in memory: {used / 1e9:.3f} GB, bound {BOUND / 1e9:.3f} GB")  # noqa: T201
        assert used > 1.3 * BOUND

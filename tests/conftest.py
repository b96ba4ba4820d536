import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import tune  # noqa: F401 - sets what Ray reads when a test imports it
from apgd.checkpoints import load_weights, save_weights

# Ray starts its workers with a niceness of 15: beside tests that compute they would hardly run.
os.environ.setdefault("RAY_worker_niceness", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fault-tally",
        type=Path,
        help="a CSV file that gets a line for each fault that was tried: what, how often, survived",
    )


State = dict[str, Tensor]
SHAPES = {"tall": (12, 5), "wide": (6, 15), "square": (8, 8), "row": (1, 7)}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def model() -> Callable[..., tuple[State, dict[str, State]]]:
    """A base of odd shapes with a bias, and experts fine-tuned from it by random changes."""

    def make(experts: int = 3, seed: int = 0, size: float = 0.05) -> tuple[State, dict[str, State]]:
        generator = torch.Generator().manual_seed(seed)
        base = {n: torch.randn(s, generator=generator) for n, s in SHAPES.items()}
        base["bias"] = torch.randn(5, generator=generator)
        return base, {
            f"expert{i}": {
                n: t + size * torch.randn(t.shape, generator=generator) for n, t in base.items()
            }
            for i in range(experts)
        }

    return make


@pytest.fixture
def vision_files(tmp_path: Path) -> list[str]:
    """Arguments of `apgd merge` for two experts of mini_vision, which differ from it by noise."""
    from apgd.suites import suites  # which takes seconds

    suite = suites["mini_vision"]
    base = load_weights(suite.base_path(), "base")
    generator = torch.Generator().manual_seed(0)
    arguments = ["merge", "--base", str(suite.base_path())]
    for task in ("signs", "aerial"):
        state = {
            n: t + 0.02 * torch.randn(t.shape, generator=generator)
            if suite.is_merged(n, t) else t
            for n, t in base.items()
        }  # fmt: skip
        save_weights(tmp_path / f"{task}.safetensors", state)
        arguments += ["--expert", f"{task}={tmp_path / task}.safetensors"]
    return [*arguments, "--out", str(tmp_path / "merged.safetensors"), "--overwrite"]


def save_shards(folder: Path, state: State, count: int = 2) -> Path:
    """A folder of shards as others write them: names not in the order of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    placed: dict[str, str] = {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {name: state[name].contiguous() for name in list(state)[i::count]}
        save_file(part, folder / file)
        placed |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have the same type, shape and bytes."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    flat = [t.contiguous().view(-1).view(torch.uint8) for t in (first, second)]
    return torch.equal(*flat)

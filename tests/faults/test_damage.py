"""Files that were damaged on disk are found, put aside, and made again with the same bits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.small_run import SEARCHED, SmallRun, assert_same

pytestmark = pytest.mark.slow

_DAMAGE = "a checkpoint with a flipped bit, or truncated"
_RECORD = "a damaged record"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.fault(_DAMAGE, times=2)
@pytest.mark.fault(_RECORD, times=3)
def test_a_run_folder_with_damage_is_mended(
    quick: Path, tmp_path: Path, survived: Callable[..., None]
) -> None:
    for name in ("run", "experts"):
        shutil.copytree(quick / name, tmp_path / name)
    experts = sorted((tmp_path / "experts").glob("*/weights.safetensors"))
    flip(experts[0])
    cut(experts[1])
    records = sorted((tmp_path / "run" / "records" / "evaluation").glob("*.json"))
    flip(records[0])
    cut(records[1])
    flip(records[2].with_suffix(".npz"))
    damaged = [path.read_bytes() for path in (*experts[:2], *records[:2])]

    run = SmallRun(tmp_path)
    run.start().end()
    assert_same(tmp_path, quick)
    log = run.log().rpartition("results go to")[2].splitlines()
    assert sum("it was put aside as" in one and "is trained again" in one for one in log) == 2
    assert sum("it was put aside as" in one and "is computed again" in one for one in log) == 3
    kept = [
        *(path.parent.with_name(f"{path.parent.name}.damaged") / path.name for path in experts[:2]),
        *(path.with_name(f"{path.name}.damaged") for path in records[:2]),
    ]
    assert [path.read_bytes() for path in kept] == damaged
    survived(_DAMAGE, 2)
    survived(_RECORD, 3)


@pytest.mark.fault(_RECORD, times=3)
def test_a_search_with_damage_is_mended(
    searched: Path, tmp_path: Path, survived: Callable[..., None]
) -> None:
    for name in ("run", "experts"):
        shutil.copytree(searched / name, tmp_path / name)
    trials = sorted((tmp_path / "run" / "records" / "trial").glob("*.json"))
    flip(trials[0])
    cut(trials[1])
    number = json.loads(trials[2].read_text())["details"]["number"]
    flip(next((tmp_path / "run" / "records" / "rungs").rglob(f"{number}.json")))
    cut(tmp_path / "run" / "studies.db")
    run = SmallRun(tmp_path, SEARCHED)
    run.start().end()
    assert_same(tmp_path, searched)
    log = run.log().rpartition("results go to")[2].splitlines()
    assert sum("it was put aside as" in one for one in log) == 4
    assert any("it was put aside as studies.db.damaged" in one for one in log)
    survived(_RECORD, 3)

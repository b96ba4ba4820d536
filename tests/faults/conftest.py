import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from apgd.locks import locked
from tests.faults import tally
from tests.faults.small_run import QUICK, SEARCHED, SmallRun


@pytest.fixture
def survived(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Called with a fault once it was survived; those of `pytest.mark.fault` count as tried."""
    tried: dict[str, int] = {}
    done: dict[str, int] = {}
    for mark in request.node.iter_markers("fault"):
        tried[mark.args[0]] = mark.kwargs.get("times", 1)

    def survive(fault: str, times: int = 1) -> None:
        assert fault in tried
        done[fault] = done.get(fault, 0) + times

    yield survive
    path = request.config.getoption("--fault-tally")
    if path is not None:
        for fault, times in tried.items():
            tally.add(path, fault, times, done.get(fault, 0))


def undisturbed(base: Path, name: str, arguments: Sequence[str]) -> Path:
    """A run that is made once for all processes of this test session; nobody changes it."""
    folder, done = base / name, base / f"{name}.done"
    with locked(base / f"{name}.lock"):
        if not done.exists():
            folder.mkdir(exist_ok=True)
            SmallRun(folder, arguments).start().end()
            done.touch()
    return folder


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the whole test session: each process of xdist has its own below it."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def searched(common: Path) -> Path:
    """An undisturbed run with a search."""
    return undisturbed(common, "searched", SEARCHED)


@pytest.fixture(scope="session")
def quick(common: Path) -> Path:
    """An undisturbed run without a search."""
    return undisturbed(common, "quick", QUICK)


@pytest.fixture
def with_experts(quick: Path, tmp_path: Path) -> Path:
    """A folder with the experts of the undisturbed run, for faults that come after them."""
    shutil.copytree(quick / "experts", tmp_path / "experts")
    return tmp_path

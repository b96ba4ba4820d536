import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import tally
from tests.faults.small_run import SEARCHED, SmallRun


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


@pytest.fixture(scope="session")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run with a search."""
    folder = tmp_path_factory.mktemp("searched")
    SmallRun(folder, SEARCHED).start().end()
    return folder


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run without a search."""
    folder = tmp_path_factory.mktemp("quick")
    SmallRun(folder).start().end()
    return folder


@pytest.fixture
def with_experts(quick: Path, tmp_path: Path) -> Path:
    """A folder with the experts of the undisturbed run, for faults that come after them."""
    shutil.copytree(quick / "experts", tmp_path / "experts")
    return tmp_path

"""A worker whose code is not the driver's."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import apgd
from tests.faults.small_run import SmallRun, assert_same

_VERSION = "a worker with another version of apgd or of a library"


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.fault(_VERSION)
def test_code_that_changes_under_a_run_is_refused(
    quick: Path, tmp_path: Path, survived: Callable[..., None]
) -> None:
    source, here = tmp_path / "source", Path(apgd.__file__).parents[1]
    for package in ("apgd", "tune", "experiments"):
        shutil.copytree(here / package, source / package)
    path = {"PYTHONPATH": os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])}
    run = SmallRun(tmp_path)
    run.start(**path).wait_for_log("")
    with (source / "tune" / "causes.py").open("a") as file:
        file.write("# another version\n")
    (line,) = [one for one in run.end(2).splitlines() if one.startswith("error: ")]
    assert "all machines must run the same code, but " in line
    assert f"ended by InputError: {line.removeprefix('error: ')}" in run.log()
    run.start(**path).end()
    assert_same(tmp_path, quick)
    survived(_VERSION)

"""Folders of methods that the environment names: what is wrong with them is one sentence."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

METHOD = """
from apgd.methods import Method, MethodParams

mine = Method(name="{name}", title="T", source="S", params=MethodParams,
              combine=lambda tau, params, prepared: tau[0])
"""


def listed(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "apgd.cli", "methods"],
        env={**os.environ, "APGD_METHODS": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "APGD_METHODS must name folders, but .*/own is none"),
        ("def (", "must be modules .*, but: SyntaxError: invalid syntax"),
        (METHOD.format(name="ties"), "names of their own, but: ValueError: two methods are named"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    folder = tmp_path / "own"
    if text is not None:
        folder.mkdir()
        (folder / "mine.py").write_text(text)
    done = listed(folder)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.match(f"error: .*{message}", line)


def test_what_can_be_used_is_listed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD.format(name="mine"))
    assert "mine" in listed(tmp_path).stdout.split()


def test_a_file_that_python_would_not_see_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ties.py").write_text(METHOD.format(name="mine"))
    done = listed(tmp_path)
    assert done.returncode == 2
    assert re.search(
        "must not be named like other modules of methods, but .*/ties.py is", done.stderr
    )

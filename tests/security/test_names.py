"""Names from outside stay within the run folder, or are refused in one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apgd import InputError
from apgd.cli import main
from apgd.commands import data as data_command
from apgd.data.prepared import SplitState
from apgd.registry import Registry
from apgd.suites import with_tasks
from tests.security.hostile import NAMES
from tune.experiment import Experiment


def one_sentence(error: InputError) -> bool:
    return len(str(error)) < 10_000 and "\n" not in str(error) and "\x1b" not in str(error)


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_own_tasks(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        with_tasks("mini_vision", (f"{name}={tmp_path}",))
    assert one_sentence(refused.value)


def test_a_path_that_would_be_read_as_a_second_task() -> None:
    with pytest.raises(InputError, match="must not hold"):
        with_tasks("mini_vision", ("pets=/data/a+evil=/etc",))


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_suites_and_methods_of_an_experiment(name: str) -> None:
    for fields in ({"suite": name}, {"methods": (name,)}, {"references": (name,)}):
        with pytest.raises(InputError) as refused:
            Experiment(**fields)  # type: ignore[arg-type]
        assert one_sentence(refused.value)


def test_a_suite_of_own_tasks_cannot_name_the_run_folder(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for label in ("red", "blue"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        (tmp_path / "pets" / label / "1.png").touch()
    folder = Experiment(suite=f"mini_vision+x={tmp_path}/a/../pets").folder
    assert folder.parent == Path("runs")
    assert folder.name.startswith("full_repro-mini_vision-")


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_what_a_file_calls_its_method(name: str) -> None:
    class Named:
        def __init__(self) -> None:
            self.name = name

    entries: dict[str, Named] = {}
    with pytest.raises(ValueError, match="name must be lower-case letters") as refused:
        Registry(sys, Named, "method")._add(entries, Named())
    assert "\n" not in str(refused.value)


def test_a_method_of_a_users_own_with_a_bad_name(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from apgd.methods import Method, MethodParams\n"
        "mine = Method(name='../../x', title='T', source='S', params=MethodParams,\n"
        "              combine=lambda tau, params, prepared: tau[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "apgd.cli", "methods"],
        env={**os.environ, "APGD_METHODS": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "a method's name must be lower-case letters" in done.stderr


@pytest.mark.parametrize("name", ["../../x", "[red]x[/red]", "[/]", "a\nb"])
def test_command_lines_print_names_as_they_are(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["methods", name], ["suites", name], ["data", "verify", name]):
        assert main(command) == 2
        said = capsys.readouterr().err
        assert repr(name) in said
        assert len(said.splitlines()) == 1


def test_what_is_wrong_with_data_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    problem = "class [red]x[/red][/] is [link=https://attacker.example]y[/link]"
    data_command._show({"pets": (SplitState("test", None, problem),)})
    shown = " ".join(capsys.readouterr().out.split())
    assert "[red]x[/red][/]" in shown
    assert "[link=https://attacker.example]" in shown

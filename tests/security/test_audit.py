"""The scan of dependencies: what is found fails, and what cannot be asked is said."""

import importlib.util
import json
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

_FILE = Path(__file__).parents[2] / ".ci" / "audit.py"


@pytest.fixture
def audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(module, "installed", lambda: "rich==1.0\n")
    monkeypatch.setattr(module, "ACCEPTED", tmp_path / "vulnerabilities.txt")
    (tmp_path / "vulnerabilities.txt").write_text("# none\n")
    return module


SAFE = {"name": "rich", "version": "1.0", "vulns": []}
BAD = {
    "name": "mlflow",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}],
}
UNKNOWN = {"name": "rich", "skip_reason": "Dependency not found on PyPI"}


def answering(audit: ModuleType, monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    """Let pip-audit answer these packages by service, or not at all."""

    def run(command: list[str], **_options: Any) -> SimpleNamespace:
        packages = answers.get(command[command.index("--vulnerability-service") + 1])
        if packages == "slow":
            raise subprocess.TimeoutExpired(command, 1)
        stdout = "" if packages is None else json.dumps({"dependencies": packages})
        return SimpleNamespace(stdout=stdout, stderr="Traceback", returncode=int(packages is None))

    monkeypatch.setattr(audit, "subprocess", SimpleNamespace(
        run=run, TimeoutExpired=subprocess.TimeoutExpired))  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "status", "said"),
    [
        ({"pypi": [SAFE]}, 0, "pip-audit: 1 packages, 0 vulnerabilities"),
        ({"pypi": [SAFE, BAD]}, 1, "mlflow 1.0: PYSEC-1, fixed in 2.0"),
        ({"pypi": [UNKNOWN], "osv": [BAD]}, 1, "mlflow 1.0: PYSEC-1"),
        ({"osv": [SAFE]}, 0, "1 packages"),
        ({"pypi": [UNKNOWN]}, 0, "SKIPPED, neither pypi nor osv can be reached"),
        ({}, 0, "SKIPPED"),
        ({"pypi": "slow", "osv": "slow"}, 0, "SKIPPED"),
    ],
)
def test_the_answer_decides(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: dict[str, Any],
    status: int,
    said: str,
) -> None:
    answering(audit, monkeypatch, **answers)
    assert audit.main() == status
    out = capsys.readouterr().out
    assert said in out
    assert len(out.splitlines()) == (2 if status else 1)


def test_what_is_accepted_with_a_reason_passes(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(audit, monkeypatch, pypi=[BAD])
    audit.ACCEPTED.write_text("# comment\nCVE-1 only its server is concerned\n")
    assert audit.main() == 0
    audit.ACCEPTED.write_text("CVE-1\n")
    with pytest.raises(SystemExit, match="must give a reason for CVE-1"):
        audit.main()


def test_the_list_in_use_is_well_formed() -> None:
    spec = importlib.util.spec_from_file_location("audit", _FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.accepted(_FILE.with_name("vulnerabilities.txt").read_text())

"""Secrets of the environment and of addresses reach no output, no file and no database."""

import os
import shlex
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from apgd import InputError
from apgd.masking import masked_address, without_credentials, without_secrets
from tune.command import run_command
from tune.experiment import Experiment, check
from tune.job import run_experiment
from tune.manifest import command_line
from tune.search.storage import open_storage

SECRETS = {
    "HF_TOKEN": "hf_QmVyZ3ZlcnNlaG5zdWNodA",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfi",
    "AWS_SESSION_TOKEN": "IQoJb3JpZ2luX2VjEJr",
    "MLFLOW_TRACKING_PASSWORD": "correct-horse-battery",
    "MLFLOW_TRACKING_TOKEN": "mlf-8d1f0c2b7e",
    "RAY_AUTH_TOKEN": "0f5e4c3b2a190817263545",
    "WANDB_API_KEY": "c0ffee00c0ffee00",
}
PASSWORD = "p@ss/w0rd-in-address"  # noqa: S105 - made up
PLAIN_PASSWORD = "hunter2hunter2"  # noqa: S105
AWKWARD_PASSWORD = "hunter2's hunter2"  # noqa: S105


def leaks(content: bytes) -> list[str]:
    values = {**SECRETS, "an address": PASSWORD, "an address too": PLAIN_PASSWORD}
    values |= {"an address with a quote": AWKWARD_PASSWORD}
    return [name for name, value in values.items() if value.encode() in content]


def leaks_below(folder: Path) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert files
    return [f"{file}: {name}" for file in files for name in leaks(file.read_bytes())]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:pw@db.example/x", "postgresql://***@db.example/x"),
        ("http://me:p@ss/word@h:5000/", "http://***@h:5000/"),
        ("https://token@h", "https://***@h"),
        ("postgresql+psycopg2://u:p@h/x", "postgresql+psycopg2://***@h/x"),
        ("https://h/x?user=a&password=b&c=d", "https://h/x?user=a&password=***&c=d"),
        ("https://s3.example/x?X-Amz-Signature=abc", "https://s3.example/x?X-Amz-Signature=***"),
        ("https://h/?access_token=abc' failed", "https://h/?access_token=***' failed"),
        ("sqlite:////home/me@work/x.db", "sqlite:////home/me@work/x.db"),
        ("http://h:5000/path", "http://h:5000/path"),
        ("mail me@example.org", "mail me@example.org"),
        ("a http://u:p@h/ and http://v:q@i/", "a http://***@h/ and http://***@i/"),
    ],
)
def test_credentials_of_addresses(text: str, shown: str) -> None:
    assert without_credentials(text) == shown


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://u:pa'ss@h/db", "postgresql://***@h/db"),
        ('http://u:pa"s s@@h:5000/', "http://***@h:5000/"),
        ("--storage=mysql://u:pa s's\n@h/db", "--storage=mysql://***@h/db"),
        ("https://h/x?user=a&password=b'c d;e&f=g", "https://h/x?user=a&password=***&f=g"),
        ("sqlite:////home/me@work/my runs/x.db", "sqlite:////home/me@work/my runs/x.db"),
        ("--no-stopping", "--no-stopping"),
    ],
)
def test_an_address_is_masked_whatever_its_password_holds(address: str, shown: str) -> None:
    assert masked_address(address) == shown


@pytest.mark.parametrize("password", [AWKWARD_PASSWORD, "pa's s\"w0rd"])
def test_an_awkward_password_of_an_option(
    password: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://me:{password}@127.0.0.1:9/x"
    experiment = Experiment(run_dir=tmp_path, storage=url, tracking_uri=url)
    assert set(experiment.as_dict().values()) >= {"postgresql://***@127.0.0.1:9/x"}
    monkeypatch.setattr(sys, "argv", ["full_repro.py", "--storage", url, f"--tracking-uri={url}"])
    shown = shlex.split(command_line())
    assert shown[3:] == [
        "--storage",
        "postgresql://***@127.0.0.1:9/x",
        "--tracking-uri=postgresql://***@127.0.0.1:9/x",
    ]
    assert without_secrets(f"could not open {url}: gone", url) == (
        "could not open postgresql://***@127.0.0.1:9/x: gone"
    )


def test_secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/home/me/.ray/auth_token")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    text = " ".join(SECRETS.values()) + " false /home/me/.ray/auth_token token"
    assert without_secrets(text) == "*** " * len(SECRETS) + "false /home/me/.ray/auth_token token"
    monkeypatch.setenv("HF_TOKEN", "short")
    assert without_secrets("short") == "short"


@pytest.mark.parametrize(
    "name",
    [
        *("PGPASSWORD", "MYSQL_PWD", "AZURE_STORAGE_KEY", "OPENAI_KEY", "GITHUB_PAT", "DB_PASS"),
        *("REDISCLI_AUTH", "GPG_PASSPHRASE", "openai_apikey", "MONGO_INITDB_ROOT_PASSWORD"),
    ],
)
def test_names_of_secrets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "wJalrXUtnFEMI")
    assert without_secrets("it is wJalrXUtnFEMI") == "it is ***"


@pytest.mark.parametrize(
    "name",
    [
        *("PWD", "OLDPWD", "SSH_AUTH_SOCK", "SSH_ASKPASS", "AWS_ACCESS_KEY_ID", "SSH_KEY_PATH"),
        *("PGPASSFILE", "LANGFUSE_PUBLIC_KEY", "KEYBOARD", "COMPATIBLE", "XAUTHORITY"),
        *("RAY_AUTH_MODE", "OAUTH_TOKEN_URL", "PASSENGERS", "PYTHONPATH"),
    ],
)
def test_names_of_what_is_no_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/home/me/of_no_interest")
    assert without_secrets("in /home/me/of_no_interest") == "in /home/me/of_no_interest"


def test_a_database_that_cannot_be_opened(tmp_path: Path) -> None:
    for password in (PASSWORD, PLAIN_PASSWORD, AWKWARD_PASSWORD):
        url = f"postgresql://me:{password}@127.0.0.1:9/studies"
        experiment = Experiment(run_dir=tmp_path, experts_dir=tmp_path / "e", storage=url)
        with pytest.raises(InputError) as refused:
            open_storage(experiment)
        assert not leaks(str(refused.value).encode())
        assert not leaks(str(experiment.as_dict()).encode())


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.full_repro", *arguments],
        cwd=folder,
        env={**os.environ, **SECRETS, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        timeout=400,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["--storage", f"postgresql://me:{PASSWORD}@127.0.0.1:9/x", "--debug"], 2),
        (["--storage", f"nonsense://me:{PLAIN_PASSWORD}@h/x", "--debug"], 2),
        (["--tracking-uri", f"ftp://me:{PLAIN_PASSWORD}@h/x", "--debug"], 2),
        (["--tracking-uri", f"ftp://me:{AWKWARD_PASSWORD}@h/x", "--debug"], 2),
        (["--storage", f"postgresql://me:{AWKWARD_PASSWORD}@127.0.0.1:9/x", "--debug"], 2),
        (["--sync", "--tracking-uri", f"http://me:{PLAIN_PASSWORD}@127.0.0.1:9", "--debug"], 2),
    ],
)
def test_errors_with_tracebacks(
    arguments: list[str],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    places = ["--run-dir", str(tmp_path / "run"), "--experts-dir", str(tmp_path / "experts")]
    if "--sync" in arguments:  # of a run that was begun
        check(Experiment(run_dir=tmp_path / "run", experts_dir=tmp_path / "experts"))
    chosen = [*arguments, *places]
    assert run_command(Experiment, run_experiment, prog="x", arguments=chosen) == status
    said = capsys.readouterr()
    assert "Traceback" in said.err
    assert leaks((said.out + said.err).encode()) == []
    if (tmp_path / "run").exists():
        assert leaks_below(tmp_path) == []


class _Refusing(BaseHTTPRequestHandler):
    """A server that lets nobody in, and says back what it was given."""

    def _refuse(self) -> None:
        body = f"no entry for {self.headers.get('Authorization')}".encode()
        self.send_response(401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _refuse  # noqa: N815

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.soak
def test_whole_runs(tmp_path: Path) -> None:
    few = ["--smoke", "--address", "local", "--cpus", "1", "--trials", "2", "--methods", "ties"]
    places = ["--run-dir", "run", "--experts-dir", "experts"]
    done = run(*few, *places, "--debug", folder=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    names = {file.name for file in (tmp_path / "run").iterdir()}
    assert {"run.log", "manifest.json", "report.html", "report.md", "mlflow.db"} <= names
    assert leaks(done.stdout + done.stderr) == []
    assert leaks_below(tmp_path) == []

    server = ThreadingHTTPServer(("127.0.0.1", 0), _Refusing)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        uri = f"http://me:{PLAIN_PASSWORD}@127.0.0.1:{server.server_port}"
        storage = f"sqlite:///{tmp_path}/other.db?password={PLAIN_PASSWORD}"
        again = run(*few, *places, "--tracking-uri", uri, folder=tmp_path)
        assert b"could not be brought up to date" in again.stdout
        refused = run(*few, *places, "--storage", storage, "--debug", folder=tmp_path)
    finally:
        server.shutdown()
    for one in (again, refused):
        assert leaks(one.stdout + one.stderr) == []
    assert leaks_below(tmp_path / "run") == []

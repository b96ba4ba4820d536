"""The doctor at work: on folders, on this machine, and on a cluster of two nodes."""

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from apgd import InputError
from apgd.files import is_leftover
from tests.tune.doctor.found import facts, folder, needs
from tune import cli
from tune.doctor import command, downloads, examination, folders, gpus, report
from tune.doctor.facts import software
from tune.doctor.finding import Finding, Status, failure, grouped, ok
from tune.doctor.folders import laid, look_into, shows
from tune.doctor.needs import needs_of
from tune.doctor.nodes import Answer, find_cluster


def judged(findings: list[Finding]) -> dict[str, Status]:
    return {f.check: f.judgement.status for f in reversed(findings)}  # the worst of each


# ---- folders


def test_a_good_folder_is_found_good_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    with laid("run folder", tmp_path) as probe:
        seen = look_into(probe, "node-a")
        assert (seen.sees, seen.problem, seen.lock, seen.renames) == (True, None, None, None)
        assert shows(probe, "node-a")
        assert all(is_leftover(f) for f in tmp_path.iterdir() if f.name != "mine")
    assert [f.name for f in tmp_path.iterdir()] == ["mine"]


def test_folders_made_for_the_look_are_removed(tmp_path: Path) -> None:
    with laid("run folder", tmp_path / "a" / "b") as probe:
        assert probe.problem is None
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_problem_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with laid("run folder", tmp_path / "file" / "run") as probe:
        assert probe.problem == "Not a directory"


def test_a_machine_with_a_folder_of_its_own_does_not_see_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "_SEEN_SECONDS", 0.2)
    (tmp_path / "elsewhere").mkdir()
    with laid("run folder", tmp_path / "here") as probe:
        for there in (tmp_path / "elsewhere", tmp_path / "nothing"):
            seen = look_into(replace(probe, path=there), "node-b")
            assert not seen.sees
        assert not shows(probe, "node-b")
    assert not (tmp_path / "nothing").exists()  # nobody makes folders on other machines


def test_a_lock_that_nobody_holds_keeps_nobody_out(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    assert folders._try_lock(tmp_path / "lock") == "a lock does not keep other machines out"
    assert "do not work" in str(folders._try_lock(tmp_path / "no file"))


def test_a_rename_that_removes_first_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missed, read = threading.Event(), Path.read_text

    def replace_slowly(self: Path, target: Path) -> None:
        target.unlink()
        assert missed.wait(60)
        self.rename(target)

    def noted(self: Path) -> str:
        try:
            return read(self)
        except FileNotFoundError:
            missed.set()
            raise

    monkeypatch.setattr(Path, "replace", replace_slowly)
    monkeypatch.setattr(Path, "read_text", noted)
    assert folders._try_renames(tmp_path / "file") == "a moment without the file"


# ---- GPUs and downloads


def script(folder: Path, text: str) -> None:
    file = folder / "nvidia-smi"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)


def test_a_driver_that_fails_or_hangs_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert gpus.look_at_gpus() == gpus.GpuFacts()
    script(tmp_path, "echo Driver/library version mismatch; exit 18")
    assert gpus.look_at_gpus().problem == "Driver/library version mismatch"
    script(tmp_path, "sleep 30")
    monkeypatch.setattr(gpus, "DRIVER_SECONDS", 0.3)
    assert "did not answer" in str(gpus.look_at_gpus().problem)


def test_a_driver_that_holds_whoever_asks_holds_up_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    script(tmp_path, "exec sleep 3600")
    monkeypatch.setattr(gpus, "DRIVER_SECONDS", 0.3)
    held: list[subprocess.Popen[str]] = []

    def kill(process: subprocess.Popen[str]) -> None:
        held.append(process)  # which does not end, as the kernel has it then

    monkeypatch.setattr(subprocess.Popen, "kill", kill)
    assert "did not answer" in str(gpus.look_at_gpus().problem)
    (process,) = held
    assert process.poll() is None
    process.terminate()
    process.communicate()


def test_a_node_has_time_for_all_looks() -> None:
    looks = gpus.DRIVER_SECONDS + gpus.TORCH_SECONDS + downloads.LONGEST_SECONDS
    looks += 2 * folders.LONGEST_SECONDS
    assert looks + 30 < command._SECONDS  # and for imports


def test_torch_is_asked_where_there_is_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script(tmp_path, "echo NVIDIA L4, 22000, 23034, 570.86")
    found = gpus.look_at_gpus()
    assert len(found.gpus) == 1
    assert found.usable == 0
    assert found.torch_problem


def test_the_hub_is_asked_for_a_short_time() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert downloads._unreachable(address) is not None  # nobody listens yet


def test_an_embedded_suite_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "_unreachable", lambda _address: pytest.fail("asked"))
    assert downloads.look_at_downloads("mini_vision") == downloads.DownloadFacts()


def test_offline_is_respected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("APGD_CACHE", str(tmp_path))
    monkeypatch.setattr(downloads, "_unreachable", lambda _address: pytest.fail("asked"))
    monkeypatch.setattr(downloads, "_loads_offline", lambda _name: False)
    found = downloads.look_at_downloads("clip_vit_b32_8")
    assert found.offline
    assert len(found.lacking) == found.needed == 8
    assert not found.base_there


def test_needs_grow_with_the_suite() -> None:
    from apgd.suites import suites

    small, large = needs_of(suites["mini_vision"]), needs_of(suites["clip_vit_b32_8"])
    assert small.experts_bytes < large.experts_bytes
    assert large.experts_bytes > 8 * 4 * 87_000_000  # eight ViT-B/32 in float32
    assert large.fits(24 * 10**9)[0]
    assert not large.fits(2 * 10**9)[0]


# ---- all of it


def test_a_driver_of_other_versions_than_the_nodes_is_found(tmp_path: Path) -> None:
    answers = {"node-a": Answer(facts=facts()), "node-b": Answer(problem="it hangs")}
    with laid("run folder", tmp_path) as probe:
        probe.answer("node-a").touch()
        found = examination._judged(needs(), [probe], answers, cluster=True)
    status = judged(found)
    assert status["answer"] is Status.FAILURE
    assert status["versions"] is Status.FAILURE  # of the tests' own process
    assert status["run folder"] is Status.OK
    assert status["tokens"] is Status.OK


def test_a_folder_that_one_of_two_nodes_does_not_see_names_that_node(tmp_path: Path) -> None:
    blind = facts(folders=(folder(sees=False), folder(what="experts folder")))
    answers = {"node-a": Answer(facts=facts()), "node-b": Answer(facts=blind)}
    with laid("run folder", tmp_path) as probe:
        probe.answer("node-a").touch()
        found = examination._judged(needs(), [probe], answers, cluster=True)
    rows = {f.judgement.status: f.nodes for f in found if f.check == "run folder"}
    assert rows == {Status.FAILURE: ("node-b",), Status.OK: ("node-a",)}


@pytest.mark.parametrize(("width", "most"), [(80, 80), (200, 200)])
def test_the_table_keeps_within_the_terminal(
    width: int, most: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "Console", lambda: Console(width=width, force_terminal=True))
    long = failure("[red]word[/red] " * 20, "advice " * 20)
    names = tuple(f"ip-10-0-0-{i}.eu-central-1.compute.internal" for i in range(7))
    report.show(
        [*grouped("GPUs", dict.fromkeys(names[:6], long)), *grouped("x", {"a": ok("y")})], names
    )
    out = capsys.readouterr().out
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in out.splitlines()]
    assert max(map(len, plain)) <= most
    assert "[red]" in out  # no markup of ours
    assert re.search(r"and\s.*3\s+more|and 3\s.*more", "".join(plain))
    assert "1 ok, 1 failure on 7 machines" in out


def test_the_command_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--run-dir", str(tmp_path / "r"), "--experts-dir", str(tmp_path / "e")]
    monkeypatch.setattr(sys, "argv", ["apgd", "doctor", "--json", *places])
    assert cli.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["nodes"]) == 1
    assert {f["check"] for f in found["findings"]} >= {"versions", "code", "GPUs", "run folder"}
    assert not list(tmp_path.iterdir())
    (tmp_path / "r").write_text("a file")
    monkeypatch.setattr(sys, "argv", ["apgd", "doctor", *places])
    assert cli.main() == 1
    assert "choose another folder with --run-dir" in " ".join(capsys.readouterr().out.split())


def test_the_doctor_compares_all_that_a_run_compares() -> None:
    from tune.workers.introductions import own_libraries

    found = software()
    assert {("python", found.python), *found.packages} >= set(own_libraries())
    code = "import sys, tune.libraries; print({'torch', 'ray'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_library_knows_no_doctor() -> None:
    code = "import sys; from apgd.cli import main; main(['doctor'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "invalid choice: 'doctor'" in done.stderr
    code = "import sys, tune.cli; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cluster", "nonsense"], "must be host:port, but got 'nonsense'"),
        (["--timeout", "0"], "--timeout must be positive, but got 0.0"),
        (["--suite", "nope"], "unknown suite 'nope'"),
    ],
)
def test_bad_input_is_one_sentence(
    options: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["apgd", "doctor", *options])
    assert cli.main() == 2
    assert said in capsys.readouterr().err


def test_a_cluster_that_does_not_answer_is_one_sentence_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(InputError, match="this machine is part of none"):
        find_cluster("auto")
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "run", None)  # so Ray, which waits for long, is not asked
            with pytest.raises(InputError, match=f"no Ray cluster answers at {address}"):
                find_cluster(address)


@pytest.mark.slow  # 4 s of importing Ray, and as long as the time limit says
def test_what_listens_but_is_no_cluster_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune.doctor.nodes._HEALTH_SECONDS", 5.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(InputError, match="does not answer as the head of a Ray cluster does"):
            find_cluster(f"127.0.0.1:{silent.getsockname()[1]}")


# ---- a cluster


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from ray.cluster_utils import Cluster

    # A node that hangs stays one of the cluster's.
    monkeypatch.setenv("RAY_health_check_failure_threshold", "1000")
    options = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=options)
    made.add_node(**options)
    made.wait_for_nodes()
    yield made.address
    made.shutdown()


@pytest.mark.slow  # two nodes of Ray, looked at twice: a minute
def test_every_node_of_a_cluster_is_looked_at_and_one_that_hangs_is_a_row(
    cluster: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = ["--run-dir", str(tmp_path / "r"), "--experts-dir", str(tmp_path / "e")]
    command = ["apgd", "doctor", "--json", "--cluster", cluster, *places]
    # Nodes that have just begun import for long where the machine has other things to do.
    monkeypatch.setattr(sys, "argv", [*command, "--timeout", "240"])
    assert cli.main() == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["nodes"]) == 2
    for check in ("run folder", "experts folder", "clock", "GPUs", "cache"):
        (row,) = [f for f in found["findings"] if f["check"] == check]
        assert (row["status"], sorted(row["nodes"])) == ("ok", sorted(found["nodes"]))
    assert not list(tmp_path.iterdir())

    raylets = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet"]
    assert len(raylets) == 2
    hung = max(raylets, key=lambda p: p.create_time())
    hung.suspend()
    try:
        monkeypatch.setattr(sys, "argv", [*command, "--timeout", "50"])
        assert cli.main() == 1
    finally:
        hung.resume()
    found = json.loads(capsys.readouterr().out)
    silent, *_ = [f for f in found["findings"] if f["check"] == "answer"]
    assert silent["found"] == "no answer within 50 s"
    (well,) = [f for f in found["findings"] if f["check"] == "run folder"]
    assert len(silent["nodes"]) == len(well["nodes"]) == 1
    assert silent["nodes"] != well["nodes"]

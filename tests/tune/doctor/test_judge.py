"""Found values in, status and advice out."""

import pytest

from tests.tune.doctor.found import GB, facts, folder, gpus, needs, software
from tune.doctor import judge
from tune.doctor.downloads import DownloadFacts
from tune.doctor.finding import Finding, Judgement, Status, fails, failure, grouped, ok, warning
from tune.doctor.folders import Probe
from tune.doctor.gpus import GpuFacts, parse_gpus

OK, WARNING, FAILURE = Status.OK, Status.WARNING, Status.FAILURE


def statuses(findings: list[Finding]) -> list[tuple[Status, tuple[str, ...]]]:
    return [(f.judgement.status, f.nodes) for f in findings]


def test_machines_with_the_same_finding_share_a_row_and_the_worst_comes_first() -> None:
    found = grouped(
        "x", {"a": ok("1"), "b": failure("2", "do"), "c": ok("1"), "d": warning("3", "")}
    )
    assert statuses(found) == [(FAILURE, ("b",)), (WARNING, ("d",)), (OK, ("a", "c"))]
    assert fails(found)
    assert not fails(found[1:])


def test_many_healthy_machines_that_differ_a_little_share_a_row() -> None:
    found = grouped("x", {"sick": failure("s", "a"), **{f"n{i}": ok(f"{i} GB") for i in range(9)}})
    assert [len(f.nodes) for f in found] == [1, 9]
    assert found[1].judgement.found == "for example 0 GB"


def test_versions_alike_are_listed_once() -> None:
    (one,) = judge.judge_versions({"a": software(), "b": software()})
    assert one.judgement == ok("Python 3.12.1, apgd 0.1.0, ray 2.60.0")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"python": "3.11.2"}, "Python 3.11.2 (elsewhere 3.12.1)"),
        ({"packages": (("apgd", "0.1.0"), ("ray", "2.61.0"))}, "ray 2.61.0 (elsewhere 2.60.0)"),
        ({"packages": (("apgd", "0.1.0"), ("ray", None))}, "not installed: ray"),
    ],
)
def test_a_machine_with_other_versions_fails(changes: dict[str, object], said: str) -> None:
    found = judge.judge_versions({"a": software(), "b": software(**changes), "c": software()})
    assert statuses(found) == [(FAILURE, ("b",)), (OK, ("a", "c"))]
    assert found[0].judgement.found == said
    assert "ray up" in found[0].judgement.advice


def test_other_source_fails_and_so_does_source_that_does_not_import() -> None:
    by_node = {"a": software(), "b": software(code="0ther"), "c": software(code=None)}
    found = judge.judge_code({**by_node, "d": software()})
    assert statuses(found) == [(FAILURE, ("b",)), (FAILURE, ("c",)), (OK, ("a", "d"))]
    assert found[0].judgement.found == "source 0ther, elsewhere c0de"


@pytest.mark.parametrize(
    ("found", "known", "status", "said"),
    [
        (GpuFacts(), None, OK, "none"),
        (GpuFacts(), 0, OK, "none"),
        (GpuFacts(), 2, FAILURE, "Ray hands out 2"),
        (GpuFacts(problem="Driver/library version mismatch"), 1, FAILURE, "version mismatch"),
        (gpus(2), 2, OK, "2 x NVIDIA A10G, 23 GB of 24 GB free, driver 570.1"),
        (gpus(2), 1, WARNING, "Ray hands out 1 of 2"),
        (gpus(build=None, usable=0), 1, FAILURE, "this torch is for CPUs alone"),
        (gpus(2, usable=1, torch_problem="too old"), 2, FAILURE, "1 of 2 (too old)"),
        (gpus(free=20 * GB), 1, WARNING, "something else uses one"),
        (gpus(free=9 * GB), 1, FAILURE, "fine-tuning takes 10 GB"),
    ],
)
def test_gpus(found: GpuFacts, known: int | None, status: Status, said: str) -> None:
    judged = judge.judge_gpus(found, needs(), known)
    assert judged.status is status
    assert said in judged.found
    assert bool(judged.advice) == (status is not OK)


def test_a_large_model_without_a_gpu_is_warned_of() -> None:
    judged = judge.judge_gpus(GpuFacts(), needs(suite="large", wants_gpu=True))
    assert judged.status is WARNING
    assert "days over experts of large" in judged.found
    assert "--gpus N" in judged.advice


def test_what_nvidia_smi_lists_is_read() -> None:
    listed = "NVIDIA L4, 22000, 23034, 570.86\nNVIDIA H100, with a comma, [N/A], 81559, 570.86\n"
    first, second = parse_gpus(listed)
    assert (first.name, first.free_bytes, first.driver) == ("NVIDIA L4", 22000 * 2**20, "570.86")
    assert (second.name, second.free_bytes) == ("NVIDIA H100, with a comma", 0)
    assert parse_gpus("") == ()


def test_memory_is_a_matter_of_cpu_workers() -> None:
    assert judge.judge_machine(facts(), needs()).status is OK
    assert judge.judge_machine(facts(free_bytes=7 * GB), needs()).status is WARNING
    assert judge.judge_machine(facts(free_bytes=7 * GB, gpus=gpus()), needs()).status is OK


@pytest.mark.parametrize(
    ("changes", "back", "status", "said"),
    [
        ({}, True, OK, "seen by all"),
        ({"sees": False}, False, FAILURE, "does not see what other machines write"),
        ({"problem": "Read-only file system"}, False, FAILURE, "Read-only file system"),
        ({}, False, FAILURE, "other machines do not see"),
        ({"renames": "a moment without the file"}, True, FAILURE, "a moment without the file"),
        ({"lock": "a lock does not keep others out"}, True, WARNING, "does not keep others out"),
    ],
)
def test_folders(changes: dict[str, object], back: bool, status: Status, said: str) -> None:
    judged = judge.judge_folder(folder(**changes), back)
    assert judged.status is status
    assert said in judged.found


def test_advice_on_a_folder_names_its_own_option() -> None:
    for what, option in (("run folder", "--run-dir"), ("experts folder", "--experts-dir")):
        assert option in judge.judge_folder(folder(what=what, sees=False), False).advice
        unwritable = Probe(what, folder().path, "token", "Permission denied")  # type: ignore[arg-type]
        assert option in judge.judge_probe(unwritable).advice
        assert judge.judge_probe(unwritable).status is FAILURE


def test_disks() -> None:
    assert judge.judge_experts_disk(5 * GB, needs()).status is OK
    assert judge.judge_experts_disk(5 * GB - 1, needs()).status is FAILURE
    for free, lacking, status in ((20, True, OK), (19, True, FAILURE), (1, False, OK)):
        assert judge.judge_cache_disk("/c", free * GB, lacking, needs()).status is status


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({}, OK, "downloads nothing"),
        ({"needed": 2, "lacking": ("dtd",)}, OK, "the hub answers; data of 1 of 2 tasks"),
        ({"needed": 2, "offline": True}, OK, "HF_HUB_OFFLINE is set; everything is there"),
        ({"needed": 2, "unreachable": "refused"}, OK, "no hub (refused); everything is there"),
        ({"needed": 2, "offline": True, "lacking": ("dtd",)}, FAILURE, "lacking are dtd"),
        ({"needed": 2, "unreachable": "x", "base_there": False}, FAILURE, "the base model is not"),
    ],
)
def test_downloads(changes: dict[str, object], status: Status, said: str) -> None:
    judged = judge.judge_downloads(DownloadFacts(**changes), "clip")  # type: ignore[arg-type]
    assert judged.status is status
    assert said in judged.found
    if status is FAILURE:
        assert "apgd data prepare clip" in judged.advice
        assert ("unset HF_HUB_OFFLINE" in judged.advice) == bool(changes.get("offline"))


@pytest.mark.parametrize(
    ("skew", "uncertainty", "status"),
    [
        (0.9, 0.0, OK),
        (-1.1, 0.05, WARNING),
        (1.4, 0.5, OK),  # it may be less than a second
        (30.5, 0.0, FAILURE),
        (-31.5, 0.9, FAILURE),
        (0.0, float("inf"), WARNING),
    ],
)
def test_clocks(skew: float, uncertainty: float, status: Status) -> None:
    assert judge.judge_clock(skew, uncertainty).status is status


def test_a_clock_says_which_way_it_is_wrong() -> None:
    assert judge.judge_clock(40.0, 0.0).found.startswith("40.0 s ahead")
    assert judge.judge_clock(-40.0, 0.0).found.startswith("40.0 s behind")


def test_limits_and_tokens() -> None:
    assert judge.judge_open_files(4096).status is OK
    assert judge.judge_open_files(1024).status is WARNING
    assert judge.judge_shared_memory(GB, GB).status is OK
    assert judge.judge_shared_memory(64 * 2**20, GB).status is WARNING
    assert judge.judge_shared_memory(None, GB).status is WARNING
    assert judge.judge_tokens(True).status is OK
    assert "RAY_AUTH_MODE=token" in judge.judge_tokens(False).advice


def test_a_machine_that_says_nothing_is_a_failure() -> None:
    found = judge.judge_silent({"a": "no answer within 8 s", "b": "ModuleNotFoundError: tune"})
    assert statuses(found) == [(FAILURE, ("a",)), (FAILURE, ("b",))]
    assert judge.judge_silent({}) == []


def test_every_problem_comes_with_advice() -> None:
    for judged in (
        judge.judge_open_files(1),
        judge.judge_clock(99, 0),
        judge.judge_experts_disk(0, needs()),
        judge.judge_gpus(GpuFacts(problem="x"), needs()),
    ):
        assert isinstance(judged, Judgement)
        assert judged.advice

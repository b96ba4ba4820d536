"""What the benchmark of scale counts, and a small run of it on two simulated nodes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.benchmark_scale import LongSearch, Stage, ratio, unscaled_ratio
from experiments.reproductions import Case, case_of, recorded
from experiments.sleeping_worker import Naps, score
from tune.planning.schedule import lower_bound
from tune.search.studies import Study

NAPS = Naps((((1.0, 2.0, 4.0), (0.5,)),))


def test_naps_are_replayed_in_turn_and_go_on_as_they_ended() -> None:
    assert [NAPS.seconds(0, 0, rung) for rung in range(3)] == [1.0, 2.0, 4.0]
    assert [NAPS.seconds(0, 1, rung) for rung in range(3)] == [0.5, 0.5, 0.5]
    assert NAPS.seconds(0, 2, 1) == 2.0


def test_work_is_the_sum_of_all_jobs_and_grows_with_the_scale() -> None:
    study = Study("doge_ta", 0, 4, 128, 8)
    case = Case("a", "made up", (("one", (3.0, 4.0)),), (study,), NAPS, (("two", (1.0,)),))
    assert case.work == 8 + 2 * (7.0 + 1.5)
    half = case.scaled(0.5)
    assert half.work == case.work / 2
    assert half.before == (("one", (1.5, 2.0)),)


def test_ratios_of_stages_add_up() -> None:
    # Eight jobs of a second on three workers take three rounds; uncut work would take 8/3.
    assert lower_bound([1.0] * 8, 3) == 3
    rounds = Stage("rounds", 8, 4.0, 3.0, 8 / 3, listed=3.0)
    perfect = Stage("perfect", 2, 1.0, 1.0, 1.0, listed=1.0)
    assert ratio([rounds]) == 0.75
    assert ratio([rounds, perfect]) == pytest.approx(4 / 5)
    assert ratio([rounds], divisible=True) == pytest.approx(2 / 3)
    assert rounds.cost == 1.0
    assert perfect.cost == 0.0


def test_what_scheduling_costs_is_not_magnified_but_bad_orders_are() -> None:
    # Ten times shorter than in truth: 0.9 s would do, jobs in turn take 1, scheduling another one.
    stage = Stage("search", 5, 2.0, 0.9, 0.9, listed=1.0, scale=0.1)
    assert stage.unscaled == 10 + 1
    assert ratio([stage]) == 0.45
    assert unscaled_ratio([stage]) == pytest.approx(9 / 11)
    assert unscaled_ratio([Stage("jobs", 1, 2.0, 1.0, 1.0, listed=1.0)]) == 0.5


def test_a_long_search_goes_on_where_its_made_up_beginning_ends() -> None:
    long = LongSearch(trials=60, replayed=10, scale=0.1)
    sampling = long._sampling
    assert sampling.suggested == 50
    assert sampling.study.trials == 60
    found = sampling.suggest()
    assert found is not None
    assert found[0] == 50
    space = {declared.name: (low, high) for declared, low, high in sampling.study.space}
    for number in range(50):
        for name, value in sampling.params(number).items():
            low, high = space[name]
            assert low <= float(value) <= high


def test_what_is_replayed_is_what_was_recorded_or_planned() -> None:
    case = case_of("mini_vision")
    jobs = dict((*case.before, *case.after))
    assert len(jobs["experts"]) == 8
    assert len(jobs["evaluation"]) == 9
    assert list(jobs["evaluation"]) == sorted(jobs["evaluation"], reverse=True)
    assert 40 < min(jobs["experts"]) < max(jobs["experts"]) < 120  # seconds, as recorded
    assert [study.trials for study in case.studies] == [24, 24, 24]
    large = case_of("clip_vit_b32_20")
    assert len(dict(large.before)["experts"]) == 20
    assert "calculated" in large.source


def test_scores_lie_between_0_and_1_and_depend_on_parameters() -> None:
    found = {score({"eta": 0.01 * n, "name": "x"}) for n in range(50)}
    assert len(found) == 50
    assert all(0 <= value <= 1 for value in found)
    assert score({}) == 0.5


def test_durations_are_recorded_from_a_run(tmp_path: Path) -> None:
    run, experts = tmp_path / "run", tmp_path / "experts"
    manifest = {
        "command": "x", "finished": "now", "machine": {"workers": 2, "description": "y"},
        "stages": [
            {"name": "data", "seconds": 3.0, "done": 2, "reused": 4},
            {"name": "singular vectors", "seconds": 1.0, "done": 4, "reused": 0},
        ],
    }  # fmt: skip
    rung = {"judged": [1, 2], "share": 0.5, "seconds": {"merge": 1.0, "score": 3.0}}
    for path, content in (
        (run / "manifest.json", manifest),
        (experts / "mini_vision-a" / "manifest.json",
         {"spec": {"tasks": ["scenes"]}, "seconds": 7.0}),
        (run / "records" / "rungs" / "k" / "0.json", {"params": {}, "rungs": [rung]}),
    ):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    found = recorded(run, experts)
    assert found["data"] == 1.0
    assert found["singular vectors"] == 0.5
    assert found["experts"]["scenes"] == [7.0]
    assert found["trials"] == {"doge_ta": [[4.0]]}
    assert found["validation"] == 3.0


@pytest.mark.slow
@pytest.mark.soak
def test_a_small_reproduction_on_two_nodes(tmp_path: Path) -> None:
    out = tmp_path / "scale.json"
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark_scale", "--nodes", "2", "--cases",
         "mini_vision", "--trials", "60", "--scale", "0.3", "--out", str(out)],
        capture_output=True, text=True, check=False, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    cases = json.loads(out.read_text(encoding="utf-8"))["cases"]
    stages = {s["name"]: Stage(**s) for s in cases["mini_vision"]["nodes"]["2"]}
    assert {name: stage.jobs for name, stage in stages.items()} == {
        "data": 26, "experts": 8, "singular vectors": 16, "search": 72, "evaluation": 9,
    }  # fmt: skip
    assert all(stage.bound <= stage.makespan for stage in stages.values())
    # One node alone would take twice the bound; how much less than that depends on the machine.
    assert stages["experts"].bound / stages["experts"].makespan > 0.5
    [search] = cases["search"]["nodes"]["2"]
    assert search["jobs"] == 40  # the last 20 for each node

"""Ray Tune around workers that work, that fail, and that die."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray
from rich.console import Console

from tests.tune.small_search import (
    fault,
    found_in,
    kept_in,
    make_run,
    merges_scored,
    run_here,
    said,
    search_with,
    small_pool,
    small_study,
    workload_of,
)
from tune.cluster import ray_session
from tune.progress import Display
from tune.search import sampling, tuner
from tune.search.judges import Ended, Loss, News
from tune.search.objectives import Objective
from tune.search.rungs import Rungs
from tune.search.sampling import Outcome, Sampling
from tune.search.stage import _say_who_idles
from tune.search.tuner import Studies, run_searches
from tune.workers.pool import WorkerPool
from tune.workers.process import Shared, Worker
from tune.workers.remote import RemoteWorker

FEW = (("iterations", 16),)
STUDIES = [
    small_study("doge_ta", trials=8, published_params=FEW, at_once=2),
    small_study("ties", seed=1, trials=3),
    small_study("task_arithmetic", trials=2, objectives=(Objective.ACCURACY, Objective.UNSEEN)),
]


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with pytest.MonkeyPatch.context() as patch, ray_session(address="local", cpus=2):
        yield small_pool(2, patch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, int]:
    """What one worker finds in this process, trial after trial, and how many merges it scores."""
    folder = make_run(tmp_path_factory.mktemp("here"))
    with pytest.MonkeyPatch.context() as patch:
        found = found_in(run_here(folder, STUDIES, patch, bases=True))
    return found, kept_in(folder), merges_scored(folder)


def test_tune_finds_what_one_worker_finds_whatever_becomes_of_workers(
    pool: WorkerPool, folder: Path, whole: tuple[Any, Any, int]
) -> None:
    fault(folder, "0-1-1.die")
    found = found_in(search_with(pool, folder, STUDIES))
    assert found == whole[0]
    assert kept_in(folder) == whole[1]
    assert not (folder / "run" / "faults" / "0-1-1.die").exists()
    # What was on disk was not computed again, and Tune's own files are gone.
    assert merges_scored(folder) == whole[2]
    assert sorted(path.name for path in (folder / "run").iterdir()) == [
        "experiment.json", "faults", "records", "rungs.log", "studies.db",
    ]  # fmt: skip
    assert found_in(search_with(None, folder, STUDIES)) == found  # without a single worker
    states = {t[1] for t in kept_in(folder)["doge_ta/seed0/" + key_of(folder)]}
    assert states == {"COMPLETE", "PRUNED"}


def key_of(folder: Path) -> str:
    (name,) = [name for name in kept_in(folder) if name.startswith("doge_ta/")]
    return name.rsplit("/", 1)[1]


def test_a_trial_that_fails_is_recorded_and_the_others_go_on(
    pool: WorkerPool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = [small_study("ties", trials=4), small_study("task_arithmetic", trials=3)]
    for name in ("0-2-1.raise", "0-0-0.raise", "1-1-2.raise"):
        fault(folder, name)
    found = search_with(pool, folder, studies)
    ties, arithmetic = found
    assert [bool(trial.scores) for trial in ties.trials] == [False, True, False, True]
    assert [bool(trial.scores) for trial in arithmetic.trials] == [True, False, True]
    assert ties.trials[2].details["error"] == "ValueError: the merge is on fire"
    (kept,) = [trials for name, trials in kept_in(folder).items() if name.startswith("ties")]
    assert [trial[1] for trial in kept] == ["FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    assert kept[2][5]["error"] == "ValueError: the merge is on fire"
    assert len(kept[2][5]["rungs"]) == 1
    # It is the same without Tune, and failed trials stay what they are.
    (tmp_path / "again").mkdir()
    again = make_run(tmp_path / "again")
    for name in ("0-2-1.raise", "0-0-0.raise", "1-1-2.raise"):
        fault(again, name)
    with monkeypatch.context() as patch:
        assert found_in(run_here(again, studies, patch, bases=False)) == found_in(found)
    assert found_in(search_with(None, folder, studies)) == found_in(found)


def test_storage_that_fails_for_a_while_costs_no_trial(
    pool: WorkerPool, folder: Path, whole: tuple[Any, Any, int]
) -> None:
    for name in ("0-2-1", "1-0-0"):
        fault(folder, f"{name}.stale")
    assert found_in(search_with(pool, folder, STUDIES)) == whole[0]
    assert kept_in(folder) == whole[1]
    assert not list((folder / "run" / "faults").iterdir())
    lines = said(folder)
    assert len(lines) == 2
    for line in lines:
        assert "failed while judging trial" in line
        assert line.endswith(" Stale file handle); it is tried again")


def test_a_leak_ends_the_search(
    pool: WorkerPool, folder: Path, whole: tuple[Any, Any, int]
) -> None:
    fault(folder, "1-1-1.leak")
    with pytest.raises(RuntimeError, match="all trials meet: LeakError: the test split of task"):
        search_with(pool, folder, STUDIES)
    assert all(t[1] != "RUNNING" for trials in kept_in(folder).values() for t in trials)
    assert sum(map(len, kept_in(folder).values())) < sum(study.trials for study in STUDIES)
    # The trial that leaked is a failed one; nothing of the test split is on disk.
    assert not list((folder / "run").rglob("*test*"))


def test_where_every_trial_fails_the_reason_is_named(pool: WorkerPool, folder: Path) -> None:
    fault(folder, "0-all-0.raise")
    studies = [small_study("ties", trials=3), small_study("task_arithmetic", trials=1)]
    with pytest.raises(
        RuntimeError, match=r"no trial of ties/seed0 was judged in full: ValueError: .* on fire$"
    ):
        search_with(pool, folder, studies)
    counts = [[trial[1] for trial in trials] for trials in kept_in(folder).values()]
    assert sorted(counts, key=len) == [["COMPLETE"], ["FAIL"] * 3]


@pytest.mark.slow
def test_a_storage_that_takes_no_more_is_an_error(
    pool: WorkerPool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sampling.add_trials

    def full(study: optuna.Study, first: int, trials: Any) -> None:
        if first + len(trials) > 2:
            raise optuna.exceptions.StorageInternalError("the disk is full")
        original(study, first, trials)

    studies = [small_study("ties", trials=4)]
    monkeypatch.setattr(sampling, "add_trials", full)
    with pytest.raises(optuna.exceptions.StorageInternalError, match="the disk is full"):
        search_with(pool, folder, studies)
    monkeypatch.undo()
    scored = merges_scored(folder)
    found = search_with(pool, folder, studies)
    assert [trial.details["number"] for trial in found[0].trials] == list(range(4))
    assert merges_scored(folder) <= scored + 2 * 3


def lean_worker(dies_at: int) -> Any:
    """An actor that dies whenever a trial is judged; of a local class, so that its process imports
    nothing."""

    class Lean:
        def score_trial(
            self, _shared: object, study: int, number: int, params: dict[str, float], rung: int
        ) -> tuple[float, ...]:
            if (number, rung) == (dies_at, 1):
                import os

                os.kill(os.getpid(), 9)
            return (-abs(params["coefficient"] - 0.3),)

    return ray.remote(num_cpus=0, max_restarts=-1)(Lean).remote()


@pytest.mark.slow
def test_a_trial_that_no_worker_survives_is_a_failed_one(pool: WorkerPool, folder: Path) -> None:
    assert pool
    study = small_study("task_arithmetic", trials=5, at_once=1, rungs=Rungs(reduction=1))
    ended: dict[int, Outcome] = {}

    def on_finish(_index: int, number: int, outcome: Outcome) -> dict[str, Any]:
        ended[number] = outcome
        return {}

    shared = Shared((study,), ("key",), workload_of(folder), {})
    sampling, told = Sampling(study, "s"), list[str]()
    workers = [lean_worker(3), lean_worker(3)]
    run_searches([sampling], shared, workers, folder / "scratch", on_finish, told.append)
    assert [ended[number].error is None for number in range(5)] == [True, True, True, False, True]
    assert ended[3].error is not None
    assert ended[3].error.startswith("6 workers died over it: ")
    assert len(ended[3].rungs) == 1
    assert sum("died while judging trial 3 of" in sentence for sentence in told) == 5
    assert sampling.finished
    assert not (folder / "scratch").exists()


def news(*ended: Ended, **fields: Any) -> News:
    return News(ended=ended, **fields)


def studies_of(*samplings: Sampling, **fields: Any) -> tuple[Studies, list[Outcome], list[str]]:
    """The studies, what comes of their trials, and what is said."""
    outcomes, told = list[Outcome](), list[str]()

    def on_finish(_index: int, _number: int, outcome: Outcome) -> dict[str, Any]:
        outcomes.append(outcome)
        return {}

    fields = {"workers": 1, "say": told.append, **fields}
    return Studies(samplings, on_finish, **fields), outcomes, told


def test_trials_of_a_process_that_died_are_given_to_the_next_one() -> None:
    studies, outcomes, told = studies_of(Sampling(small_study(trials=3, at_once=2), "s"))
    orders = studies.answer(0, News())
    assert [order.number for order in orders] == [0, 1]
    held = {order.place: 0 for order in orders}
    assert studies.answer(0, news(holding=held)) == []
    studies.begun_again(0, "killed")
    assert studies.answer(0, News()) == orders  # it knows nothing of them
    ended = Ended((0, 0), ((0.1,), (0.2,), (0.3,)), ())
    assert [o.number for o in studies.answer(0, news(ended, holding={(0, 1): 0}))] == [2]
    assert studies.answer(0, news(ended, holding={(0, 1): 0, (0, 2): 0})) == []  # told twice
    assert outcomes == [Outcome(rungs=((0.1,), (0.2,), (0.3,)), complete=True)]
    assert told == [
        "a process of the search died (killed); it is begun again and goes on with 2 trials from "
        "the rungs on disk"
    ]


def test_studies_take_turns_and_each_worker_has_two_trials() -> None:
    samplings = [Sampling(small_study(m, trials=4), "s") for m in ("doge_ta", "ties")]
    studies, _, _ = studies_of(*samplings, workers=3, processes=2)
    found = [*studies.answer(0, News()), *studies.answer(1, News())]
    assert [(o.study, o.number, o.worker) for o in found] == [
        (0, 0, 0), (1, 0, 1), (0, 1, 2), (1, 1, 0), (0, 2, 1), (1, 2, 2),
    ]  # fmt: skip
    assert not studies.finished


def test_the_worker_that_is_done_first_gets_the_next_trial() -> None:
    studies, _, _ = studies_of(Sampling(small_study(trials=8), "s"), workers=2)
    first = studies.answer(0, News())
    assert [order.worker for order in first] == [0, 1, 0, 1]
    slow = {(0, 0): 0, (0, 2): 0, (0, 3): 1}
    assert [
        o.worker for o in studies.answer(0, news(Ended((0, 1), ((0.1,),), ()), holding=slow))
    ] == [1]
    # Of one that is down its trials have gone to others, and it gets none.
    moved = {(0, 0): 1, (0, 2): 1}
    orders = studies.answer(
        0, news(Ended((0, 3), ((0.1,),), ()), Ended((0, 4), ((0.1,),), ()), holding=moved, down=[0])
    )
    assert orders == []
    assert [o.worker for o in studies.answer(0, news(holding=moved))] == [0, 0]


def test_losses_are_told_in_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    studies, _, told = studies_of(Sampling(small_study("ties", seed=1), "s"), workers=4)
    places = ((0, 3), (0, 5))
    losses = [
        Loss(2, places, (0, 1)), Loss(2, places[:1], ()), Loss(2, (), ()),
        Loss(3, places[:1], (1,), 61.2), Loss(3, places[:1], (), error="OSError: stale"),
    ]  # fmt: skip
    studies.answer(0, news(losses=losses, met={2: "north"}))
    studies.answer(0, news(losses=losses[:1], met={0: "south"}, refused={3: "west"}))
    monkeypatch.setattr(tuner, "_QUIET_SECONDS", 0.0)
    for _ in range(3):
        studies.answer(0, news(refused={3: "west"}, down=[0, 1, 2, 3]))
    assert told == [
        "worker 2 died while judging trial 3 of ties/seed1 and trial 5 of ties/seed1; what it "
        "judged is judged again by worker 0 and worker 1",
        "worker 2 died while judging trial 3 of ties/seed1; others will judge it",
        "worker 2 died; nothing that it had is left to be judged",
        "worker 3 has been judging trial 3 of ties/seed1 for 61 s, far longer than others take; "
        "worker 1 judges it as well",
        "worker 3 failed while judging trial 3 of ties/seed1 (OSError: stale); it is tried again",
        "worker 2 on north died while judging trial 3 of ties/seed1 and trial 5 of ties/seed1; "
        "what it judged is judged again by worker 0 and worker 1",
        "worker 3 on west has other code or libraries than the driver, and is left out; bring west "
        "up to date with `ray up`",
        "no worker is left; the search waits until one is back",
    ]


def test_a_search_ends_where_no_worker_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner, "_ALONE_SECONDS", 0.0)
    studies, _, _ = studies_of(Sampling(small_study(), "s"))
    assert studies.answer(0, news(down=[0])) == []
    assert studies.end is None
    studies.answer(0, news(down=[0]))
    assert studies.end is not None
    assert studies.end.startswith("a cluster without workers for 0 minutes; ")


def test_a_search_ends_where_every_worker_has_other_code() -> None:
    studies, _, told = studies_of(Sampling(small_study(), "s"), workers=2)
    studies.answer(0, news(refused={1: "east"}, down=[1]))
    assert studies.end is None
    studies.answer(0, news(refused={0: "west"}, down=[0, 1]))
    assert studies.end == "workers that all have other code or libraries than the driver"
    assert len(told) == 2


def test_a_search_ends_where_no_worker_can_start() -> None:
    studies, _, told = studies_of(Sampling(small_study(), "s"), workers=2)
    for _ in range(2):
        studies.answer(0, news(failed={1: "RuntimeError: no GPU (on east)"}, down=[1]))
    assert studies.end is None
    studies.answer(0, news(refused={0: "west"}, down=[0, 1]))
    assert studies.end == (
        "workers that may all not judge; worker 1 cannot start: RuntimeError: no GPU (on east)"
    )
    assert told[0] == "worker 1 cannot start, and is left out: RuntimeError: no GPU (on east)"
    assert len(told) == 2


def test_a_trial_that_ends_the_search_is_not_finished() -> None:
    sampling = Sampling(small_study(), "s")
    studies, outcomes, _ = studies_of(sampling)
    studies.answer(0, News())
    ends = Ended((0, 0), (), (), "LeakError: the test split", ends_search=True)
    assert studies.answer(0, news(ends, Ended((0, 1), ((0.1,),), ()))) == []
    assert studies.end == "an error that all trials meet: LeakError: the test split"
    assert outcomes == []
    assert sampling.written == 0


def test_a_run_says_what_keeps_its_workers_busy(capsys: pytest.CaptureFixture[str]) -> None:
    with Display(Console()) as display:
        _say_who_idles([small_study(trials=40)] * 2, 8, display)
        _say_who_idles([small_study(trials=4)], 8, display)  # all of them may be at once
        assert capsys.readouterr().out == ""
        _say_who_idles([small_study(trials=40)] * 3, 64, display)
    said = " ".join(capsys.readouterr().out.split())
    assert "128 trials under way, but only 24 may be" in said
    assert "--at-once 43 keeps all of them busy" in said


def test_processes_of_trials_import_nothing_that_computes() -> None:
    modules = "tune.search.process, tune.search.judges, tune.workers.remote"
    listing = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_actor_passes_every_call_of_a_worker_on() -> None:
    calls = {name for name in vars(Worker) if not name.startswith("_")}
    assert calls == {name for name in vars(RemoteWorker) if not name.startswith("_")}

"""Ray Tune around workers that work, that fail, and that die."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray

from tests.tune.small_search import (
    fault,
    found_in,
    kept_in,
    make_run,
    merges_scored,
    run_here,
    search_with,
    small_pool,
    small_study,
    workload_of,
)
from tune.cluster import ray_session
from tune.objectives import Objective
from tune.remote_worker import RemoteWorker
from tune.rungs import Rungs
from tune.sampling import Outcome, Sampling
from tune.search import Studies, run_searches
from tune.workers import Shared, Worker, WorkerPool

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
    assert ties.trials[2].details["error"] == "OSError: the disk is on fire"
    (kept,) = [trials for name, trials in kept_in(folder).items() if name.startswith("ties")]
    assert [trial[1] for trial in kept] == ["FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    assert kept[2][5]["error"] == "OSError: the disk is on fire"
    assert len(kept[2][5]["rungs"]) == 1
    # It is the same without Tune, and failed trials stay what they are.
    (tmp_path / "again").mkdir()
    again = make_run(tmp_path / "again")
    for name in ("0-2-1.raise", "0-0-0.raise", "1-1-2.raise"):
        fault(again, name)
    with monkeypatch.context() as patch:
        assert found_in(run_here(again, studies, patch, bases=False)) == found_in(found)
    assert found_in(search_with(None, folder, studies)) == found_in(found)


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
        RuntimeError, match=r"no trial of ties/seed0 was judged in full: OSError: .* on fire$"
    ):
        search_with(pool, folder, studies)
    counts = [[trial[1] for trial in trials] for trials in kept_in(folder).values()]
    assert sorted(counts, key=len) == [["COMPLETE"], ["FAIL"] * 3]


@pytest.mark.slow
def test_a_storage_that_takes_no_more_is_an_error(
    pool: WorkerPool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = optuna.Study.add_trial

    def full(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        if len(study.trials) == 2:
            raise optuna.exceptions.StorageInternalError("the disk is full")
        original(study, trial)

    studies = [small_study("ties", trials=4)]
    monkeypatch.setattr(optuna.Study, "add_trial", full)
    with pytest.raises(optuna.exceptions.StorageInternalError, match="the disk is full"):
        search_with(pool, folder, studies)
    monkeypatch.undo()
    scored = merges_scored(folder)
    found = search_with(pool, folder, studies)
    assert [trial.details["number"] for trial in found[0].trials] == list(range(4))
    assert merges_scored(folder) <= scored + 2 * 3


def lean_worker(dies_at: int) -> Any:
    """An actor that is not restarted; of a local class, so that its process imports nothing."""

    class Lean:
        def score_trial(
            self, _shared: object, study: int, number: int, params: dict[str, float], rung: int
        ) -> tuple[float, ...]:
            if (number, rung) == (dies_at, 1):
                import os

                os.kill(os.getpid(), 9)
            return (-abs(params["coefficient"] - 0.3),)

    return ray.remote(num_cpus=0)(Lean).remote()


@pytest.mark.slow
def test_trials_of_a_worker_that_does_not_come_back_are_failed_ones(
    pool: WorkerPool, folder: Path
) -> None:
    assert pool
    study = small_study("task_arithmetic", trials=5, at_once=1, rungs=Rungs(reduction=1))
    ended: dict[int, Outcome] = {}

    def on_finish(_index: int, number: int, outcome: Outcome) -> dict[str, Any]:
        ended[number] = outcome
        return {}

    shared = Shared((study,), ("key",), workload_of(folder), {})
    sampling = Sampling(study, "s")
    run_searches([sampling], shared, [lean_worker(3)], folder / "scratch", on_finish)
    assert [ended[number].error is None for number in range(5)] == [True, True, True, False, False]
    assert ended[3].error is not None
    assert ended[3].error.startswith("its process died: ")
    assert sampling.finished
    assert not (folder / "scratch").exists()


def test_a_trial_that_is_begun_again_reports_its_rungs_again() -> None:
    outcomes: list[Outcome] = []

    def on_finish(_index: int, _number: int, outcome: Outcome) -> dict[str, Any]:
        outcomes.append(outcome)
        return {}

    studies = Studies([Sampling(small_study(), "s")], on_finish, slots=2)
    config = studies.next()
    assert config is not None
    for rung, value in ((1, 0.1), (2, 0.2), (1, 0.1), (2, 0.2), (3, 0.3)):
        result = {"values": (value,), "training_iteration": rung, "done": rung == 3}
        assert studies.report(config, result)
    studies.finish(config, None)
    assert outcomes == [Outcome(rungs=((0.1,), (0.2,), (0.3,)), complete=True)]


def test_the_last_rung_of_a_stopped_trial_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def never(_sampling: Sampling, number: int, _values: object) -> bool:
        asked.append(number)
        return False

    monkeypatch.setattr(Sampling, "goes_on", never)
    studies = Studies([Sampling(small_study(), "s")], lambda *_: {}, slots=2)
    config = studies.next()
    assert config is not None
    result = {"values": (0.1,), "training_iteration": 1, "done": False}
    # As Tune does: once for its verdict, and again when the trial is over.
    assert not studies.report(config, result)
    assert not studies.report(config, {**result, "done": True})
    assert asked == [0]


def test_studies_take_turns_and_slots_too() -> None:
    samplings = [Sampling(small_study(m, trials=2), "s") for m in ("doge_ta", "ties")]
    studies = Studies(samplings, lambda *_: {}, slots=3)
    found = [studies.next() for _ in range(4)]
    assert [(c["study"], c["number"], c["slot"]) for c in found if c] == [
        (0, 0, 0), (1, 0, 1), (0, 1, 2), (1, 1, 0),
    ]  # fmt: skip
    assert studies.next() is None
    assert studies.all_suggested


def test_a_trial_that_is_broken_off_with_the_search_is_not_finished() -> None:
    outcomes: list[Outcome] = []
    sampling = Sampling(small_study(), "s")
    studies = Studies([sampling], lambda _i, _n, outcome: outcomes.append(outcome) or {}, slots=1)
    config = studies.next()
    assert config is not None
    studies.report(config, {"values": (0.1,), "training_iteration": 1, "done": False})
    studies.finish(config, None)
    assert outcomes == []
    assert sampling.written == 0


def test_processes_of_trials_import_nothing_that_computes() -> None:
    listing = "import sys, tune.trial, tune.remote_worker; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", listing], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_actor_passes_every_call_of_a_worker_on() -> None:
    calls = {name for name in vars(Worker) if not name.startswith("_")}
    assert calls == {name for name in vars(RemoteWorker) if not name.startswith("_")}

"""Trials, rung by rung: what is computed, what is kept, and what is read."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from apgd import shared_work
from apgd.data import Split
from apgd.data.reader import LeakError
from apgd.files import read_sealed, write_sealed
from apgd.methods import methods
from apgd.projective import task_bases
from apgd.shared_work import SharedWork
from tests.tune.small_search import (
    EXAMPLES,
    SHAPES,
    TASKS,
    UNSEEN,
    SmallEvaluator,
    found_in,
    make_run,
    run_here,
    small_study,
    workload_of,
)
from tune.evaluators import Purpose
from tune.search import stage, trials
from tune.search.objectives import Objective
from tune.search.rungs import RungResult
from tune.search.sampling import Outcome
from tune.search.stage import trial_record
from tune.search.studies import Params, Study
from tune.search.trials import Trial, TrialScorer, rungs_done

PUBLISHED: Params = {"eta": 0.07, "basis_size": 1, "learning_rate": 1e-4}
OTHER: Params = {"eta": 0.4, "basis_size": 3, "learning_rate": 1e-3}
STUDY = small_study(published_params=(("iterations", 16),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path)


@pytest.fixture
def evaluator(folder: Path) -> Any:
    return SmallEvaluator(workload_of(folder))


@pytest.fixture
def scorer(evaluator: Any) -> TrialScorer:
    return TrialScorer(evaluator)


def trial(number: int, params: Params = OTHER, study: Study = STUDY) -> Trial:
    return Trial(study, "key", number, tuple(params.items()))


def of_one_merge(
    evaluator: Any, one: Trial, rung: RungResult, index: int, tasks: tuple[str, ...] = TASKS
) -> float:
    """The mean score of a setting by a merge that shares nothing."""
    setting = rung.judged[index].setting
    method = methods[one.study.method]
    params = method.parse({**one.settings(), **setting})
    delta = method.merge(evaluator.task_vectors(one.study.seed), params)
    evaluator.load(delta)
    reader = evaluator.reader(Purpose.SEARCH, rung.share)
    return sum(
        evaluator.score(task, reader.examples(task, Split.VALIDATION)) for task in tasks
    ) / len(tasks)


def test_every_setting_has_the_score_of_its_own_merge(evaluator: Any, scorer: TrialScorer) -> None:
    one = trial(3)
    for number, share in enumerate((1 / 9, 1 / 3, 1.0)):
        rung = scorer.rung(one, number)
        assert rung.share == share
        for index, judged in enumerate(rung.judged):
            expected = of_one_merge(evaluator, one, rung, index)
            assert judged.values == pytest.approx((expected,), rel=1e-5)
        values = [judged.values for judged in rung.judged]
        assert rung.values == max(values)
        assert rung.best == values.index(max(values))
        assert set(rung.scores) == {f"validation/{task}" for task in TASKS}
        assert sum(rung.scores.values()) / 3 == pytest.approx(rung.values[0])
    assert [len(r.judged) for r in rungs_done(one, scorer.workload.run_dir)] == [7, 3, 2]


def test_a_rung_reads_its_share_of_validation_and_says_so(
    evaluator: Any, scorer: TrialScorer
) -> None:
    for number, (share, settings) in enumerate(((1 / 9, 7), (1 / 3, 3), (1.0, 2))):
        evaluator.asked.clear()
        rung = scorer.rung(trial(3), number)
        assert Counter(evaluator.asked) == {(t, round(EXAMPLES * share)): settings for t in TASKS}
        assert dict(rung.reads) == {"validation": settings * len(TASKS)}


def test_rungs_on_disk_are_not_computed_again(evaluator: Any, scorer: TrialScorer) -> None:
    first = [scorer.rung(trial(3), number) for number in range(2)]
    evaluator.asked.clear()
    again = TrialScorer(evaluator)
    assert [again.rung(trial(3), number) for number in range(2)] == first
    assert evaluator.asked == []
    # The next one begins the merge again, and gives what an uninterrupted trial gives.
    third = again.rung(trial(3), 2)
    assert third.judged == scorer.rung(trial(3), 2).judged
    other = evaluator.workload.run_dir.parent / "other"
    other.mkdir()
    elsewhere: Any = SmallEvaluator(dataclasses.replace(evaluator.workload, run_dir=other))
    assert TrialScorer(elsewhere).rung(trial(3), 2).judged == third.judged


def test_a_rung_makes_up_for_those_that_are_missing(scorer: TrialScorer) -> None:
    last = scorer.rung(trial(3), 2)
    done = rungs_done(trial(3), scorer.workload.run_dir)
    assert len(done) == 3
    assert done[2] == last
    assert rungs_done(trial(4), scorer.workload.run_dir) == []
    path = trial(3).path(scorer.workload.run_dir)
    found = read_sealed(path)
    assert found["rungs"][2]["share"] == 1.0
    # Rungs of other parameters under the same number do not count.
    write_sealed(path, {**found, "params": {**found["params"], "eta": 0.5}})
    assert rungs_done(trial(3), scorer.workload.run_dir) == []


def test_settings_of_one_share_are_not_judged_twice(evaluator: Any) -> None:
    plan = dataclasses.replace(STUDY.rungs, shares=(1.0, 1.0, 1.0))
    study = dataclasses.replace(STUDY, rungs=plan)
    scorer = TrialScorer(evaluator)
    first = scorer.rung(trial(3, study=study), 0)
    evaluator.asked.clear()
    second = scorer.rung(trial(3, study=study), 1)
    assert second.judged[0] == first.judged[first.best]
    assert len(evaluator.asked) == 2 * len(TASKS)  # of three settings, one is known


def counted(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, counts: Counter[str]) -> None:
    original = getattr(place, name)

    def call(*arguments: Any, **named: Any) -> Any:
        counts[name] += 1
        return original(*arguments, **named)

    monkeypatch.setattr(place, name, call)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    counts: Counter[str] = Counter()
    for place, name in (
        (shared_work, "task_bases"),
        (shared_work, "shared_of"),
        (shared_work.TaskVectors, "magnitude_thresholds"),
    ):
        counted(monkeypatch, place, name, counts)
    return counts


def play_all(scorer: TrialScorer, many: list[Trial]) -> None:
    """Two trials under way at a time, as workers have them."""
    for first, second in zip(many[::2], many[1::2], strict=True):
        for rung in range(3):
            scorer.rung(first, rung)
            scorer.rung(second, rung)


SEVERAL = [
    trial(i, {"eta": 0.05 * (i + 1), "basis_size": (1, 3)[i % 2], "learning_rate": 1e-4})
    for i in range(8)
]


def test_a_search_decomposes_every_matrix_once(scorer: TrialScorer, counts: Counter[str]) -> None:
    play_all(scorer, SEVERAL)
    assert counts == {
        "task_bases": len(SHAPES),  # each of all experts
        "shared_of": 2 * len(SHAPES),  # for k = 1 and for k = 3
        "magnitude_thresholds": 7,  # for every keep ratio of the grid, 0.3 among them
    }


def test_a_scorer_with_bases_decomposes_no_task_vector(
    evaluator: Any, scorer: TrialScorer, counts: Counter[str]
) -> None:
    vectors = evaluator.task_vectors(0)
    assert STUDY.bases == 5
    scorer.share_bases(0, {name: task_bases(vectors[name], STUDY.bases) for name in SHAPES})
    play_all(scorer, SEVERAL)
    assert counts["task_bases"] == 0
    assert counts["shared_of"] == 2 * len(SHAPES)


def test_the_search_stage_decomposes_once_for_all_studies(
    folder: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each expert's matrix once in all, by the workers' `decompose`, at the largest k."""
    asked: Counter[tuple[int, str, int]] = Counter()
    original = stage.Job

    def job(method: str, arguments: tuple[Any, ...], *what: str) -> Any:
        _workload, seed, name, count = arguments
        asked[seed, name, count] += 1
        return original(method, arguments, *what)

    monkeypatch.setattr(stage, "Job", job)
    study = dataclasses.replace(STUDY, trials=3)
    both = [study, dataclasses.replace(study, seed=1), small_study("ties", trials=2)]
    run_here(folder, both, monkeypatch, bases=True)
    assert asked == {(seed, name, 5): 1 for seed in (0, 1) for name in SHAPES}
    assert counts["task_bases"] == 0


def test_the_last_trials_merges_are_kept(
    scorer: TrialScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: Counter[str] = Counter()
    counted(monkeypatch, TrialScorer, "_begin", begun)
    for rung in range(3):
        for number in (0, 1):
            scorer.rung(trial(number), rung)
    assert begun["_begin"] == 2
    for number in (2, 3, 4):  # in the place of others
        scorer.rung(trial(number), 0)
    assert begun["_begin"] == 5
    scorer.rung(trial(2), 1)
    assert begun["_begin"] == 6


def test_the_published_trial_ends_with_the_published_settings(scorer: TrialScorer) -> None:
    last = scorer.rung(trial(0, PUBLISHED), 2)
    assert last.judged[-1].setting == {"iterations": 16, "keep_ratio": 0.3}


def test_objectives_come_from_their_own_tasks(evaluator: Any, scorer: TrialScorer) -> None:
    every = (Objective.ACCURACY, Objective.WORST_TASK, Objective.UNSEEN)
    study = dataclasses.replace(STUDY, objectives=every)
    one = trial(3, study=study)
    rung = scorer.rung(one, 0)
    # Experts are asked first, once for a share, and no unseen task is among theirs.
    assert [task for task, _ in evaluator.asked[: len(TASKS)]] == list(TASKS)
    assert len(evaluator.asked) == len(TASKS) + len(rung.judged) * len((*TASKS, *UNSEEN))
    assert set(rung.scores) == {f"validation/{task}" for task in (*TASKS, *UNSEEN)}
    merged = [rung.scores[f"validation/{task}"] for task in TASKS]
    assert rung.values[0] == pytest.approx(sum(merged) / 3)
    assert rung.values[1] == pytest.approx(min(merged))  # an expert's own score is 1 here
    assert rung.values[2] == rung.scores["validation/figs"]
    for index, judged in enumerate(rung.judged):
        unseen = of_one_merge(evaluator, one, rung, index, UNSEEN)
        assert judged.values[2] == pytest.approx(unseen, rel=1e-5)
    evaluator.asked.clear()
    second = scorer.rung(one, 1)
    assert len(evaluator.asked) == len(TASKS) + len(second.judged) * len((*TASKS, *UNSEEN))
    # Without the objective, unseen tasks are not touched.
    scorer.rung(trial(4), 0)
    assert ("figs", 10) not in evaluator.asked[-21:]


def test_a_trial_never_reads_another_split(
    evaluator: Any, scorer: TrialScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = evaluator.reader(Purpose.SEARCH, 1 / 9)
    for split in (Split.TEST, Split.TRAIN):
        with pytest.raises(LeakError, match=f"the {split} split of task apples must not be read"):
            reader.examples("apples", split)
        with pytest.raises(LeakError):
            reader.whole().inputs("apples", split)
    # Not even where the code asks for it.
    monkeypatch.setattr(trials, "Split", type("Wrong", (), {"VALIDATION": Split.TEST}))
    with pytest.raises(LeakError, match="the test split of task apples must not be read"):
        scorer.rung(trial(3), 0)
    assert rungs_done(trial(3), scorer.workload.run_dir) == []


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_fails_the_trial(
    bad: float, evaluator: Any, scorer: TrialScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "score", lambda *_arguments: bad)
    with pytest.raises(RuntimeError, match="objectives must be finite, but accuracy is"):
        scorer.rung(trial(3), 0)
    assert rungs_done(trial(3), scorer.workload.run_dir) == []


def test_weights_that_are_no_numbers_fail_the_trial(
    scorer: TrialScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SharedWork.magnitude_thresholds
    monkeypatch.setattr(SharedWork, "magnitude_thresholds", lambda *a: original(*a) * float("nan"))
    monkeypatch.setattr(
        "apgd.methods.doge_ta.projective.masked_sum", lambda tau, *_rest: tau[0] * float("nan")
    )
    with pytest.raises(
        RuntimeError, match="merged weights must be finite, but those of .* are not"
    ):
        scorer.rung(trial(3), 0)


def test_a_record_tells_the_trials_best_setting_and_its_way(scorer: TrialScorer) -> None:
    one = trial(3)
    rungs = [scorer.rung(one, number) for number in range(3)]
    outcome = Outcome(rungs=tuple(rung.values for rung in rungs), complete=True)
    record = trial_record(one, outcome, scorer.workload)
    assert record.params == {**one.settings(), **rungs[2].setting}
    assert record.scores == rungs[2].scores
    assert record.seconds["merge"] == pytest.approx(sum(rung.seconds["merge"] for rung in rungs))
    assert record.details["number"] == 3
    assert (record.details["share"], record.details["stopped"]) == (1.0, False)
    assert record.details["objectives"] == {"accuracy": rungs[2].values[0]}
    assert record.details["reads"] == {"validation": (7 + 3 + 2) * 3}
    assert [len(rung["settings"]) for rung in record.details["rungs"]] == [7, 3, 2]
    first = record.details["rungs"][0]
    assert first["settings"][first["best"]]["params"] == rungs[0].setting
    # A stopped one tells how far it came, and a failed one why.
    stopped = trial_record(one, Outcome(rungs=outcome.rungs[:1], complete=False), scorer.workload)
    assert (stopped.details["share"], stopped.details["stopped"]) == (1 / 9, True)
    assert stopped.scores == rungs[0].scores
    failed = trial_record(
        one, Outcome(rungs=outcome.rungs[:1], complete=False, error="no"), scorer.workload
    )
    assert (failed.scores, failed.details["error"]) == ({}, "no")
    assert failed.params == one.settings()


def test_what_is_scored_here_does_not_depend_on_who_scores(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one search give the same records."""
    studies = [dataclasses.replace(STUDY, trials=4), small_study("ties", trials=4)]
    (tmp_path / "again").mkdir()
    again = make_run(tmp_path / "again")
    found = found_in(run_here(folder, studies, monkeypatch))
    assert found_in(run_here(again, studies, monkeypatch)) == found

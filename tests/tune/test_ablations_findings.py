"""What the ablations say of made-up scores whose truth is known."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.tune.made_up_bench import Scorer, bench, usual
from tune.ablations import components, order, task_counts
from tune.ablations.bench import Bench
from tune.ablations.catalogue import CATALOGUE
from tune.ablations.finding import Finding
from tune.ablations.settings import ABLATIONS
from tune.evaluators import Purpose, ScoreJob
from tune.references import EXPERTS
from tune.report.document import Table

SMALL = {"chains": 3, "orders": 2, "search_seeds": 2, "trials": 3, "seeds": 2}


def done(at: Bench, name: str) -> Finding:
    wanted = CATALOGUE[name].planned(at)
    if wanted:
        at.score(name, wanted)
    return CATALOGUE[name].find(at)


def rows(finding: Finding, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(finding.csv(name))))


def table(finding: Finding, name: str) -> Table:
    return next(
        block for block in finding.blocks if isinstance(block, Table) and block.name == name
    )


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_ablation_says_what_it_found_and_scores_nothing_twice(
    name: str, tmp_path: Path
) -> None:
    at, scorer = bench(tmp_path, **SMALL)
    finding = done(at, name)
    points = rows(finding, name)
    assert points
    for point in points:
        assert float(point["low"]) <= float(point["estimate"]) <= float(point["high"])
        assert point["split"] in ("validation", "test")
        assert int(point["n"]) > 0
        assert int(point["seeds"]) >= 1
        assert point["interval"]
    assert finding.figure is not None
    assert finding.figure.plot.png.startswith(b"\x89PNG")
    assert finding.figure.svg.rstrip().endswith("</svg>")
    assert finding.sentence.endswith(".")
    assert len(scorer.scored) == len(set(scorer.scored))
    again, idle = bench(tmp_path, **SMALL)
    repeated = done(again, name)
    assert idle.scored == []
    assert (repeated.csv(name), repeated.sentence) == (finding.csv(name), finding.sentence)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("tasks", ("Weight averaging", "Task arithmetic", "Ties-Merging", "DOGE TA")),
        ("solver", ("Exact", "Adam", "published, 0.07")),
        ("eta", ("mean over tasks", "single tasks", "published, 0.07")),
    ],
)
def test_a_figure_names_its_lines(name: str, entries: tuple[str, ...], tmp_path: Path) -> None:
    figure = done(bench(tmp_path, **SMALL)[0], name).figure
    assert figure is not None
    (drawing,) = figure.plot.drawings
    for svg in (figure.svg, drawing.wide, drawing.narrow):
        for entry in entries:
            assert f">{entry}</text>" in svg


def test_a_larger_budget_scores_only_what_is_new(tmp_path: Path) -> None:
    names = ("tasks", "order")
    few, _ = bench(tmp_path, **SMALL)
    for name in names:
        done(few, name)
    before = {job.key(_workload(few)) for name in names for job in _planned(few, name)}
    more, scorer = bench(tmp_path, **(SMALL | {"chains": 5, "orders": 3}))
    for name in names:
        done(more, name)
    assert scorer.scored
    assert before.isdisjoint(job.key(_workload(more)) for job in scorer.scored)
    assert {job.purpose for job in scorer.scored} == {Purpose.FINAL}


def _workload(at: Bench):
    return at._workload


def _planned(at: Bench, name: str) -> list[ScoreJob]:
    return [made.job(seed) for made, seed in CATALOGUE[name].planned(at)]


def test_main_effects_are_those_that_were_made_up(tmp_path: Path) -> None:
    at, _ = bench(tmp_path, seeds=2)
    finding = done(at, "components")
    effects = {r["point"]: r for r in rows(finding, "components") if r["measure"] == "main effect"}
    truth = {
        "Δ with its projection": 8,
        "Δ, with or without": 6 + 1,
        "projection": 2,
        "task-aware λ": 4,
        "mask": 8,
    }
    for name, expected in truth.items():
        assert float(effects[name]["estimate"]) == pytest.approx(expected, abs=0.26)
    assert "agrees with the paper" in finding.sentence
    assert "+4.0" in finding.sentence
    tested = [r for r in rows(finding, "components") if r["p_holm"]]
    assert len(tested) == 11
    for row in tested:
        assert float(row["p_holm"]) >= float(row["p_value"])
    notes = " ".join(table(finding, "components").notes)
    assert "11 comparisons" in notes
    assert len(table(finding, "components").rows) == 16


def test_the_sentence_on_components_follows_the_figures(tmp_path: Path) -> None:
    def harmful(job: ScoreJob, task: str) -> float:
        rate = usual(job, task)
        masked = job.method == "doge_ta" and float(dict(job.params)["keep_ratio"] or 0) < 1
        return rate - (0.2 if masked else 0.0)

    sentence = done(bench(tmp_path, harmful)[0], "components").sentence
    assert "mask costs some" in sentence
    assert "contradicts the paper" in sentence
    assert "the whole method has" in sentence


def test_an_effect_is_the_mean_over_pairs() -> None:
    rng = np.random.default_rng(0)
    runs = {on: [{"a": rng.random(30) < 0.5}] for on in components.COMBINATIONS}
    for pairs in components.effect_pairs().values():
        expected = np.mean([runs[a][0]["a"].mean() - runs[b][0]["a"].mean() for a, b in pairs])
        assert components.main_effect(runs, pairs).estimate == pytest.approx(expected)


def test_curves_read_no_test_data_and_say_where_the_best_is(tmp_path: Path) -> None:
    def peaked(job: ScoreJob, task: str) -> float:
        eta = float(dict(job.params).get("eta") or 0)
        return usual(job, task) + 0.1 * (eta == 0.15)

    at, scorer = bench(tmp_path, peaked)
    finding = done(at, "eta")
    assert {job.purpose for job in scorer.asked} == {Purpose.SEARCH}
    assert "The best of 7 values on validation data is 0.15" in finding.sentence
    assert "contradicts" in finding.sentence
    flat = done(bench(tmp_path / "flat")[0], "keep_ratio")
    assert "published 0.3 is the best" in flat.sentence or "not distinguishable" in flat.sentence
    per_task = [r for r in rows(finding, "eta") if r["task"] == "signs"]
    assert len(per_task) == 7


def test_eta_of_each_solver_is_chosen_on_validation_data(tmp_path: Path) -> None:
    def misleading(job: ScoreJob, task: str) -> float:
        params, on_test = dict(job.params), job.purpose is Purpose.FINAL
        best = {"adam": 0.1, "exact": 0.25}[str(params["solver"])]
        if on_test:  # where another one would be the best
            best = 0.4
        exact = 0.05 if params["solver"] == "exact" else 0.0
        return usual(job, task) + exact + 0.05 * (params["eta"] == best)

    at, scorer = bench(tmp_path, misleading)
    finding = done(at, "solver")
    tested = {
        (dict(job.params)["solver"], dict(job.params)["eta"])
        for job in scorer.scored
        if job.purpose is Purpose.FINAL
    }
    assert tested == {("adam", 0.07), ("exact", 0.07), ("adam", 0.1), ("exact", 0.25)}
    assert "better than Adam" in finding.sentence
    gaps = [r for r in rows(finding, "solver") if r["measure"] == "exact minus adam"]
    assert [float(r["estimate"]) for r in gaps] == pytest.approx([5.0, 5.0], abs=0.3)


def test_sizes_have_their_subsets_and_all_tasks_their_seeds(tmp_path: Path) -> None:
    def uneven(job: ScoreJob, task: str) -> float:
        better = 0.005 * (len(job.tasks[0]) % 4) if job.method == "doge_ta" else 0.0
        return usual(job, task) + better

    at, _ = bench(tmp_path, uneven, chains=5)
    finding = done(at, "tasks")
    found = {(r["point"], r["measure"]): r for r in rows(finding, "tasks")}
    pairs = task_counts.subsets(at)[4]
    own = [
        np.mean([values.mean() for values in at.answers(_merge(at, tasks), seed).values()])
        for tasks, seed in pairs
    ]
    row = found["method=doge_ta;tasks=4", "accuracy"]
    assert float(row["estimate"]) == pytest.approx(100 * np.mean(own), abs=1e-3)
    assert int(row["n"]) == len(pairs)
    ratio = found["method=doge_ta;tasks=4", "relative to experts"]
    assert float(ratio["estimate"]) == pytest.approx(100 * np.mean(own) / 0.9, abs=1e-2)
    assert found["method=doge_ta;tasks=8", "accuracy"]["interval"] == "t"
    tested = [r for r in rows(finding, "tasks") if r["p_holm"]]
    assert len(tested) == 3 * 7
    assert {r["measure"] for r in tested} == {"doge_ta minus this"}
    assert all(float(r["p_holm"]) >= float(r["p_value"]) for r in tested)
    assert {r["point"].partition("tasks=")[2] for r in tested if r["better"]} == {"8"}
    gaps = np.subtract(own, [_mean(at, tasks, seed, "ties") for tasks, seed in pairs])
    expected = stats.ttest_1samp(gaps, 0).pvalue
    ties = found["method=ties;tasks=4", "doge_ta minus this"]
    assert float(ties["p_value"]) == pytest.approx(expected, rel=1e-3)
    assert "2, 3, 4, 5, 6, 7 and 8 tasks" in finding.sentence
    assert "agrees with the paper, which" in finding.sentence
    assert "falls from" in finding.sentence


def _merge(at: Bench, tasks: tuple[str, ...], method: str = "doge_ta"):
    return at.merge(Purpose.FINAL, tasks=tasks, method=method)


def _mean(at: Bench, tasks: tuple[str, ...], seed: int, method: str) -> float:
    return float(np.mean([v.mean() for v in at.answers(_merge(at, tasks, method), seed).values()]))


def test_a_method_that_falls_behind_is_said_to(tmp_path: Path) -> None:
    def poor(job: ScoreJob, task: str) -> float:
        return 0.3 if job.method == "doge_ta" else usual(job, task)

    sentence = done(bench(tmp_path, poor)[0], "tasks").sentence
    assert "no number of tasks" in sentence
    assert "contradicts" in sentence


def test_student_over_subsets() -> None:
    interval = task_counts.over_subsets([0.5, 0.6, 0.7])
    assert interval.estimate == pytest.approx(0.6)
    assert interval.half_width == pytest.approx(4.302653 * 0.1 / 3**0.5)
    assert np.isnan(task_counts.over_subsets([0.5]).low)


def test_experts_that_are_never_right_cannot_be_divided_by(tmp_path: Path) -> None:
    def ignorant(job: ScoreJob, task: str) -> float:
        return 0.0 if job.method == EXPERTS else usual(job, task)

    finding = done(bench(tmp_path, ignorant)[0], "tasks")
    assert not [r for r in rows(finding, "tasks") if r["measure"] == "relative to experts"]
    assert "On average it falls" in finding.sentence


def test_orders_that_change_nothing_and_orders_that_do(tmp_path: Path) -> None:
    sentence = done(bench(tmp_path / "same")[0], "order").sentence
    assert "changes no answer of any method" in sentence

    def odd(job: ScoreJob, task: str) -> float:
        moved = job.method == "ties" and job.tasks[0] != "scenes"
        return usual(job, task) + 0.05 * moved

    sentence = done(bench(tmp_path / "odd", odd)[0], "order").sentence
    assert "at most 5.000 % of the answers (Ties-Merging)" in sentence
    assert "more than rounding" in sentence


def test_changed_answers_are_counted_by_task() -> None:
    first = {"a": np.array([1, 1, 0, 0], bool), "b": np.array([1, 0], bool)}
    second = {"a": np.array([1, 0, 1, 0], bool), "b": np.array([1, 0], bool)}
    assert order.changed_share(first, second) == 0.25


def test_noise_is_attributed_to_where_it_comes_from(tmp_path: Path) -> None:
    def by_experts(job: ScoreJob, task: str) -> float:
        return 0.4 + 0.1 * job.seed

    at, scorer = bench(tmp_path, by_experts, search_seeds=3)
    finding = done(at, "noise")
    sds = {r["point"]: r for r in rows(finding, "noise") if r["measure"] == "standard deviation"}
    assert float(sds["fine-tuning seeds"]["estimate"]) == pytest.approx(10, abs=0.1)
    assert float(sds["search seeds"]["estimate"]) == pytest.approx(0, abs=0.01)
    assert "more than the seed of the search" in finding.sentence
    assert {job.purpose for job in scorer.scored} == {Purpose.FINAL}
    assert len(scorer.scored) == 3 * (3 + 1)
    assert len(table(finding, "noise_winners").rows) == 3


def test_noise_of_the_search_is_told_apart_too(tmp_path: Path) -> None:
    def by_search(job: ScoreJob, task: str) -> float:
        return 0.3 + float(dict(job.params)["eta"] or 0)

    finding = done(bench(tmp_path, by_search, search_seeds=3)[0], "noise")
    sds = {r["point"]: r for r in rows(finding, "noise") if r["measure"] == "standard deviation"}
    assert float(sds["search seeds"]["estimate"]) == pytest.approx(10, abs=0.1)
    assert "less than the seed of the search" in finding.sentence


def test_noise_needs_two_seeds(tmp_path: Path) -> None:
    at, scorer = bench(tmp_path, **(SMALL | {"seeds": 1}))
    finding = done(at, "noise")
    assert "needs experts of at least two seeds" in finding.sentence
    assert scorer.asked == []
    assert finding.points == ()


def test_one_seed_is_enough_for_all_others(tmp_path: Path) -> None:
    at, _ = bench(tmp_path, **(SMALL | {"seeds": 1}))
    for name in ("components", "eta", "solver", "tasks", "order"):
        assert done(at, name).sentence


def test_the_scorer_is_asked_for_each_merge_once(tmp_path: Path) -> None:
    at, scorer = bench(tmp_path, **SMALL)
    at.score("twice", [(at.merge(Purpose.SEARCH), 0)] * 3)
    assert isinstance(scorer, Scorer)
    assert len(scorer.asked) == 1

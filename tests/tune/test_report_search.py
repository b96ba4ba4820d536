"""The section about the search: who won, who was stopped, what mattered, and what it read."""

import re
from dataclasses import replace

import numpy as np
import optuna
import pytest

from apgd.pareto import pareto_front
from tests.tune.search_run import (
    ITERATIONS,
    KEEP_RATIOS,
    SEARCH_AXES,
    SEARCH_TITLES,
    begin,
    failed,
    searched,
    trial,
)
from tests.tune.synthetic_run import add_row, add_trial
from tune.records import Kind, Record, RecordStore, Variant
from tune.report import Axis, Report, Table, build_report
from tune.report.convergence_figure import best_so_far
from tune.report.document import Details, Plot, Section, Text
from tune.report.importance import (
    FEWEST_TRIALS,
    LEFT_OUT,
    SUBSETS,
    Importance,
    Missing,
    importance,
)
from tune.report.trials import (
    Outcome,
    Place,
    best_trials,
    last_settings,
    objective,
    outcome,
    rungs,
    swept,
)

AXES = SEARCH_AXES["doge_ta"]


def report(run_dir, titles=SEARCH_TITLES, axes=SEARCH_AXES) -> Report:
    return build_report(run_dir, titles=titles, axes=axes, samples={})


def section(built: Report) -> Section:
    return next(part for part in built.document.sections if part.name == "search")


def one_rung(number: int, score: float, seed: int = 0, **params: float) -> Record:
    """A trial that judged one setting on all examples."""
    return trial(number, seed, params=params, rungs=[(1.0, [({}, {"accuracy": score})])])


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Report:
    run_dir = tmp_path_factory.mktemp("run")
    begin(run_dir, *searched(seeds=2, count=24), seeds=2)
    return report(run_dir)


# What a record says


def test_a_record_without_details_was_judged_in_full(tmp_path):
    begin(tmp_path)
    add_trial(tmp_path, "ties", 0, {"scaling": 0.3}, {"digits": 0.5, "signs": 0.7})
    (old,) = RecordStore(tmp_path).all(Kind.TRIAL)
    assert outcome(old) is Outcome.FULL
    assert objective(old) == pytest.approx(0.6)
    ((only,),) = (rung.settings for rung in rungs(old))
    assert only.params == {"scaling": 0.3}
    assert only.value == objective(old)
    assert swept([old]) == ()


def test_outcomes():
    settings = [({}, {"accuracy": 0.5})]
    assert outcome(trial(0, rungs=[(1.0, settings)])) is Outcome.FULL
    assert outcome(trial(0, rungs=[(1 / 3, settings)], stopped=True)) is Outcome.STOPPED
    # A search that was killed leaves trials that nothing stopped.
    assert outcome(trial(0, rungs=[(1 / 3, settings)])) is Outcome.STOPPED
    assert outcome(failed(0)) is Outcome.FAILED
    assert rungs(failed(0)) == ()
    assert objective(failed(0)) == float("-inf")


def test_unseen_cells_are_no_part_of_the_accuracy():
    settings = [({}, {"accuracy": 0.5, "unseen": 0.1})]
    found = trial(0, rungs=[(1.0, settings)])
    found = replace(found, scores={**found.scores, "validation/marks": 0.1})
    assert objective(found) == 0.5


def test_settings_have_the_parameters_of_their_trial():
    found = trial(
        0,
        params={"eta": 0.1},
        rungs=[
            (1 / 9, [({"keep_ratio": 0.1}, {"accuracy": 0.3})]),
            (
                1.0,
                [
                    ({"keep_ratio": 0.1}, {"accuracy": 0.4}),
                    ({"keep_ratio": 0.3}, {"accuracy": 0.5}),
                ],
            ),
        ],
    )
    assert [setting.params for setting in last_settings(found)] == [
        {"eta": 0.1, "keep_ratio": 0.1},
        {"eta": 0.1, "keep_ratio": 0.3},
    ]
    assert swept([found]) == ("keep_ratio",)
    assert rungs(found)[0].settings[0].params == {"eta": 0.1, "keep_ratio": 0.1}


def test_only_a_trial_judged_in_full_can_be_the_best():
    stopped = trial(0, rungs=[(1 / 9, [({}, {"accuracy": 0.9})])], stopped=True)
    full, equal = one_rung(1, 0.6), one_rung(2, 0.6)
    assert best_trials([stopped, failed(3), full, equal]) == {Place("doge_ta", 0): full}
    assert best_trials([stopped, failed(3)]) == {}


def test_the_tuned_row_is_that_of_the_best_full_trial(tmp_path):
    stopped = trial(0, params={"eta": 0.9}, rungs=[(1 / 9, [({}, {"accuracy": 0.9})])])
    begin(tmp_path, stopped, one_rung(1, 0.6, eta=0.1))
    for eta, right in ((0.9, 10), (0.1, 30)):
        correct = {f"test/{task}": np.arange(50) < right for task in ("digits", "signs")}
        add_row(tmp_path, "doge_ta", Variant.TUNED, 0, correct, {"eta": eta})
    built = report(tmp_path)
    assert "records exist" not in built.markdown
    (row,) = built.tables["main"].rows
    digits = built.tables["main"].header.index("House numbers")
    assert row.cells[digits].text.startswith("60.0")


# The winners, and those that did not get far


def test_winners_say_how_far_trials_got(built):
    table = built.tables["winners"]
    assert table.header[-4:] == ("Trials", "In full", "Stopped early", "Failed")
    for row in table.rows:
        total, *parts = (int(cell.text) for cell in row.cells[-4:])
        assert total == 24 == sum(parts)
        assert parts[1] > 0
        assert parts[2] == 1
        assert "iterations = 400" in row.cells[2].text


def test_a_search_without_a_full_trial_has_no_winner(tmp_path):
    begin(tmp_path, failed(0), trial(1, rungs=[(1 / 9, [({}, {"accuracy": 0.4})])], stopped=True))
    built = report(tmp_path)
    (row,) = built.tables["winners"].rows
    assert [cell.text for cell in row.cells[1:]] == [
        *("0", "none judged in full", "–", "2", "0", "1", "1"),
    ]
    assert "convergence" not in built.figures


def test_failed_trials_are_listed_with_their_errors(tmp_path):
    error = "the merge gave a <NaN> & nothing else"
    begin(tmp_path, one_rung(0, 0.5), failed(3, error=error), failed(1, 0, method="ties"))
    built = report(tmp_path)
    table = built.tables["failed_trials"]
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["DOGE TA", "0", "3", error],
        ["Ties-Merging", "0", "1", "the merge ran out of memory"],
    ]
    assert "2 trials failed" in table.caption
    assert "&lt;NaN&gt; &amp;" in built.html


def test_many_failures_are_folded(tmp_path):
    begin(tmp_path, one_rung(0, 0.5), *(failed(number) for number in range(1, 12)))
    folded = [block for block in section(report(tmp_path)).blocks if isinstance(block, Details)]
    assert [block.summary for block in folded] == [
        "11 trials failed; the search went on without them"
    ]


# Figures


def caption(built: Report, name: str) -> str:
    return next(
        block.caption
        for block in built.document.blocks()
        if isinstance(block, Plot) and block.name == name
    )


def test_slices_say_what_hollow_marks_are(built):
    text = caption(built, "search_doge_ta")
    stopped = sum(int(row.cells[-2].text) for row in built.tables["winners"].rows)
    assert f"Hollow and faint: {stopped} trials stopped early" in text
    assert "Along keep_ratio, which every trial varies inside itself" in text


def drawn(built: Report, name: str) -> list[str]:
    """The SVGs of a figure."""
    return [
        drawing.wide
        for block in built.document.blocks()
        if isinstance(block, Plot) and block.name == name
        for drawing in block.drawings
    ]


def test_slices_show_what_was_judged_inside_trials(built):
    panels = drawn(built, "search_doge_ta")
    # Iterations grow with the rungs alone, so a panel of them would show who was stopped.
    labels = [re.findall(r">([a-z_]+)</text>", svg)[-1] for svg in panels]
    assert labels == ["eta", "basis_size", "learning_rate", "keep_ratio"]
    trials = [found for found in searched(seeds=2, count=24) if found.scores]
    between, inside = (svg.count("<use ") for svg in (panels[0], panels[3]))
    few = 16  # ticks are such marks too, but not many
    assert len(trials) < between < len(trials) + few
    assert inside - between == pytest.approx((len(KEEP_RATIOS) - 1) * len(trials), abs=few)


def test_a_swept_parameter_that_no_axis_declares_has_a_panel(tmp_path):
    settings = [({"unheard_of": x}, {"accuracy": 0.5 + x / 10}) for x in (1.0, 2.0)]
    begin(tmp_path, trial(0, params={"eta": 0.1}, rungs=[(1.0, settings)]))
    svgs = drawn(report(tmp_path), "search_doge_ta")
    assert any("unheard_of" in svg for svg in svgs)


def test_a_swept_parameter_with_different_values_in_full_trials_has_a_panel(tmp_path):
    settings = [({"iterations": x}, {"accuracy": 0.5}) for x in ITERATIONS]
    begin(tmp_path, trial(0, params={"eta": 0.1}, rungs=[(1.0, settings)]))
    assert any("iterations" in svg for svg in drawn(report(tmp_path), "search_doge_ta"))


def test_best_so_far_counts_all_trials_and_believes_full_ones():
    stopped = trial(2, rungs=[(1 / 9, [({}, {"accuracy": 0.9})])], stopped=True)
    trials = [failed(0), one_rung(1, 0.5), stopped, one_rung(3, 0.4), one_rung(4, 0.7)]
    assert best_so_far(trials) == [float("-inf"), 0.5, 0.5, 0.5, 0.7]


def test_convergence_has_a_line_per_seed(built):
    (svg,) = drawn(built, "convergence")
    assert "var(--accent)" in svg
    assert "var(--second)" in svg
    assert "var(--third)" not in svg
    assert "solid: seed 0, dashed: seed 1" in caption(built, "convergence")


# Importance


def weights(trials, axes=AXES) -> dict[str, tuple[float, float, float, float]]:
    found = importance(trials, axes)
    assert isinstance(found, Importance)
    return {w.name: (w.ped_anova, w.low, w.high, w.fanova) for w in found.weights}


def test_importance_finds_the_parameter_that_the_score_depends_on():
    found = weights(searched(seeds=2, count=40))
    assert next(iter(found)) == "eta"
    assert found["eta"][0] > 0.7
    assert found["eta"][3] > 0.8
    assert sum(values[0] for values in found.values()) == pytest.approx(1)
    assert sum(values[3] for values in found.values()) < 1 + 1e-9
    for estimate, low, high, _ in found.values():
        assert 0 <= low <= estimate <= high <= 1


def test_importance_is_of_the_first_rung_which_stopping_does_not_touch():
    trials = searched(seeds=2, count=30)
    found = importance(trials, AXES)
    assert isinstance(found, Importance)
    judged = [one for one in trials if one.scores]
    assert found.share == pytest.approx(1 / 9)
    assert found.trials == len(judged)
    assert found.settings == len(judged) * len(KEEP_RATIOS)
    cut = []
    for one in judged:
        first = one.details["rungs"][:1]
        details = {**one.details, "rungs": first, "share": first[0]["share"], "stopped": True}
        cut.append(replace(one, details=details))
    assert importance(cut, AXES) == found


def test_importance_of_parameters_without_effect_is_no_ones():
    rng = np.random.default_rng(0)
    trials = [
        one_rung(n, float(rng.normal(0.5, 0.1)), eta=float(rng.random()), k=float(rng.random()))
        for n in range(80)
    ]
    axes = [Axis(name="eta", meaning=""), Axis(name="k", meaning="")]
    for estimate, low, high, alone in weights(trials, axes).values():
        assert low < 0.5 < high
        assert 0 < estimate < 1
        assert alone < 0.5


def test_the_level_of_a_seed_has_no_part_in_importance():
    trials = searched(seeds=2, count=20)
    shifted = []
    for one in trials:
        if one.seed and one.scores:
            details = dict(one.details)
            details["rungs"] = [
                {
                    **rung,
                    "settings": [
                        {**s, "objectives": {"accuracy": s["objectives"]["accuracy"] + 0.125}}
                        for s in rung["settings"]
                    ],
                }
                for rung in details["rungs"]
            ]
            one = replace(one, details=details)
        shifted.append(one)
    before, after = weights(trials), weights(shifted)
    for name, values in before.items():
        assert after[name] == pytest.approx(values, abs=1e-6)


def test_ped_anova_is_that_of_optunas_own_study():
    """On a float parameter of many values, and against a study that is made the usual way."""
    rng = np.random.default_rng(4)
    trials, study = [], optuna.create_study(direction="maximize")
    values = rng.random((40, 2))
    scores = 0.5 - (values[:, 0] - 0.4) ** 2 + rng.normal(0, 0.005, 40)
    lows, highs = values.min(axis=0), values.max(axis=0)
    space = {
        name: optuna.distributions.FloatDistribution(float(low), float(high))
        for name, low, high in zip("ab", lows, highs, strict=True)
    }
    for number, ((a, b), score) in enumerate(zip(values, scores, strict=True)):
        trials.append(one_rung(number, float(score), a=float(a), b=float(b)))
        study.add_trial(
            optuna.trial.create_trial(
                params={"a": float(a), "b": float(b)}, distributions=space, value=float(score)
            )
        )
    theirs = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
    )
    found = weights(trials, [Axis(name="a", meaning=""), Axis(name="b", meaning="")])
    for name in "ab":
        assert found[name][0] == pytest.approx(theirs[name])


def test_a_logarithmic_parameter_is_taken_by_its_logarithm():
    rng = np.random.default_rng(5)
    logs, others = rng.uniform(-8, 0, 60), rng.random(60)
    scores = (0.5 - (logs + 6) ** 2 / 100).tolist()
    plain = [one_rung(n, scores[n], a=float(logs[n]), b=float(others[n])) for n in range(len(logs))]
    powers = [
        one_rung(n, scores[n], a=float(np.exp(logs[n])), b=float(others[n]))
        for n in range(len(logs))
    ]
    expected = weights(plain, [Axis(name="a", meaning=""), Axis(name="b", meaning="")])
    found = weights(powers, [Axis(name="a", meaning="", log=True), Axis(name="b", meaning="")])
    for name in "ab":
        assert found[name] == pytest.approx(expected[name], abs=1e-6)


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        ([], Missing.TRIALS),
        ([failed(n) for n in range(20)], Missing.TRIALS),
        ([one_rung(n, n / 20, eta=n, k=n % 3) for n in range(FEWEST_TRIALS - 1)], Missing.TRIALS),
        ([one_rung(n, n / 20, eta=n + 1, k=1) for n in range(20)], Missing.PARAMETERS),
        ([one_rung(n, 0.5, eta=n + 1, k=n % 3) for n in range(20)], Missing.SCORES),
    ],
)
def test_reasons_for_no_importance(trials, reason):
    axes = [Axis(name="eta", meaning="", log=True), Axis(name="k", meaning="")]
    assert importance(trials, axes) is reason


def test_a_parameter_that_is_not_always_a_number_is_left_out():
    rng = np.random.default_rng(6)
    trials = []
    for n in range(20):
        values = {"a": float(rng.random()), "b": float(rng.random())}
        if n % 2:
            values["c"] = float(rng.random())
        trials.append(one_rung(n, float(rng.random()), **values))
    assert set(weights(trials, [Axis(name=name, meaning="") for name in "abc"])) == {"a", "b"}


def test_trials_that_began_on_another_share_are_left_out():
    trials = searched(seeds=1, count=30)
    strangers = [one_rung(n, 0.9, eta=0.5, basis_size=3, keep_ratio=0.3) for n in range(30, 35)]
    assert weights(trials + strangers) == weights(trials)


def test_the_section_says_what_importance_is_made_of(built):
    table = built.tables["importance"]
    assert table.rows[0].cells[1].text == "eta"
    assert table.rows[0].cells[4].text == "1/9"
    assert table.rows[0].cells[5].text == "184 settings of 46 trials"
    notes = " ".join(table.notes)
    assert "every trial reached it, so stopping trials early selects nothing" in notes
    assert f"{SUBSETS} subsets that each lack {100 * LEFT_OUT:g} % of them" in notes
    assert "importance" in built.figures


def test_too_few_trials_are_said(tmp_path):
    begin(tmp_path, *searched(seeds=1, count=8))
    built = report(tmp_path)
    assert "importance" not in built.tables
    said = [block.text for block in section(built).blocks if isinstance(block, Text)]
    assert "The importance of parameters is not shown for DOGE TA: fewer than 12 trials." in said


# Several objectives


def test_the_front_is_that_of_every_setting_judged_in_full(tmp_path):
    names = ("accuracy", "worst_task", "unseen")
    trials = searched(seeds=2, count=20, names=names)
    begin(tmp_path, *trials, seeds=2, objectives=names)
    built = report(tmp_path)
    table = built.tables["pareto_doge_ta"]
    shown: dict[str, list[list[str]]] = {}
    for row in table.rows:
        shown.setdefault(row.cells[0].text, []).append([cell.text for cell in row.cells[2:]])
    for seed in (0, 1):
        points = np.array(
            [
                [100 * setting.objectives[name] for name in names]
                for one in trials
                if one.seed == seed and outcome(one) is Outcome.FULL
                for setting in last_settings(one)
            ]
        )
        best = sorted(points[pareto_front(points)].tolist(), reverse=True)
        assert shown[str(seed)] == [[f"{value:.1f}" for value in point] for point in best]
    assert len(drawn(built, "pareto_doge_ta")) == 3
    assert table.header[2] == "Mean over tasks (%)"


def test_a_line_joins_a_front_of_two_objectives(tmp_path):
    names = ("accuracy", "worst_task")
    begin(tmp_path, *searched(seeds=1, count=20, names=names), objectives=names)
    built = report(tmp_path)
    assert len(drawn(built, "pareto_doge_ta")) == 1
    assert "Line:" in caption(built, "pareto_doge_ta")


def test_the_first_objective_chooses(tmp_path):
    """Files keep names in the order of the alphabet, so the order is that of the manifest."""
    fair = {"accuracy": 0.5, "unseen": 0.2, "worst_task": 0.9}
    good = {"accuracy": 0.7, "unseen": 0.3, "worst_task": 0.4}
    trials = [
        trial(number, params={"eta": eta}, rungs=[(1.0, [({}, found)])])
        for number, (eta, found) in enumerate([(0.1, fair), (0.2, good)])
    ]
    for first, second, winner in (
        ("worst_task", "accuracy", "eta = 0.1"),
        ("accuracy", "worst_task", "eta = 0.2"),
    ):
        run_dir = tmp_path / first
        begin(run_dir, *trials, objectives=(first, second, "unseen"))
        built = report(run_dir)
        assert built.tables["winners"].rows[0].cells[2].text == winner
        header = built.tables["pareto_doge_ta"].header[2]
        assert header.startswith("Worst task" if first == "worst_task" else "Mean over tasks")
    assert "by worst task against its expert" in report(tmp_path / "worst_task").markdown


def test_one_objective_has_no_front(built):
    assert not [name for name in (*built.tables, *built.figures) if name.startswith("pareto")]


# Reads


def test_the_page_says_that_the_search_read_validation_data_only(built):
    trials = searched(seeds=2, count=24)
    reads = sum(one.details.get("reads", {}).get("validation", 0) for one in trials)
    assert f"The search read validation data only: {reads} times" in built.markdown
    assert f"The search read validation data only: {reads} times" in built.html


def test_inputs_of_the_validation_split_are_validation_data(tmp_path):
    settings = [({}, {"accuracy": 0.5})]
    reads = {"validation": 4, "validation, unlabelled": 8}
    begin(tmp_path, trial(0, rungs=[(1.0, settings)], reads=reads))
    assert "The search read validation data only: 12 times" in report(tmp_path).markdown


def test_a_search_that_read_test_data_is_accused(tmp_path):
    settings = [({}, {"accuracy": 0.5})]
    begin(tmp_path, trial(0, rungs=[(1.0, settings)], reads={"validation": 4, "test": 2}))
    built = report(tmp_path)
    assert "The search read data that it must not read: test (2 times)." in built.markdown
    assert "validation data only" not in built.markdown


def test_records_that_do_not_say_what_they_read_claim_nothing(tmp_path):
    begin(tmp_path)
    add_trial(tmp_path, "ties", 0, {"scaling": 0.3}, {"digits": 0.5})
    assert "The search read" not in report(tmp_path).markdown


# Many methods


def test_many_methods_fold_their_figures(tmp_path):
    names = [f"method_{place}" for place in range(9)]
    trials = [
        replace(one_rung(number, number / 10, scaling=number), method=name)
        for name in names
        for number in range(3)
    ]
    begin(tmp_path, *trials)
    built = report(tmp_path, {}, {name: [Axis(name="scaling", meaning="")] for name in names})
    blocks = section(built).blocks
    assert not [block for block in blocks if isinstance(block, Plot)]
    (folded,) = (block for block in blocks if isinstance(block, Details))
    assert len(folded.blocks) == 1 + len(names)
    assert isinstance(blocks[0], Table)


def test_no_figure_without_parameters(tmp_path):
    begin(tmp_path, one_rung(0, 0.5))
    built = report(tmp_path, axes={})
    assert not [name for name in built.figures if name.startswith("search_")]

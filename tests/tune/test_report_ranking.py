"""The sections that rank methods, and look for why, on runs with made-up results."""

import json
from pathlib import Path

import numpy as np
import pytest

from apgd import InputError
from apgd.published import Family
from tests.tune.synthetic_run import add_row, manifest, write_manifest
from tests.tune.wide_run import AXES, NEEDS, TITLES, add_geometry, write_wide_run
from tune.geometry import geometry_path, is_measured
from tune.records import Kind, RecordStore, Variant
from tune.report import Report, build_report
from tune.report.canvas import fit_labels
from tune.report.contradictions import compare_orders
from tune.report.geometry import association, gather_geometry, reading_order, short_names
from tune.report.ranking import letter, rank_methods
from tune.report.run import RowKey, Run, read_run

EXAMPLES = 200


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    run_dir = tmp_path_factory.mktemp("wide")
    write_wide_run(run_dir, examples=60, trials=2)
    add_geometry(run_dir, matrices=3)
    axes = dict(list(AXES.items())[:9])
    return run_dir, build_report(run_dir, titles=TITLES, axes=axes, samples={}, needs=NEEDS)


def answers(percent: float) -> np.ndarray:
    right = np.zeros(EXAMPLES, dtype=bool)
    right[: round(percent / 100 * EXAMPLES)] = True
    return right


def run_of(run_dir: Path, scores: dict[str, list[float]], seeds: int = 1, **suite: object) -> Run:
    """Methods with these percentages of right answers on tasks t0, t1, ..."""
    tasks = [
        {"name": f"t{i}", "title": f"T{i}", "stands_for": None, "classes": 2}
        for i in range(len(next(iter(scores.values()))))
    ]
    content = manifest(
        seeds, suite={"name": "s", "title": "S", "tasks": tasks, "published_suite": None, **suite}
    )
    experiment = {**content["experiment"], "methods": list(scores)}  # type: ignore[dict-item]
    write_manifest(run_dir, {**content, "experiment": experiment})
    for method, percents in scores.items():
        for seed in range(seeds):
            cells = {f"test/t{i}": answers(p + seed) for i, p in enumerate(percents)}
            add_row(run_dir, method, Variant.PUBLISHED, seed, cells)
    return read_run(run_dir, titles={}, axes={}, needs=NEEDS)


def published(method: str) -> RowKey:
    return RowKey(method, Variant.PUBLISHED)


def test_methods_are_ranked_by_average_rank_and_not_by_mean(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"a": [60, 60, 60], "b": [50, 50, 99], "c": [40, 40, 50]})
    ranking = rank_methods(run)
    assert ranking is not None
    assert [row.method for row in ranking.rows] == ["a", "b", "c"]
    assert ranking.average_ranks == pytest.approx((4 / 3, 5 / 3, 3))
    assert ranking.best_free == published("b")  # by its mean
    assert ranking.gaps[published("a")].estimate == pytest.approx(0.6 - 199 / 300, abs=0.004)


def test_tied_methods_share_ranks_and_a_group(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"a": [60, 60], "b": [60, 60], "c": [40, 40]}, seeds=2)
    ranking = rank_methods(run)
    assert ranking is not None
    assert ranking.average_ranks == (1.5, 1.5, 3.0)
    assert len(ranking.cells) == 4
    assert ranking.letters(published("a")) == ranking.letters(published("b")) == "a"
    assert ranking.p_values[frozenset((published("a"), published("b")))] == 1.0


def test_the_best_data_free_method_needs_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path, {"fisher": [90, 90], "ties": [60, 60], "pcb": [50, 50]})
    ranking = rank_methods(run)
    assert ranking is not None
    assert ranking.rows[0] == published("fisher")
    assert ranking.best_free == published("ties")


def test_a_row_without_all_seeds_is_left_out_and_named(tmp_path: Path) -> None:
    run_of(tmp_path, {"a": [60, 60], "b": [50, 50], "c": [40, 40]}, seeds=2)
    add_row(tmp_path, "late", Variant.PUBLISHED, 0, {f"test/t{i}": answers(70) for i in range(2)})
    report = build_report(tmp_path, titles={}, axes={}, samples={})
    assert "Not ranked, because seeds or tasks of theirs are missing: late." in report.markdown
    assert len(report.tables["ranking"].rows) == 3


def test_two_methods_are_not_worth_a_section(tmp_path: Path) -> None:
    run_of(tmp_path, {"a": [60, 60], "b": [50, 50]})
    report = build_report(tmp_path, titles={}, axes={}, samples={})
    assert "ranking" not in [section.name for section in report.document.sections]


def test_contradictions_of_the_published_order(tmp_path: Path) -> None:
    # Published (FusionBench's experts): Fisher 70.6 > task arithmetic 68.0 > averaging 66.5.
    suite = {"published_suite": "clip_vit_b32_8"}
    scores = {
        "fisher": [50.0, 52.0],
        "task_arithmetic": [80.0, 80.0],
        "weight_averaging": [51.0, 51.0],
    }
    run = run_of(tmp_path, scores, **suite)
    ranking = rank_methods(run)
    assert ranking is not None
    (orders,) = [o for o in compare_orders(run, ranking) if o.family is Family.TRANSFORMERS]
    assert (orders.agree, orders.unclear) == (1, 1)
    (pair,) = orders.contradictions
    assert (pair.better.method, pair.worse.method) == ("task_arithmetic", "fisher")
    assert pair.gap.low > 0
    assert pair.published_gap == pytest.approx(68.0 - 70.6)


def test_the_section_says_what_was_done_and_how_far_it_goes(wide: tuple[Path, Report]) -> None:
    _, report = wide
    names = [section.name for section in report.document.sections]
    assert names[:4] == ["accuracy", "differences", "ranking", "geometry"]
    for text in (
        "8 tasks and 3 seeds",
        "Friedman's test",
        "not independent samples",
        "Nemenyi",
        "signed-rank test, corrected for all pairs (Holm)",
        "Two ideas of a difference",
    ):
        assert text in report.markdown
    assert "no corrected p can be below" not in report.markdown  # 24 cells are enough
    table = report.tables["ranking"]
    assert len(table.rows) == len(TITLES)
    assert table.header[:2] == ("Method", "Rank")
    averages = [float(row.cells[1].text) for row in table.rows]
    assert averages == sorted(averages)
    assert np.mean(averages) == pytest.approx((len(TITLES) + 1) / 2, abs=0.05)
    needs = {row.cells[0].text: row.cells[6].text for row in table.rows}
    assert needs["Fisher merging"] == "training data"
    assert needs["DOGE AM"] == "test inputs, unlabelled"
    assert needs["Iso-C"] == "nothing"


def test_rows_that_have_seen_more_are_named(wide: tuple[Path, Report], tmp_path: Path) -> None:
    trained, adapted = wide[1].tables["main"].notes[-2:]
    assert trained == "With statistics of training examples: Fisher merging and RegMean."
    assert "the very test inputs of these tasks on which they are scored" in adapted
    assert "AdaMerging++ (layer-wise) and DOGE AM. No other row" in adapted
    run_of(tmp_path, {"a": [60, 60], "b": [50, 50], "c": [40, 40]})
    plain = build_report(tmp_path, titles={}, axes={}, samples={})
    assert not any("test inputs" in note for note in plain.tables["main"].notes)


def test_many_methods_fold(wide: tuple[Path, Report]) -> None:
    _, report = wide
    assert report.html.count("<details>") >= 3
    for name in ("ranking", "geometry", "accuracy", "differences_tuned"):
        assert report.figures[name].startswith(b"\x89PNG")


def test_geometry_is_shown_from_its_files(wide: tuple[Path, Report]) -> None:
    _, report = wide
    merges = report.tables["geometry_merges"]
    assert len(merges.rows) == len(TITLES)
    scores = [float(row.cells[1].text) for row in merges.rows]
    assert scores == sorted(scores, reverse=True)
    assert "rank correlation (Spearman)" in report.markdown
    assert "over 3 matrices." in report.markdown


def test_figures_of_another_version_are_refused(wide: tuple[Path, Report]) -> None:
    records = RecordStore(wide[0]).all(Kind.EVALUATION)
    (key,) = [r.key for r in records if (r.method, r.seed) == ("experts", 0)]
    assert is_measured(wide[0], key)
    path = geometry_path(wide[0], key)
    kept = path.read_text(encoding="utf-8")
    path.write_text(json.dumps({"experts": []}), encoding="utf-8")
    with pytest.raises(InputError, match="must hold figures of this version"):
        gather_geometry(read_run(wide[0], titles={}, axes={}), wide[0])
    assert not is_measured(wide[0], key)
    path.write_text(kept, encoding="utf-8")


def test_association_needs_something_to_associate() -> None:
    found = association([1, 2, 3, 4], [10, 20, 30, 40])
    assert found is not None
    assert found.coefficient == pytest.approx(1)
    assert association([1, 2, 3], [1, 2, 3]) is None
    assert association([1, 1, 1, 1], [1, 2, 3, 4]) is None


def test_names_of_matrices_are_short_and_in_a_readers_order() -> None:
    names = ["visual.blocks.10.mlp.weight", "visual.blocks.2.attn.weight"]
    assert sorted(names, key=reading_order) == names[::-1]
    assert short_names(names) == ["10.mlp", "2.attn"]
    assert short_names(["a.b"]) == ["b"]


def test_few_cells_cannot_tell_many_pairs_apart(tmp_path: Path) -> None:
    scores = {name: [60.0 - 10 * k] * 5 for k, name in enumerate("abc")}
    ranking = rank_methods(run_of(tmp_path, scores))
    assert ranking is not None
    assert ranking.least_p == pytest.approx(3 * 2 / 2**5)
    assert min(ranking.p_values.values()) == pytest.approx(ranking.least_p)
    report = build_report(tmp_path, titles={}, axes={}, samples={})
    assert "With 5 cells and so many pairs no corrected p can be below 0.19" in report.markdown
    more = rank_methods(run_of(tmp_path / "more", {n: [*s, *s] for n, s in scores.items()}))
    assert more is not None
    assert more.least_p < 0.05


def test_letters_go_on_after_z() -> None:
    assert [letter(n) for n in (0, 25, 26, 53)] == ["a", "z", "a2", "b3"]


def test_labels_keep_what_stands_last_in_brackets() -> None:
    titles = ["Consensus task arithmetic (tuned)", "Consensus task arithmetic (published)", "Ties"]
    shown, width = fit_labels(titles, 200)
    assert shown[0].endswith("… (tuned)")
    assert shown[1].endswith("… (published)")
    assert shown[2] == "Ties"
    assert width <= 200

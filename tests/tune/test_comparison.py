"""Ours beside the published, on a run with made-up results at chosen accuracies."""

from pathlib import Path

import numpy as np
import pytest

from apgd.published import IN_DOMAIN, Family, published_rows
from tests.tune.synthetic_run import AXES, TITLES, add_row, manifest, write_manifest
from tune.records import Variant
from tune.report import build_report
from tune.report.comparison import Verdict, compare
from tune.report.run import read_run

SUITE = "clip_vit_b32_8"
EXAMPLES = 1000


def published(method: str) -> dict[str, float]:
    rows = published_rows(SUITE, family=Family.TRANSFORMERS)
    per_task = next(row.per_task for row in rows if row.method == method)
    assert per_task is not None
    return dict(per_task)


def answers(percent: float) -> np.ndarray:
    right = np.zeros(EXAMPLES, dtype=bool)
    right[: round(percent / 100 * EXAMPLES)] = True
    return right


def write(run_dir: Path, shift: dict[tuple[str, str], float], **changes: object) -> None:
    """A run that reproduces FusionBench's rows, but for shifts by method and task."""
    tasks = published("pretrained")
    described = [{"name": t, "title": t.upper(), "stands_for": None, "classes": 10} for t in tasks]
    content = manifest(
        suite={"name": SUITE, "title": "CLIP", "tasks": described, "published_suite": SUITE},
        experts_family="transformers",
    )
    write_manifest(run_dir, {**content, **changes})
    for ours, theirs, variant in (
        ("pretrained", "pretrained", Variant.REFERENCE),
        ("experts", "individual", Variant.REFERENCE),
        ("task_arithmetic", "task_arithmetic", Variant.PUBLISHED),
        ("task_arithmetic", "task_arithmetic", Variant.TUNED),
        ("unheard_of", "ties", Variant.PUBLISHED),
    ):
        cells = {
            f"test/{task}": answers(value + shift.get((ours, task), 0.0))
            for task, value in published(theirs).items()
        }
        add_row(run_dir, ours, variant, 0, cells)


def verdicts(run_dir: Path, tolerance: float = 1.0) -> dict[tuple[str, str], Verdict]:
    run = read_run(run_dir, titles=TITLES, axes=AXES)
    return {(c.row.split(" (")[0], c.column): c.verdict for c in compare(run, tolerance).cells}


def test_a_reproduction_passes_everywhere(tmp_path: Path) -> None:
    write(tmp_path, {})
    found = verdicts(tmp_path)
    assert {v for (row, _), v in found.items() if row != "unheard_of"} == {Verdict.PASS}
    assert {v for (row, _), v in found.items() if row == "unheard_of"} == {Verdict.NOT_COMPARABLE}
    assert sum(row == "Task Arithmetic" for row, _ in found) == 9  # tuned rows are no reproduction


def test_a_merge_is_not_judged_where_its_starting_points_differ(tmp_path: Path) -> None:
    write(tmp_path, {("experts", "svhn"): -5.0, ("task_arithmetic", "svhn"): -9.0})
    found = verdicts(tmp_path)
    assert found["Single experts", "SVHN"] is Verdict.FAIL
    assert found["Task Arithmetic", "SVHN"] is Verdict.NOT_JUDGED
    assert found["Task Arithmetic", "DTD"] is Verdict.PASS


def test_a_merge_that_differs_fails_and_a_wider_tolerance_passes_it(tmp_path: Path) -> None:
    write(tmp_path, {("task_arithmetic", "dtd"): 3.0})
    assert verdicts(tmp_path)["Task Arithmetic", "DTD"] is Verdict.FAIL
    assert verdicts(tmp_path, 3.5)["Task Arithmetic", "DTD"] is Verdict.PASS


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"experts_family": None}, "no published family"),
        ({"experts_family": "not stated"}, "no published family"),
        ({"experiment": {**manifest()["experiment"], "smoke": True}}, "smoke"),  # type: ignore[dict-item]
    ],
)
def test_what_cannot_be_compared_is_not(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    write(tmp_path, {}, **changes)
    report = build_report(tmp_path, titles=TITLES, axes=AXES, samples={})
    assert said in report.compared
    assert "comparison" not in report.tables


def test_another_suites_figures_are_never_subtracted(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest(experts_family="openclip"))
    report = build_report(tmp_path, titles=TITLES, axes=AXES, samples={})
    assert report.compared == "no document speaks of the suite small"


def test_the_table_shows_every_cell_with_its_difference(tmp_path: Path) -> None:
    write(tmp_path, {("task_arithmetic", "dtd"): 3.0})
    table = build_report(tmp_path, titles=TITLES, axes=AXES, samples={}).tables["comparison"]
    theirs = published("task_arithmetic")["dtd"]
    rows = [[cell.text for cell in row.cells] for row in table.rows]
    (row,) = [row for row in rows if row[1] == "DTD" and row[3] == f"{theirs}" and "+3" in row[4]]
    assert row[5] == "fail"
    assert "fusion_bench" in table.notes[-1]


def test_corrupted_cells_are_judged_by_the_uncorrupted_starting_points(tmp_path: Path) -> None:
    suite, kind = "clip_vit_b32_8_robustness", "pixelate"

    def rows(protocol: str) -> dict[str, dict[str, float]]:
        found = published_rows(suite, protocol, Family.TRANSFORMERS)
        return {row.method: dict(row.per_task or {}) for row in found}

    clean, spoiled = rows(IN_DOMAIN), rows(kind)
    tasks = list(clean["pretrained"])
    described = [{"name": t, "title": t.upper(), "stands_for": None, "classes": 10} for t in tasks]
    about = {
        "name": suite, "title": "CLIP", "tasks": described, "published_suite": suite,
        "corrupted": tasks, "corruptions": [kind],
    }  # fmt: skip
    write_manifest(tmp_path, manifest(suite=about, experts_family="transformers"))
    shifted = tasks[0]  # whose expert came out otherwise
    for ours, theirs, variant in (
        ("pretrained", "pretrained", Variant.REFERENCE),
        ("experts", "individual", Variant.REFERENCE),
        ("ties", "ties", Variant.PUBLISHED),
    ):
        cells = {f"test/{t}": answers(value) for t, value in clean[theirs].items()}
        if ours == "experts":
            cells[f"test/{shifted}"] = answers(clean[theirs][shifted] - 4)
        under = spoiled.get(theirs, dict.fromkeys(tasks, 50.0))
        cells |= {f"{kind}/{t}": answers(value) for t, value in under.items()}
        add_row(tmp_path, ours, variant, 0, cells)
    found = verdicts(tmp_path)
    assert found["Single experts", shifted.upper()] is Verdict.FAIL
    assert found["Ties-Merging", f"Pixelate: {shifted.upper()}"] is Verdict.NOT_JUDGED
    assert found["Ties-Merging", f"Pixelate: {tasks[1].upper()}"] is Verdict.PASS
    # No document has the single experts under corruptions.
    assert found["Single experts", f"Pixelate: {tasks[1].upper()}"] is Verdict.NOT_COMPARABLE

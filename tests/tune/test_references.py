"""Reference rows beyond the usual two, in tables, texts and the comparison."""

from pathlib import Path

import pytest

from tests.tune.synthetic_run import (
    AXES,
    RATES,
    TITLES,
    add_row,
    manifest,
    samples,
    write_manifest,
    write_run,
)
from tests.tune.test_comparison import answers, published, verdicts, write
from tune.records import Variant
from tune.references import REFERENCES
from tune.report import Report, build_report
from tune.report.comparison import Verdict

ALL = tuple(REFERENCES)
TITLE = ("Multi-task training", "Ensemble of experts")


def whole(run_dir: Path, rates: dict[str, float], seeds: int = 1) -> Report:
    write_run(run_dir, seeds=seeds, rates=RATES | rates)
    content = manifest(seeds)
    experiment = content["experiment"]
    assert isinstance(experiment, dict)
    experiment["references"] = list(ALL)
    write_manifest(run_dir, content)
    return build_report(run_dir, titles=TITLES, axes=AXES, samples=samples())


@pytest.mark.parametrize("seeds", [1, 3])
def test_they_stand_beside_the_other_references_everywhere(tmp_path: Path, seeds: int) -> None:
    report = whole(tmp_path, {"multi_task": 0.9, "ensemble": 0.7}, seeds)
    for name in ("main", "unseen", "corruptions"):
        first = [row.cells[0].text for row in report.tables[name].rows]
        shown = [title for title in first if title in REFERENCES.values()]
        expected = [t for t in REFERENCES.values() if name == "main" or t in first]
        assert shown == expected == first[: len(shown)]
        assert set(TITLE) <= set(shown)
    compared = [row.cells[0].text for row in report.tables["differences_tuned"].rows]
    assert set(TITLE) <= set(compared)
    for text in (report.html, report.markdown):
        assert all(title in text for title in TITLE)
        assert "dashed: multi-task training; dashed and dotted: ensemble of experts" in text
    # References are no merges: none is the best of a column, or the headline's rival.
    table = report.tables["main"]
    assert not any(c.strong for row in table.rows if row.cells[0].text in TITLE for c in row.cells)
    assert not any(title in report.document.headline for title in TITLE)
    assert "multi_task,reference,Multi-task training" in report.csv


def test_what_was_asked_for_and_is_missing_is_said(tmp_path: Path) -> None:
    report = whole(tmp_path, {"multi_task": 0.9})
    assert "Ensemble of experts: not evaluated yet." in report.markdown
    assert "Multi-task training: not evaluated yet." not in report.markdown


def test_multi_task_training_is_compared_and_another_ensemble_is_not(tmp_path: Path) -> None:
    write(tmp_path, {("experts", "svhn"): -5.0})
    for ours, theirs in (("multi_task", "traditional_mtl"), ("ensemble", "simple_ensemble")):
        cells = {f"test/{task}": answers(value) for task, value in published(theirs).items()}
        add_row(tmp_path, ours, Variant.REFERENCE, 0, cells)
    found = verdicts(tmp_path)
    assert found["Multi-task training", "DTD"] is Verdict.PASS
    assert found["Multi-task training", "SVHN"] is Verdict.NOT_JUDGED
    assert {v for (row, _), v in found.items() if row == TITLE[1]} == {Verdict.NOT_COMPARABLE}


@pytest.mark.parametrize("asked", [False, True])
def test_published_rows_are_shown_where_ours_are_asked_for(tmp_path: Path, asked: bool) -> None:
    write(tmp_path, {})
    content = manifest(experts_family="transformers")
    experiment, suite = content["experiment"], content["suite"]
    assert isinstance(experiment, dict)
    assert isinstance(suite, dict)
    if asked:
        experiment |= {"references": list(ALL), "methods": ["consensus_ties"]}
    write_manifest(tmp_path, content)
    report = build_report(tmp_path, titles=TITLES, axes=AXES, samples={})
    shown = [
        row.cells[0].text
        for name, table in report.tables.items()
        if name.startswith("published")
        for row in table.rows
    ]
    for title in ("Joint training", "Ensemble of experts", "Consensus merging"):
        assert (title in shown) == asked

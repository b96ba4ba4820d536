"""The tables hold the numbers that follow from the records by hand."""

import csv
import io
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from apgd.errors import InputError
from tests.tune.synthetic_run import AXES, TITLES, add_row, add_trial, manifest, write_manifest
from tune.records import Variant
from tune.report import Report, build_report

TWO_TASKS = {
    "tasks": [
        {"name": "a", "title": "Task A", "stands_for": "SVHN", "classes": 10},
        {"name": "b", "title": "Task B", "stands_for": None, "classes": 4},
    ],
    "unseen": [{"name": "u", "title": "Task U", "stands_for": "MNIST", "classes": 10}],
    "corrupted": ["a"],
    "corruptions": ["gaussian_noise", "contrast"],
    "name": "two",
    "title": "Two tasks",
}


def bits(right: int, total: int) -> np.ndarray:
    return np.arange(total) < right


def report(run_dir: Path) -> Report:
    return build_report(run_dir, titles=TITLES, axes=AXES, samples={})


def begin(run_dir: Path, seeds: int = 1) -> None:
    write_manifest(run_dir, manifest(seeds, suite=TWO_TASKS))


def table(built: Report, name: str) -> dict[str, dict[str, str]]:
    """Texts by row and column."""
    shown = built.tables[name]
    return {
        row.cells[0].text: dict(
            zip(shown.header[1:], (cell.text for cell in row.cells[1:]), strict=True)
        )
        for row in shown.rows
    }


def half_width(rates_and_sizes, df):
    variance = sum(p * (1 - p) / (n - 1) for p, n in rates_and_sizes) / len(rates_and_sizes) ** 2
    return stats.t.ppf(0.975, df) * math.sqrt(variance)


def test_one_seed_by_hand(tmp_path):
    begin(tmp_path)
    add_row(
        tmp_path,
        "pretrained",
        Variant.REFERENCE,
        0,
        {"test/a": bits(20, 50), "test/b": bits(10, 40)},
    )
    add_row(
        tmp_path, "experts", Variant.REFERENCE, 0, {"test/a": bits(40, 50), "test/b": bits(40, 40)}
    )
    add_row(
        tmp_path, "doge_ta", Variant.PUBLISHED, 0, {"test/a": bits(30, 50), "test/b": bits(20, 40)}
    )
    rows = table(report(tmp_path), "main")
    assert list(rows) == ["Zero-shot (pretrained)", "Single experts", "DOGE TA (published)"]
    doge = rows["DOGE TA (published)"]
    # 30 of 50 and 20 of 40: means 60 and 50, together 55; 0.75 and 0.5 of the experts.
    alone = 100 * half_width([(0.6, 50)], 49)
    both = 100 * half_width([(0.6, 50), (0.5, 40)], 88)
    assert doge["Task A"] == f"60.0 ± {alone:.1f}"
    assert doge["Mean"] == f"55.0 ± {both:.1f}"
    assert doge["Of experts"].startswith("62.5 ± ")
    assert rows["Single experts"]["Of experts"] == "100.0 ± 0.0"
    assert rows["Single experts"]["Task B"] == "100.0 ± 0.0"


def test_differences_by_hand(tmp_path):
    begin(tmp_path)
    add_row(tmp_path, "ties", Variant.TUNED, 0, {"test/a": bits(20, 50), "test/b": bits(20, 40)})
    add_row(tmp_path, "doge_ta", Variant.TUNED, 0, {"test/a": bits(30, 50), "test/b": bits(20, 40)})
    rows = table(report(tmp_path), "differences_tuned")
    # Ten more of 50 are right on A and none on B: +20 and 0, together +10.
    reach = 100 * stats.t.ppf(0.975, 88) * math.sqrt(0.2 * 0.8 / 49 / 4)
    low, high = f"{10 - reach:.1f}", f"{10 + reach:.1f}"
    assert rows["Ties-Merging (tuned)"]["Mean"] == f"+10.0 [{low}, {high}]"
    assert rows["Ties-Merging (tuned)"]["Task B"] == "0.0 [0.0, 0.0]"


def test_three_seeds_average_and_widen(tmp_path):
    begin(tmp_path, seeds=3)
    for seed, right in enumerate((20, 25, 30)):
        add_row(
            tmp_path,
            "ties",
            Variant.PUBLISHED,
            seed,
            {"test/a": bits(right, 50), "test/b": bits(20, 40)},
        )
    add_row(
        tmp_path,
        "pretrained",
        Variant.REFERENCE,
        0,
        {"test/a": bits(10, 50), "test/b": bits(4, 40)},
    )
    rows = table(report(tmp_path), "main")
    averaged = np.mean([bits(right, 50) for right in (20, 25, 30)], axis=0)
    parts = averaged.var(ddof=1) / 50, np.var([0.4, 0.5, 0.6], ddof=1) / 3
    df = sum(parts) ** 2 / (parts[0] ** 2 / 49 + parts[1] ** 2 / 2)
    reach = 100 * stats.t.ppf(0.975, df) * math.sqrt(sum(parts))
    assert rows["Ties-Merging (published)"]["Task A"] == f"50.0 ± {reach:.1f}"
    # The pretrained model has no seed: its one result is every seed's, and adds no spread.
    alone = 100 * half_width([(0.2, 50)], 49)
    assert rows["Zero-shot (pretrained)"]["Task A"] == f"20.0 ± {alone:.1f}"


def test_corruptions_of_one_image_are_one_example(tmp_path):
    begin(tmp_path)
    correct = {
        "test/a": bits(30, 50),
        "test/b": bits(20, 40),
        "gaussian_noise/a": bits(20, 50),
        "contrast/a": bits(10, 50),
    }
    add_row(tmp_path, "ties", Variant.PUBLISHED, 0, correct)
    row = table(report(tmp_path), "corruptions")["Ties-Merging (published)"]
    averaged = (bits(20, 50).astype(float) + bits(10, 50)) / 2
    reach = 100 * stats.t.ppf(0.975, 49) * math.sqrt(averaged.var(ddof=1) / 50)
    assert row["Mean"] == f"30.0 ± {reach:.1f}"
    assert row["Clean"].startswith("60.0 ± ")
    assert row["Gaussian noise"].startswith("40.0 ± ")


def test_unseen_tasks_have_their_own_mean(tmp_path):
    begin(tmp_path)
    correct = {"test/a": bits(30, 50), "test/b": bits(20, 40), "test/u": bits(9, 90)}
    add_row(tmp_path, "ties", Variant.PUBLISHED, 0, correct)
    built = report(tmp_path)
    assert table(built, "unseen")["Ties-Merging (published)"]["Mean"].startswith("10.0 ± ")
    assert table(built, "main")["Ties-Merging (published)"]["Mean"].startswith("55.0 ± ")


def test_no_mean_over_fewer_tasks(tmp_path):
    begin(tmp_path)
    add_row(tmp_path, "ties", Variant.PUBLISHED, 0, {"test/a": bits(30, 50)})
    row = table(report(tmp_path), "main")["Ties-Merging (published)"]
    assert row["Task A"].startswith("60.0")
    assert (row["Task B"], row["Mean"], row["Of experts"]) == ("–", "–", "–")


def test_differences_use_the_seeds_that_both_rows_have(tmp_path):
    begin(tmp_path, seeds=2)
    for seed in (0, 1):
        add_row(
            tmp_path,
            "doge_ta",
            Variant.TUNED,
            seed,
            {"test/a": bits(30 + 10 * seed, 50), "test/b": bits(20, 40)},
        )
    add_row(tmp_path, "ties", Variant.TUNED, 1, {"test/a": bits(35, 50), "test/b": bits(20, 40)})
    built = report(tmp_path)
    row = built.tables["differences_tuned"].rows[0]
    assert row.detail == "seed 1 only"
    assert row.cells[1].text.startswith("+5.0 ")
    assert "Ties-Merging (tuned): seed 0 missing." in built.markdown


def test_best_merge_of_a_column_is_bold_and_references_never_are(tmp_path):
    begin(tmp_path)
    add_row(
        tmp_path, "experts", Variant.REFERENCE, 0, {"test/a": bits(50, 50), "test/b": bits(40, 40)}
    )
    add_row(
        tmp_path, "ties", Variant.PUBLISHED, 0, {"test/a": bits(30, 50), "test/b": bits(10, 40)}
    )
    add_row(
        tmp_path, "doge_ta", Variant.PUBLISHED, 0, {"test/a": bits(20, 50), "test/b": bits(30, 40)}
    )
    shown = report(tmp_path).tables["main"]
    bold = {
        (row.cells[0].text, name)
        for row in shown.rows
        for name, cell in zip(shown.header, row.cells, strict=True)
        if cell.strong
    }
    doge, ties = "DOGE TA (published)", "Ties-Merging (published)"
    assert bold == {(doge, "Mean"), (doge, "Of experts"), (doge, "Task B"), (ties, "Task A")}


def test_tidy_csv_has_the_unrounded_numbers(tmp_path):
    begin(tmp_path)
    add_row(tmp_path, "ties", Variant.PUBLISHED, 0, {"test/a": bits(1, 3), "test/b": bits(20, 40)})
    lines = list(csv.DictReader(io.StringIO(report(tmp_path).csv)))
    cell = next(line for line in lines if line["table"] == "main" and line["column"] == "Task A")
    assert cell["estimate"] == "33.3333"
    assert (cell["method"], cell["variant"], cell["examples"]) == ("ties", "published", "3")
    assert float(cell["high"]) - float(cell["low"]) == pytest.approx(
        2 * float(cell["half_width"]), abs=1e-3
    )


def test_winners_are_the_best_trials(tmp_path):
    begin(tmp_path)
    for scaling, score in ((0.2, 0.5), (0.4, 0.7), (0.6, 0.6)):
        add_trial(tmp_path, "task_arithmetic", 0, {"scaling": scaling}, {"a": score, "b": 0.5})
    row = report(tmp_path).tables["winners"].rows[0]
    assert [cell.text for cell in row.cells] == [
        "Task Arithmetic",
        "0",
        "scaling = 0.4",
        "60.0",
        "3",
    ]


def test_a_longer_search_replaces_its_former_winner(tmp_path):
    begin(tmp_path)
    add_trial(tmp_path, "task_arithmetic", 0, {"scaling": 0.4}, {"a": 0.7, "b": 0.7})
    add_trial(tmp_path, "task_arithmetic", 0, {"scaling": 0.2}, {"a": 0.6, "b": 0.6})
    for scaling, right in ((0.4, 30), (0.2, 20)):
        correct = {"test/a": bits(right, 50), "test/b": bits(20, 40)}
        add_row(tmp_path, "task_arithmetic", Variant.TUNED, 0, correct, {"scaling": scaling})
    built = report(tmp_path)
    row = table(built, "main")["Task Arithmetic (tuned)"]
    assert row["Task A"].startswith("60.0")
    assert "records exist" not in built.markdown


def test_two_records_of_one_row_are_said(tmp_path):
    begin(tmp_path)
    for scaling in (0.3, 0.4):
        correct = {"test/a": bits(30, 50), "test/b": bits(20, 40)}
        add_row(tmp_path, "task_arithmetic", Variant.PUBLISHED, 0, correct, {"scaling": scaling})
    assert "2 records exist" in report(tmp_path).markdown


def test_a_row_without_results_per_example_is_left_out_and_said(tmp_path):
    begin(tmp_path)
    add_row(tmp_path, "ties", Variant.PUBLISHED, 0, {"test/a": bits(30, 50)})
    for path in tmp_path.rglob("*.npz"):
        path.unlink()
    built = report(tmp_path)
    assert "main" not in built.tables
    assert "its results per example are missing" in built.markdown


def test_seeds_that_the_run_does_not_have_are_left_out(tmp_path):
    begin(tmp_path, seeds=1)
    for seed, right in ((0, 30), (1, 50)):
        add_row(tmp_path, "ties", Variant.PUBLISHED, seed, {"test/a": bits(right, 50)})
    row = table(report(tmp_path), "main")["Ties-Merging (published)"]
    assert row["Task A"].startswith("60.0")


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no manifest\.json"):
        report(tmp_path)


def test_a_manifest_of_another_shape_is_refused(tmp_path):
    write_manifest(tmp_path, {"experiment": {}})
    with pytest.raises(InputError, match="not a manifest"):
        report(tmp_path)

"""The first sentence says what came out, whichever way it went."""

from pathlib import Path

import numpy as np
import pytest

from tests.tune.synthetic_run import AXES, TITLES, add_row, manifest, write_manifest
from tune.records import Variant
from tune.report import build_report

SUITE = {
    "name": "one",
    "title": "One task",
    "tasks": [{"name": "a", "title": "Task A", "stands_for": None, "classes": 2}],
    "unseen": [],
    "corrupted": [],
    "corruptions": [],
}


def headline(run_dir: Path, rows: dict[tuple[str, Variant], np.ndarray]) -> str:
    write_manifest(run_dir, manifest(1, suite=SUITE))
    for (method, variant), correct in rows.items():
        add_row(run_dir, method, variant, 0, {"test/a": correct})
    return build_report(run_dir, titles=TITLES, axes=AXES, samples={}).document.headline


def bits(right: int) -> np.ndarray:
    return np.arange(200) < right


PUBLISHED, TUNED = Variant.PUBLISHED, Variant.TUNED


def test_ahead(tmp_path):
    text = headline(
        tmp_path,
        {
            ("task_arithmetic", TUNED): bits(100),
            ("ties", TUNED): bits(120),
            ("doge_ta", TUNED): bits(150),
        },
    )
    assert text == (
        "DOGE TA (tuned) reaches 75.0 ± 6.1 % mean accuracy, +15.0 [10.0, 20.0] percentage points "
        "over the best other method, Ties-Merging (tuned)."
    )


def test_behind(tmp_path):
    text = headline(tmp_path, {("ties", TUNED): bits(150), ("doge_ta", TUNED): bits(120)})
    assert text.endswith(
        "behind the best other method, Ties-Merging (tuned): "
        "−15.0 [−20.0, −10.0] percentage points."
    )


def test_not_distinguishable(tmp_path):
    # The two disagree on 40 examples, and on equally many in either direction but for two.
    other = bits(120)
    other[:20] = False
    other[140:159] = True
    text = headline(tmp_path, {("ties", TUNED): other, ("doge_ta", TUNED): bits(120)})
    assert "not distinguishable from the best other method, Ties-Merging (tuned): +0.5 [−" in text


def test_published_settings_are_compared_with_published_settings(tmp_path):
    text = headline(
        tmp_path,
        {
            ("ties", PUBLISHED): bits(100),
            ("ties", TUNED): bits(190),
            ("doge_ta", PUBLISHED): bits(150),
        },
    )
    assert text.startswith("DOGE TA (published) reaches")
    assert "over the best other method, Ties-Merging (published)" in text


def test_references_are_no_methods(tmp_path):
    text = headline(
        tmp_path,
        {("experts", Variant.REFERENCE): bits(200), ("doge_ta", TUNED): bits(150)},
    )
    assert text.endswith("there is no other method to compare it with yet.")


@pytest.mark.parametrize("rows", [{}, {("ties", TUNED): bits(100)}])
def test_nothing_to_say_yet(tmp_path, rows):
    assert headline(tmp_path, rows) == "DOGE TA has no complete result yet."

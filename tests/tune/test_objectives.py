"""What a search maximises, by hand, and that it cannot be had from test scores."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apgd.data import Split
from apgd.data.reader import LeakError
from tune.search.objectives import Objective, ValidationScores, objective_value


def scores(**fields: Any) -> ValidationScores:
    return ValidationScores(split=Split.VALIDATION, **fields)


def test_objectives_by_hand() -> None:
    found = scores(
        merged={"a": 0.6, "b": 0.9},
        unseen={"c": 0.2, "d": 0.5},
        experts={"a": 0.8, "b": 0.95},
    )
    assert objective_value(Objective.ACCURACY, found) == pytest.approx(0.75)
    assert objective_value(Objective.WORST_TASK, found) == pytest.approx(0.75)  # a: 0.6 / 0.8
    assert objective_value(Objective.UNSEEN, found) == pytest.approx(0.35)


def test_unseen_tasks_and_merged_ones_do_not_mix() -> None:
    merged = {"a": 0.6, "b": 0.8}
    for unseen in ({}, {"c": 0.0}, {"c": 1.0}):
        assert objective_value(Objective.ACCURACY, scores(merged=merged, unseen=unseen)) == 0.7


@pytest.mark.parametrize("experts", [{}, {"a": 0.5}, {"a": 0.5, "b": 0.0}, {"a": 0.5, "c": 0.5}])
def test_scores_relative_to_experts_need_each_of_them(experts: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="need a positive one for each of a, b, but got"):
        objective_value(Objective.WORST_TASK, scores(merged={"a": 0.5, "b": 0.5}, experts=experts))


def test_a_mean_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="a mean needs at least one score, but got none"):
        objective_value(Objective.UNSEEN, scores(merged={"a": 0.5}))


@pytest.mark.parametrize("split", [Split.TEST, Split.TRAIN, "validation"])
def test_scores_of_another_split_are_refused(split: Any) -> None:
    with pytest.raises(
        LeakError, match=f"choices are made on the validation split, but got {split}"
    ):
        ValidationScores(split=split, merged={"a": 0.5})


@pytest.mark.slow
def test_a_type_check_refuses_scores_of_the_test_split(tmp_path: Path) -> None:
    snippet = (
        "from apgd.data import Split\n"
        "from tune.search.objectives import ValidationScores\n"
        "ValidationScores(split=Split.VALIDATION, merged={})\n"
        "ValidationScores(split=Split.TEST, merged={})\n"
    )
    (tmp_path / "snippet.py").write_text(snippet)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--follow-imports=silent", str(tmp_path / "snippet.py")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, done.stdout
    assert "snippet.py:4" in errors[0]
    assert "Literal[Split.TEST]" in errors[0]

"""What a search maximises, computed from validation scores and from nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from apgd.data import Split
from apgd.data.reader import LeakError


class Objective(StrEnum):
    """A number that says how good a merge is; more is better."""

    ACCURACY = "accuracy"
    """Mean score over the merged tasks."""
    WORST_TASK = "worst_task"
    """The smallest score relative to the task's own expert."""
    UNSEEN = "unseen"
    """Mean score over the unseen tasks, on validation parts of their own."""


@dataclass(frozen=True, kw_only=True)
class ValidationScores:
    """Scores by task that choices may be based on.

    The split is part of the type, and checked again here: an objective cannot be had from scores of
    another one.

    Raises:
        LeakError: for scores of another split.
    """

    split: Literal[Split.VALIDATION]
    """Where they come from."""
    merged: Mapping[str, float]
    """Of the tasks whose experts are merged."""
    unseen: Mapping[str, float] = field(default_factory=dict)
    """Of tasks that no expert has seen."""
    experts: Mapping[str, float] = field(default_factory=dict)
    """Of every merged task's own expert."""

    def __post_init__(self) -> None:
        if self.split is not Split.VALIDATION:
            raise LeakError(f"choices are made on the validation split, but got {self.split}")


def objective_value(objective: Objective, scores: ValidationScores) -> float:
    """The objective of a merge with these scores.

    Raises:
        ValueError: where scores that it needs are missing, or an expert's is not positive.
    """
    if objective is Objective.ACCURACY:
        return _mean(scores.merged)
    if objective is Objective.UNSEEN:
        return _mean(scores.unseen)
    if set(scores.experts) != set(scores.merged) or min(scores.experts.values()) <= 0:
        raise ValueError(
            f"scores relative to experts need a positive one for each of "
            f"{', '.join(scores.merged)}, but got {dict(scores.experts)}"
        )
    return min(score / scores.experts[task] for task, score in scores.merged.items())


def _mean(scores: Mapping[str, float]) -> float:
    if not scores:
        raise ValueError("a mean needs at least one score, but got none")
    return sum(scores.values()) / len(scores)

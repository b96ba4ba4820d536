"""What a trial's record says of itself: how far it got, and what it judged on the way."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

import numpy as np

from apgd.methods import Value
from tune.records import Record

ACCURACY = "accuracy"
"""The objective of a search that names none: the mean validation score over the merged tasks."""

OBJECTIVES = {
    ACCURACY: "mean over tasks",
    "worst_task": "worst task against its expert",
    "unseen": "unseen tasks",
}
"""What a search may maximise, for people."""


class Outcome(Enum):
    """What became of a trial."""

    FULL = "judged on all validation examples"
    STOPPED = "stopped early"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One merge that a trial judged."""

    params: Mapping[str, Value]
    """All of the method's parameters."""
    objectives: Mapping[str, float]
    """By name, at most 1; higher is better, and the first is what settings are chosen by."""

    @property
    def value(self) -> float:
        """What it is chosen by."""
        return next(iter(self.objectives.values()))


@dataclass(frozen=True, kw_only=True)
class Rung:
    """The settings that a trial judged together."""

    share: float
    """Of the validation examples, in (0, 1]."""
    settings: tuple[Setting, ...]


class Place(NamedTuple):
    """What one search was about."""

    method: str
    seed: int


def outcome(trial: Record) -> Outcome:
    """What became of a trial; a record that does not say was judged in full."""
    if not trial.scores:
        return Outcome.FAILED
    whole = trial.details.get("share", 1.0) >= 1.0 and not trial.details.get("stopped", False)
    return Outcome.FULL if whole else Outcome.STOPPED


def of_outcome(trials: Iterable[Record], wanted: Outcome) -> list[Record]:
    """The trials of one outcome, in the order given."""
    return [trial for trial in trials if outcome(trial) is wanted]


def in_order(trial: Record, names: Sequence[str]) -> Record:
    """A trial with its objectives in this order, which a file does not keep; others follow."""
    stored = trial.details.get("objectives")
    if not stored:
        return trial
    order = [*(name for name in names if name in stored), *stored]
    ordered = {name: stored[name] for name in order}
    return replace(trial, details={**trial.details, "objectives": ordered})


def objectives(trial: Record) -> dict[str, float]:
    """What the search maximised, by name; empty for a trial that failed.

    The first is what settings are chosen by.
    """
    if not trial.scores:
        return {}
    return dict(trial.details.get("objectives") or {ACCURACY: _mean(trial)})


def objective(trial: Record) -> float:
    """What a trial is chosen by, at most 1; -∞ where it failed."""
    return next(iter(objectives(trial).values()), float("-inf"))


def _mean(trial: Record) -> float:
    return float(np.mean(list(trial.scores.values())))


def rungs(trial: Record) -> tuple[Rung, ...]:
    """What a trial judged, the smallest share first; none where it failed.

    A record without rungs judged one setting, its own.
    """
    if not trial.scores:
        return ()
    stored = trial.details.get("rungs") or ()
    if not stored:
        own = Setting(params=trial.params, objectives=objectives(trial))
        return (Rung(share=trial.details.get("share", 1.0), settings=(own,)),)
    return tuple(
        Rung(
            share=rung["share"],
            settings=tuple(
                # A setting names what was varied inside the trial; the rest is the trial's.
                Setting(
                    params={**trial.params, **setting["params"]},
                    objectives={name: setting["objectives"][name] for name in objectives(trial)},
                )
                for setting in rung["settings"]
            ),
        )
        for rung in stored
    )


def last_settings(trial: Record) -> tuple[Setting, ...]:
    """Every setting that was judged on the largest share that the trial reached."""
    reached = rungs(trial)
    most = max((rung.share for rung in reached), default=0.0)
    return tuple(setting for rung in reached if rung.share == most for setting in rung.settings)


def swept(trials: Iterable[Record]) -> tuple[str, ...]:
    """The parameters that were varied inside trials, in the order of their appearance."""
    names = {
        name: None
        for trial in trials
        for rung in trial.details.get("rungs") or ()
        for setting in rung["settings"]
        for name in setting["params"]
    }
    return tuple(names)


def best_trials(trials: Sequence[Record]) -> dict[Place, Record]:
    """The best of every search's trials that were judged in full; of equals the first given."""
    best: dict[Place, Record] = {}
    for trial in of_outcome(trials, Outcome.FULL):
        place = Place(trial.method, trial.seed)
        if place not in best or objective(trial) > objective(best[place]):
            best[place] = trial
    return best

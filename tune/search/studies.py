"""What is searched: a study is one method at one seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeAlias

from apgd.errors import InputError
from apgd.files import content_key
from apgd.methods import Limit, Method, MethodParams, Parameter, Value, methods
from apgd.source import library_versions, source_hash
from tune.records import Record
from tune.search.objectives import Objective
from tune.search.rungs import Rungs, Setting

Params: TypeAlias = dict[str, Value]
_CODE = (
    "apgd.pareto",
    "tune.search.rungs",
    "tune.search.sampling",
    "tune.search.seen",
    "tune.search.studies",
    "tune.search.objectives",
    "tune.search.trials",
)
"""What suggestions and stops depend on besides scores."""


class Sampler(StrEnum):
    """Who suggests parameters."""

    TPE = "tpe"
    """Optuna's tree-structured Parzen estimator."""
    RANDOM = "random"
    """Independent draws, a control."""
    GRID = "grid"
    """Points spread over the ranges, in a shuffled order, a control."""


@dataclass(frozen=True)
class Study:
    """The search for one method's parameters at one seed."""

    method: str
    seed: int
    trials: int
    """Runs of the method, that of the published settings included."""
    rank: int
    """The smallest min(m, n) over the merged matrices."""
    experts: int
    """N, the number of experts."""
    published_params: tuple[tuple[str, Value], ...] = ()
    """The published settings for this kind of model, where they differ from the defaults."""
    search_seed: int | None = None
    """Seed of the suggestions; that of the experts, where None."""
    sampler: Sampler = Sampler.TPE
    objectives: tuple[Objective, ...] = (Objective.ACCURACY,)
    """What is maximised; with several, no trial is stopped, and a Pareto front comes out."""
    rungs: Rungs = field(default_factory=Rungs)
    """How trials grow, and which are stopped."""
    at_once: int = 8
    """Trials that may be under way at a time; a suggestion knows the results of all but the last
    so many before it, whoever is faster."""

    def __post_init__(self) -> None:
        for name in ("trials", "at_once"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, but got {getattr(self, name)}")
        if not self.objectives or len(set(self.objectives)) != len(self.objectives):
            listed = ", ".join(self.objectives) or "none"
            raise InputError(f"objectives must be one or more different ones, but got {listed}")

    @property
    def name(self) -> str:
        """Identifier within a run, where only one search of a method and seed is."""
        return f"{self.method}/seed{self.seed}"

    @property
    def suggesting_seed(self) -> int:
        """Seed of the suggestions."""
        return self.seed if self.search_seed is None else self.search_seed

    @cached_property
    def published(self) -> MethodParams:
        """The published settings, with everything filled in that follows from the model."""
        published = methods[self.method].parse(dict(self.published_params))
        return published.resolved(self.rank, self.experts)

    @property
    def stops(self) -> bool:
        """Whether trials may be stopped before their last rung."""
        return len(self.objectives) == 1 and self.rungs.reduction > 1

    @cached_property
    def space(self) -> tuple[tuple[Parameter, float, float], ...]:
        """The parameters that are suggested, each with both ends of its range.

        Not those that a trial goes through itself, nor those that do not count with the published
        values of others.
        """
        method, published = methods[self.method], self.published.as_dict()
        sweep = method.sweep(self.published)
        swept = () if sweep is None else (sweep.growing, *sweep.late)
        limits = {Limit.RANK: self.rank, Limit.EXPERTS: self.experts}
        space = []
        for declared in searched(method):
            counts = declared.when is None or published[declared.when[0]] == declared.when[1]
            if declared.name not in swept and counts and declared.search is not None:
                low, high = declared.search
                top = float(limits[high] if isinstance(high, Limit) else high)
                own = published[declared.name]
                # The published value is tried whether or not it was thought of.
                ends = [low, top, *([float(own)] if isinstance(own, int | float) else [])]
                space.append((declared, min(ends), max(ends)))
        return tuple(space)

    @property
    def bases(self) -> int:
        """The most singular vectors of a task vector that a trial can ask for; often none."""
        sweep = methods[self.method].sweep(self.published)
        if sweep is None:
            return 0
        own = self.published.as_dict()[sweep.bases]
        most = [top for declared, _low, top in self.space if declared.name == sweep.bases]
        return int(max([*most, own if isinstance(own, int) else 0]))

    def whole(self, params: Mapping[str, Value], setting: Setting | None = None) -> Params:
        """All parameters of the method: the published ones with others in place of some."""
        chosen = {**self.published.as_dict(), **params, **(setting or {})}
        return methods[self.method].parse(chosen).as_dict()

    def key(self, inputs: Mapping[str, str]) -> str:
        """Hash of everything that determines the study's trials.

        That is space, objectives, sampler and rungs, and in `inputs` suite, data, experts and code.
        The number of trials is left out: more of them extend a study.
        """
        fields = {k: v for k, v in asdict(self).items() if k != "trials"}
        space = [[p.name, str(p.kind), low, high, p.log] for p, low, high in self.space]
        versions = library_versions("optuna")
        return content_key([fields, space, dict(inputs), source_hash(*_CODE), versions])


def searched(method: Method) -> tuple[Parameter, ...]:
    """The parameters of a method that a search varies."""
    return tuple(p for p in method.params.declared() if p.search is not None)


def judged_in_full(trial: Record) -> bool:
    """Whether a trial was neither stopped nor failed, so that its score is on all examples."""
    details: Mapping[str, Any] = trial.details
    in_full = details.get("share", 1.0) == 1.0 and not details.get("stopped", False)
    return bool(trial.scores) and in_full


def best_trial(trials: Sequence[Record], objective: Objective = Objective.ACCURACY) -> Record:
    """The best trial on all validation data by an objective; of equals, the earliest.

    Raises:
        ValueError: where there is none.
    """
    return max(
        (trial for trial in trials if judged_in_full(trial)),
        key=lambda trial: (trial.details["objectives"][objective], -trial.details["number"]),
    )

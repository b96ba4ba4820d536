"""What is searched: a study is one method at one seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apgd.methods import Method, MethodParams, Parameter, Value, methods
from tune.evaluators import Purpose, ScoreJob, mean_score
from tune.records import Record, Variant


@dataclass(frozen=True)
class Study:
    """The search for one method's parameters at one seed."""

    method: str
    seed: int
    trials: int
    """Merges that are scored, the published settings included."""
    rank: int
    """The smallest min(m, n) over the merged matrices."""
    experts: int
    """N, the number of experts."""
    published_params: tuple[tuple[str, Value], ...] = ()
    """The published settings for this kind of model, where they differ from the defaults."""

    @property
    def name(self) -> str:
        """Identifier within a run."""
        return f"{self.method}/seed{self.seed}"

    @property
    def published(self) -> MethodParams:
        """The published settings, with everything filled in that follows from the model."""
        published = methods[self.method].parse(dict(self.published_params))
        return published.resolved(self.rank, self.experts)


def searched(method: Method) -> tuple[Parameter, ...]:
    """The parameters of a method that a search varies."""
    return tuple(p for p in method.params.declared() if p.search is not None)


def trial_job(study: Study, params: Mapping[str, Value], number: int) -> ScoreJob:
    """The job of one trial: the study's published settings with `params` in place of them."""
    whole = methods[study.method].parse({**study.published.as_dict(), **params})
    return ScoreJob(
        Purpose.SEARCH,
        study.method,
        Variant.TUNED,
        study.seed,
        tuple(whole.as_dict().items()),
        number,
    )


def best_trial(trials: Sequence[Record], tasks: Sequence[str]) -> Record:
    """The trial with the best mean accuracy on validation data; of equals, the earliest.

    Raises:
        ValueError: where there is none.
    """
    return max(trials, key=lambda trial: (mean_score(trial, tasks), -trial.details["number"]))

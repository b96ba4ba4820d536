"""Methods that add up task vectors with one coefficient."""

from dataclasses import dataclass

from apgd.methods._method import Method, MethodParams, parameter
from apgd.task_vectors import Delta, TaskVectors


@dataclass(frozen=True, kw_only=True)
class AveragingParams(MethodParams):
    """Weight averaging has no parameters."""


@dataclass(frozen=True, kw_only=True)
class TaskArithmeticParams(MethodParams):
    """Parameters of task arithmetic."""

    coefficient: float = parameter(
        0.3,
        "merging coefficient λ of every task vector",
        low=0,
        search=(0.05, 2.0),
        log=True,
    )


def scaled_sum(vectors: TaskVectors, coefficient: float) -> Delta:
    """λ Σ_i τ_i."""
    return {name: coefficient * tau.sum(dim=0) for name, tau in vectors}


def _average(vectors: TaskVectors, _params: AveragingParams) -> Delta:
    return scaled_sum(vectors, 1 / len(vectors))


def _task_arithmetic(vectors: TaskVectors, params: TaskArithmeticParams) -> Delta:
    return scaled_sum(vectors, params.coefficient)


weight_averaging = Method(
    name="weight_averaging",
    title="Weight averaging",
    source="Wortsman et al., ICML 2022 (arXiv 2203.05482), section 2",
    params=AveragingParams,
    combine=_average,
)

task_arithmetic = Method(
    name="task_arithmetic",
    title="Task arithmetic",
    source="Ilharco et al., ICLR 2023 (arXiv 2212.04089), section 4",
    params=TaskArithmeticParams,
    combine=_task_arithmetic,
)

"""Methods that add up task vectors with one coefficient."""

from dataclasses import dataclass

from torch import Tensor

from apgd.methods._method import Method, MethodParams, coefficient_parameter
from apgd.strips import by_strips


@dataclass(frozen=True, kw_only=True)
class AveragingParams(MethodParams):
    """Weight averaging has no parameters."""


@dataclass(frozen=True, kw_only=True)
class TaskArithmeticParams(MethodParams):
    """Parameters of task arithmetic."""

    coefficient: float = coefficient_parameter(0.3, "every task vector", (0.05, 2.0))


def _average(tau: Tensor, _params: AveragingParams, _prepared: None) -> Tensor:
    return by_strips(tau, lambda part, _rows: part.sum(dim=0) / len(tau))


def _task_arithmetic(tau: Tensor, params: TaskArithmeticParams, _prepared: None) -> Tensor:
    return by_strips(tau, lambda part, _rows: params.coefficient * part.sum(dim=0))


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

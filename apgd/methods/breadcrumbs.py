"""Model Breadcrumbs: task arithmetic without the largest and the smallest changes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from apgd.cost import Cost
from apgd.methods._method import (
    Combined,
    Method,
    MethodParams,
    coefficient_parameter,
    parameter,
    read_once,
)
from apgd.order_statistics import of_one, order_statistics
from apgd.strips import by_strips, sums_by_strips


@dataclass(frozen=True, kw_only=True)
class BreadcrumbsParams(MethodParams):
    """Parameters of Model Breadcrumbs; in the paper's terms γ - β and 1 - γ are the shares."""

    coefficient: float = coefficient_parameter(0.3, "every task vector", (0.05, 2.0))
    keep_ratio: float = parameter(
        0.14,
        "share of the entries of each task vector and matrix that is kept, largest magnitudes "
        "first, once outliers are dropped",
        low=0,
        high=1,
        open_low=True,
        search=(0.05, 1.0),
    )
    outlier_ratio: float = parameter(
        0.01,
        "share of the entries that is dropped as outliers, largest magnitudes first",
        low=0,
        high=1,
        search=(0.0, 0.05),
    )


def bounds(
    tau: Tensor,  # (N, m, n)
    params: BreadcrumbsParams,
) -> Tensor:  # (N, 2)
    """The smallest and the largest magnitude that are kept of each task vector.

    Of d entries the ⌊outlier_ratio·d⌋ largest are dropped, and of the others the ⌊keep_ratio·d⌋
    largest kept; but at least one is, and all whose magnitude equals one of these bounds.
    """
    count = tau[0].numel()
    last = max(1, count - int(params.outlier_ratio * count))
    first = min(last, max(1, last - int(params.keep_ratio * count) + 1))
    return order_statistics(of_one(tau), torch.tensor([[first, last]] * len(tau), device="cpu"))


def _inside(
    tau: Tensor,  # (N, m, n)
    limits: Tensor,  # (N, 2)
) -> Tensor:  # (N, m, n), bool
    sizes, (low, high) = tau.abs(), limits.view(-1, 2, 1, 1).unbind(dim=1)
    return (sizes >= low) & (sizes <= high)


def _combine(tau: Tensor, params: BreadcrumbsParams, _prepared: None) -> Combined:
    limits = bounds(tau, params).to(tau.device)

    def of(part: Tensor, _rows: slice) -> Tensor:
        return params.coefficient * (part * _inside(part, limits)).sum(dim=0)

    counts = sums_by_strips(tau, lambda part, _rows: _inside(part, limits).sum(dim=(1, 2)))
    return Combined(by_strips(tau, of), {"kept": (counts / tau[0].numel()).tolist()})


def _cost(shape: tuple[int, int], experts: int, params: BreadcrumbsParams) -> Cost:
    return read_once(shape, experts, params) * 4  # two for the bounds, one to count


breadcrumbs = Method(
    name="breadcrumbs",
    title="Model Breadcrumbs",
    source="Davari and Belilovsky, ECCV 2024 (arXiv 2312.06795), section 3",
    params=BreadcrumbsParams,
    combine=_combine,
    cost=_cost,
)

"""Model Breadcrumbs: task arithmetic without the largest and the smallest changes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from apgd.cost import Cost
from apgd.errors import InputError
from apgd.methods._method import Combined, Method, MethodParams, parameter, read_once
from apgd.order_statistics import of_one, order_statistics
from apgd.strips import by_strips, sums_by_strips


@dataclass(frozen=True, kw_only=True)
class BreadcrumbsParams(MethodParams):
    """Parameters of Model Breadcrumbs."""

    coefficient: float = parameter(
        0.3, "merging coefficient λ of every task vector", low=0, search=(0.05, 2.0), log=True
    )
    drop_smallest: float = parameter(
        0.85,
        "share β of the entries of each task vector and matrix that is dropped, smallest "
        "magnitudes first",
        low=0,
        high=1,
        search=(0.5, 0.95),
    )
    drop_largest: float = parameter(
        0.007,
        "share of them that is dropped, largest magnitudes first (1 - γ of the paper)",
        low=0,
        high=1,
        search=(0.0, 0.04),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop_smallest + self.drop_largest >= 1:
            raise InputError(
                f"drop_smallest + drop_largest must be below 1, but got "
                f"{self.drop_smallest:g} + {self.drop_largest:g}"
            )


def bounds(
    tau: Tensor,  # (N, m, n)
    params: BreadcrumbsParams,
) -> Tensor:  # (N, 2)
    """The smallest and the largest magnitude that stay in each task vector.

    Of d entries the ⌊drop_smallest·d⌋ smallest go and the ⌊drop_largest·d⌋ largest, but none whose
    magnitude equals one that stays.
    """
    count = tau[0].numel()
    first = 1 + int(params.drop_smallest * count)
    last = max(first, count - int(params.drop_largest * count))
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

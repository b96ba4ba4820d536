from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from apgd import InputError, merge
from apgd.methods import methods
from tests.conftest import SHAPES, State, same_bits

Make = Callable[..., tuple[State, dict[str, State]]]


def delta(experts: list[Tensor], **params: float) -> Tensor:
    base = {"w": torch.zeros_like(experts[0])}
    return merge("breadcrumbs", base, {f"e{i}": {"w": t} for i, t in enumerate(experts)}, **params)[
        "w"
    ]


def test_by_hand() -> None:
    first = torch.tensor([[4.0, -7.0, 1.0, -10.0, 8.0], [-2.0, 6.0, 9.0, -3.0, 5.0]])
    second = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4], [-0.5, -0.6, -0.7, -0.8, -0.9]])
    found = delta([first, second], coefficient=2.0, keep_ratio=0.3, outlier_ratio=0.2)
    # Of ten entries the two largest go, and the next three stay: 6, 7, 8, and -0.5, -0.6, -0.7.
    expected = torch.tensor([[0.0, -7.0, 0.0, 0.0, 8.0], [-0.5, 6.0 - 0.6, -0.7, 0.0, 0.0]])
    torch.testing.assert_close(found, 2 * expected)


def test_dropping_nothing_is_task_arithmetic(model: Make) -> None:
    base, experts = model(3)
    ours = merge("breadcrumbs", base, experts, keep_ratio=1.0, outlier_ratio=0.0)
    theirs = merge("task_arithmetic", base, experts)
    assert all(same_bits(ours[n], theirs[n]) for n in base)


@pytest.mark.parametrize(
    ("keep", "outliers"), [(0.15, 0.01), (0.5, 0.0), (1.0, 0.3), (0.3, 0.6), (0.6, 0.6)]
)
def test_shares_are_those_of_a_sort_of_every_matrix(
    keep: float, outliers: float, model: Make
) -> None:
    base, experts = model(4)
    merged = merge(
        "breadcrumbs", base, experts, keep_ratio=keep, outlier_ratio=outliers, coefficient=0.5
    )
    for name, shape in SHAPES.items():
        total, count = torch.zeros(shape), shape[0] * shape[1]
        most = count - int(outliers * count)
        least = max(0, most - int(keep * count))
        for state in experts.values():
            tau = (state[name] - base[name]).flatten()
            stays = tau.abs().argsort()[least:most]
            total += torch.zeros_like(tau).scatter(0, stays, tau[stays]).view(shape)
        torch.testing.assert_close(merged[name], base[name] + 0.5 * total)
        [layer] = [la for la in merged.summary.layers if la.name == name]
        assert layer.details["kept"] == pytest.approx([(most - least) / count] * 4)


def test_entries_that_tie_with_one_that_stays_do_too() -> None:
    tau = torch.tensor([[1.0, -1.0, 1.0, 2.0, -2.0, 3.0, 3.0, -3.0, 3.0, 0.0]])
    found = delta([tau], coefficient=1.0, keep_ratio=0.5, outlier_ratio=0.3)
    # The fourth largest is a 3, the fourth below it a 1; only the 0 is smaller.
    assert torch.equal(found, tau)


def test_matrices_are_masked_one_by_one(model: Make) -> None:
    base, experts = model(2)
    scaled = {e: s | {"wide": base["wide"] + 100 * (s["wide"] - base["wide"])} for e, s in
              experts.items()}  # fmt: skip
    ours, theirs = merge("breadcrumbs", base, experts), merge("breadcrumbs", base, scaled)
    assert all(same_bits(ours[n], theirs[n]) for n in ("tall", "square", "row"))
    assert not torch.equal(ours["wide"], base["wide"])


def test_a_common_scale_goes_through(model: Make) -> None:
    _, experts = model(3)
    tau = [state["wide"] for state in experts.values()]
    assert torch.equal(delta([2 * t for t in tau]), 2 * delta(tau))


def test_opposite_task_vectors_cancel(model: Make) -> None:
    _, experts = model(1)
    tau = experts["expert0"]["wide"]
    assert torch.equal(delta([tau, -tau]), torch.zeros_like(tau))


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (7, 1), (1, 200)])
def test_at_least_one_entry_is_kept(shape: tuple[int, int]) -> None:
    tau = 1 + torch.rand(shape, generator=torch.Generator().manual_seed(0))
    ordered = tau.flatten().sort().values
    for keep, outliers in ((0.001, 0.0), (0.001, 1.0), (1.0, 0.999)):
        found = delta([tau], coefficient=1.0, keep_ratio=keep, outlier_ratio=outliers)
        assert found[found != 0].tolist() == [ordered[-1 if outliers == 0 else 0]]


def test_shares_are_shares() -> None:
    with pytest.raises(InputError, match=r"keep_ratio must lie in \(0, 1\], but got 14"):
        methods["breadcrumbs"].parse({"keep_ratio": 14})
    with pytest.raises(InputError, match=r"outlier_ratio must lie in \[0, 1\], but got -0.1"):
        methods["breadcrumbs"].parse({"outlier_ratio": -0.1})

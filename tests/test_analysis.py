"""Figures of task vectors and merges against what is known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from apgd.analysis import delta_figures, delta_layer, expert_figures, expert_layer
from apgd.methods import methods


def orthogonal() -> Tensor:
    """Two task vectors of rank 2 with nothing in common, (2, 8, 4)."""
    tau = torch.zeros(2, 8, 4)
    tau[0, 0, 0], tau[0, 1, 1] = 3.0, 1.0
    tau[1, 2, 2], tau[1, 3, 3] = 4.0, 2.0
    return tau


def test_orthogonal_task_vectors() -> None:
    layer = expert_layer("w", orthogonal())
    assert layer.products == ((10.0, 0.0), (0.0, 20.0))
    # k = 4 / 2: each basis has two directions, and U the two that any order of theirs may give.
    assert layer.shared_size == 2
    assert layer.overlaps == ((pytest.approx(1), 0.0), (0.0, pytest.approx(1)))
    found = expert_figures([layer])
    assert found.norms == pytest.approx((math.sqrt(10), math.sqrt(20)))
    assert found.mean_norm == pytest.approx(math.sqrt(30) / 2)
    assert (found.cosine, found.overlap) == (0.0, 0.0)
    assert found.shared_by_chance == pytest.approx(2 / 8)


def test_identical_task_vectors_lie_in_what_they_share() -> None:
    tau = torch.zeros(2, 6, 4)
    tau[:, 0, 0], tau[:, 1, 1] = 2.0, 1.0
    found = expert_figures([expert_layer("w", tau)])
    assert found.cosine == pytest.approx(1)
    assert found.overlap == pytest.approx(1)
    assert found.shared == pytest.approx(1)
    assert found.mean_norm == pytest.approx(math.sqrt(5))


def test_a_merge_beside_the_task_vectors() -> None:
    tau = orthogonal()
    experts = [expert_layer("w", tau)]
    average = delta_figures(experts, [delta_layer("w", tau, tau.mean(dim=0))])
    assert average.size == pytest.approx(1)
    assert average.cosines == pytest.approx((math.sqrt(1 / 3), math.sqrt(2 / 3)))
    assert average.modification is None
    first = delta_figures(experts, [delta_layer("w", tau, -tau[0])])
    assert first.cosines == pytest.approx((-1, 0))
    assert first.size == pytest.approx(math.sqrt(10) / (math.sqrt(30) / 2))


def test_matrices_are_put_together_as_one_vector() -> None:
    generator = torch.Generator().manual_seed(0)
    taus = [torch.randn(3, *shape, generator=generator) for shape in ((5, 7), (9, 4))]
    deltas = [torch.randn(*tau.shape[1:], generator=generator) for tau in taus]
    experts = [expert_layer(str(i), tau) for i, tau in enumerate(taus)]
    merged = [delta_layer(str(i), t, d) for i, (t, d) in enumerate(zip(taus, deltas, strict=True))]
    whole = torch.cat([tau.flatten(1) for tau in taus], dim=1)
    delta = torch.cat([delta.flatten() for delta in deltas])
    found = delta_figures(experts, merged)
    assert found.size == pytest.approx(float(delta.norm() / whole.mean(dim=0).norm()), rel=1e-5)
    cosines = torch.cosine_similarity(whole, delta[None], dim=1)
    assert found.cosines == pytest.approx(cosines.tolist(), abs=1e-6)
    assert expert_figures(experts).norms == pytest.approx(whole.norm(dim=1).tolist(), rel=1e-5)


@pytest.mark.parametrize(
    "name", ["doge_ta", "doge_am", "weight_averaging+apgd", "weight_averaging"]
)
def test_the_modification_vector_is_found_again(name: str) -> None:
    tau = 0.01 * torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    prefix = "apgd_" if name.endswith("+apgd") else ""
    given = {} if name == "weight_averaging" else {f"{prefix}iterations": 3}
    layer = delta_layer("w", tau, tau[0], methods[name].parse(given))
    if name == "weight_averaging":
        assert layer.modification is None
    else:
        # Adam's first steps have the length of the learning rate in every entry.
        assert layer.modification is not None
        assert 0 < math.sqrt(layer.modification) <= 3 * 1e-4 * math.sqrt(24) * 1.01


@pytest.mark.parametrize("shape", [(1, 5, 3), (3, 1, 5), (3, 7, 1), (2, 4, 4)])
def test_zero_task_vectors_and_thin_matrices_stay_finite(shape: tuple[int, ...]) -> None:
    tau = torch.zeros(shape)
    experts = [expert_layer("w", tau)]
    found = delta_figures(experts, [delta_layer("w", tau, tau[0])])
    assert (found.size, found.shared) == (0.0, 0.0)
    assert found.cosines == (0.0,) * len(tau)
    assert expert_figures(experts).shared == 0.0

"""DOGE AM: one modification vector per task against autograd, and the method by its parts."""

from types import ModuleType

import pytest
import torch
from torch import Tensor

from apgd import InputError, TaskVectors, fused, merge, projective
from apgd.evidence import Evidence
from apgd.methods import methods
from apgd.methods._apgd import ApgdParams, modification, modifications
from tests.classifiers import experts, unlabelled
from tests.conftest import State, same_bits
from tests.test_projective import degenerate

MATRICES = ("first.weight", "second.weight")
ENGINES = pytest.mark.parametrize("engine", [projective, fused], ids=["plain", "fused"])
SETTINGS = {"adaptation_iterations": 3, "adaptation_learning_rate": 0.02, "iterations": 20}
SHAPES = [(12, 5), (5, 12), (1, 7), (7, 1), (450, 3), (3, 1100)]


def evidence(base: State, states: dict[str, State]) -> Evidence:
    return Evidence(inputs=unlabelled(base, list(states)))


def task_vectors(count: int, shape: tuple[int, int], size: float = 0.1) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    tau = size * torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return tau * torch.linspace(0.5, 2, count, dtype=torch.float64).view(-1, 1, 1)


def by_definition(
    tau: Tensor, coefficients: Tensor, subspace: Tensor, iterations: int, learning_rate: float
) -> Tensor:
    """Every Δ_j a parameter of its own in one Adam, the loss written out, gradients projected."""
    deltas = [torch.zeros_like(tau[0], requires_grad=True) for _ in tau]
    optimizer = torch.optim.Adam(deltas, lr=learning_rate)
    for _ in range(iterations):
        optimizer.zero_grad()
        merged = sum(c * (t + d) for c, t, d in zip(coefficients, tau, deltas, strict=True))
        loss = sum(((t * (t - merged)).sum(dim=1) ** 2).sum() for t in tau)
        loss.backward()  # type: ignore[union-attr]
        for delta in deltas:
            assert delta.grad is not None
            delta.grad -= subspace @ (subspace.T @ delta.grad)
        optimizer.step()
    return torch.stack([delta.detach() for delta in deltas])


@ENGINES
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [0.1, 1e-3, 1e-5], ids=["usual", "near epsilon", "epsilon"])
def test_modification_vectors_equal_autograd(
    engine: ModuleType, shape: tuple[int, int], size: float
) -> None:
    tau = task_vectors(3, shape, size)
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, min(shape) // 3, min(shape) // 3)
    expected = by_definition(tau, coefficients, subspace, 12, 1e-2 * size)
    found = engine.modification_vectors(tau, coefficients, subspace, 12, 1e-2 * size)
    largest = float(expected.abs().max())
    assert largest > 0
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9 * largest)
    narrow = engine.modification_vectors(
        tau.float(), coefficients.float(), subspace.float(), 12, 1e-2 * size
    )
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), expected, rtol=1e-2, atol=1e-3 * largest)


@ENGINES
@pytest.mark.parametrize("case", degenerate())
def test_modification_vectors_equal_autograd_on_degenerate_task_vectors(
    engine: ModuleType, case: str
) -> None:
    tau = degenerate()[case]
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, 3, 3)
    ours = engine.modification_vectors(tau, coefficients, subspace, 30, 1e-4)
    naive = by_definition(tau, coefficients, subspace, 30, 1e-4)
    torch.testing.assert_close(ours, naive, rtol=1e-8, atol=1e-11)


def test_tasks_differ_where_epsilon_counts() -> None:
    # The gradient is about as large as ε: what is divided by is another for each λ.
    for size, differ in ((1.0, False), (1e-4, True)):
        tau = task_vectors(3, (6, 5), size)
        coefficients = projective.task_aware_coefficients(tau, 0.07)
        none = tau.new_zeros(6, 0)
        found = projective.modification_vectors(tau, coefficients, none, 5, 1e-4)
        spread = (found[0] - found[2]).abs().max() / found.abs().max()
        assert (float(spread) > 0.1) == differ


@ENGINES
def test_zero_task_vectors_are_not_modified(engine: ModuleType) -> None:
    tau = task_vectors(3, (6, 5))
    tau[1] = 0
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, 1, 1)
    found = engine.modification_vectors(tau, coefficients, subspace, 5, 1e-3)
    assert found.isfinite().all()
    assert not found[1].any()
    expected = by_definition(tau, coefficients, subspace, 5, 1e-3)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-12)
    nothing = torch.zeros(2, 3, 4)
    zero = projective.task_aware_coefficients(nothing, 0.07)
    assert not engine.modification_vectors(nothing, zero, torch.zeros(3, 0), 5, 1e-3).any()
    assert not projective.distributed(torch.zeros(3, 4), zero).any()


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    tau = task_vectors(3, (500, 7)).float()
    coefficients = projective.task_aware_coefficients(tau, 0.07)
    subspace = projective.shared_subspace(tau, 2, 2)
    first = fused.modification_vectors(tau, coefficients, subspace, 6, 1e-3)
    torch.set_num_threads(3)
    second = fused.modification_vectors(tau, coefficients, subspace, 6, 1e-3)
    assert same_bits(first, second)


def test_distributed_vectors_do_together_what_one_does() -> None:
    tau = task_vectors(4, (6, 5))
    coefficients = projective.task_aware_coefficients(tau, 0.3)
    delta = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = projective.distributed(delta, coefficients)
    together = torch.einsum("i,imn->mn", coefficients, found)
    torch.testing.assert_close(together, coefficients.sum() * delta)
    # The smallest norm: of all Δ_i with that sum, those that the pseudo-inverse gives.
    inverse = torch.linalg.pinv(coefficients.view(1, -1))
    expected = (inverse @ (coefficients.sum() * delta).view(1, -1)).view(4, 6, 5)
    torch.testing.assert_close(found, expected)


def test_exact_solver_reaches_the_loss_of_one_vector() -> None:
    tau = task_vectors(3, (8, 12)).float()
    params = ApgdParams(solver="exact", basis_size=1)
    one = modification(tau, params)
    found = modifications(tau, params)
    merged = torch.einsum("i,imn->mn", one.coefficients, tau + found)
    gaps = (tau * (tau - merged)).sum(dim=2)
    loss = float(gaps.double().square().sum())
    assert loss == pytest.approx(one.details["loss_after"], rel=1e-3)


class TestMethod:
    def test_parameters(self) -> None:
        declared = methods["doge_am"].params.declared()
        searched = [d.name for d in declared if d.search is not None]
        assert searched == ["eta", "keep_ratio", "adaptation_learning_rate"]
        values = {d.name: d.default for d in declared}
        assert values["eta"] == 0.07
        assert values["keep_ratio"] == values["coefficient"] == 0.3
        assert (values["iterations"], values["learning_rate"]) == (400, 1e-4)
        assert values["adaptation_learning_rate"] == 1e-3

    def test_without_modification_and_masks_it_is_adamerging(self) -> None:
        base, states = experts()
        known = evidence(base, states)
        merged = merge(
            "doge_am", base, states, evidence=known, learning_rate=1e-30, keep_ratio=1.0,
            adaptation_iterations=3, adaptation_learning_rate=0.02,
        )  # fmt: skip
        expected = merge(
            "adamerging_layer_wise", base, states, evidence=known, iterations=3, learning_rate=0.02
        )
        for name in base:
            torch.testing.assert_close(merged[name], expected[name])

    @pytest.mark.parametrize("solver", ["adam", "exact"])
    def test_without_adaptation_it_is_the_sum_of_masked_vectors(self, solver: str) -> None:
        base, states = experts()
        merged = merge(
            "doge_am", base, states, evidence=evidence(base, states), solver=solver,
            iterations=20, learning_rate=1e-2, keep_ratio=0.4, adaptation_iterations=0,
        )  # fmt: skip
        vectors = TaskVectors(base, states)
        thresholds = vectors.magnitude_thresholds(0.4).view(-1, 1, 1)
        params = ApgdParams(solver=solver, iterations=20, learning_rate=1e-2)
        for name in MATRICES:
            tau = vectors[name]
            found = modifications(tau, params)
            assert found.abs().max() > 0.01
            chosen = (tau.abs() >= thresholds) * (tau + found)
            torch.testing.assert_close(merged[name], base[name] + 0.3 * chosen.sum(dim=0))

    @pytest.mark.parametrize("solver", ["adam", "exact"])
    def test_the_result_does_not_depend_on_what_is_kept(self, solver: str) -> None:
        base, states = experts()
        method = methods["doge_am"]
        params = method.parse({**SETTINGS, "solver": solver})
        first, second = (
            method.merge(TaskVectors(base, states, keep=keep), params, evidence(base, states))
            for keep in (False, True)
        )
        assert all(same_bits(first[n], second[n]) for n in MATRICES)

    def test_the_result_does_not_depend_on_room(self, monkeypatch: pytest.MonkeyPatch) -> None:
        base, states = experts()
        known = evidence(base, states)
        first = merge("doge_am", base, states, evidence=known, **SETTINGS)
        monkeypatch.setattr("apgd.adaptation.free_memory", lambda _device: 0)
        second = merge("doge_am", base, states, evidence=known, **SETTINGS)
        assert all(same_bits(first[n], second[n]) for n in base)

    def test_modification_is_found_once_where_there_is_room(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base, states = experts()
        calls: list[tuple[int, ...]] = []

        def counted(tau: Tensor, params: ApgdParams) -> Tensor:
            calls.append(tuple(tau.shape))
            return modifications(tau, params)

        monkeypatch.setattr("apgd.methods.doge_am.modifications", counted)
        merge("doge_am", base, states, evidence=evidence(base, states), **SETTINGS)
        assert len(calls) == len(MATRICES)

    def test_needs_inputs_and_comes_after_no_apgd(self) -> None:
        base, states = experts()
        with pytest.raises(InputError, match="method doge_am needs unlabelled inputs"):
            merge("doge_am", base, states)
        with pytest.raises(InputError):
            methods["doge_am+apgd"]

"""Test-time adaptation: merging coefficients that make predictions on unlabelled inputs certain.

Source: Yang et al., "AdaMerging: Adaptive Model Merging for Multi-Task Learning", ICLR 2024
(arXiv 2310.02575). With θ_l = θ_0l + Σ_i λ_il τ_il for every merged matrix l, Adam lowers the sum
over tasks of the mean entropy of the predictions on a batch of each.

The merge is linear, so no graph goes through it: ∂L/∂λ_il = ⟨∂L/∂θ_l, τ_il⟩. The model's parameters
hold the merged weights, the backward passes of all tasks add up the gradient of the merged matrices
and of nothing else, and then one pass over the task vectors, matrix by matrix, takes the inner
products and writes θ_l with the new coefficients. So a device holds the model, one gradient of the
merged matrices, what the backward pass of one batch needs, and the task vectors of one matrix; all
others may be in the host's memory, or in files. θ_0's merged matrices are kept once more, on the
device on which the task vectors are handed out.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apgd.checkpoints import Weights
from apgd.errors import InputError
from apgd.machine import free_memory
from apgd.projective import ADAM_BETAS, ADAM_EPS, row_products
from apgd.strips import by_strips, sums_by_strips
from apgd.task_vectors import TaskVectors
from apgd.unlabelled import UnlabelledInputs

_FLOAT32 = 4


@dataclass(frozen=True, kw_only=True)
class AdaptationSettings:
    """How coefficients are learned."""

    coefficient: float
    """Every λ at the start."""
    iterations: int
    """Adam's steps."""
    learning_rate: float
    """Adam's."""
    batch_size: int
    """Inputs of every task in a step."""
    seed: int
    """Of the order of the inputs."""
    task_wise: bool
    """One coefficient per task for all matrices, instead of one per task and matrix."""


def adapted_coefficients(
    vectors: TaskVectors, inputs: UnlabelledInputs, settings: AdaptationSettings
) -> dict[str, Tensor]:
    """The coefficients after so many steps of Adam on the entropy.

    The model predicts as it does when it is not trained (no dropout), in float32. Afterwards it is
    as it was: weights, mode, which parameters require gradients; gradients are discarded.

    Args:
        vectors: the task vectors, and the base. They are read once per step (twice where
            `task_wise`), so `held` should have them in memory.
        inputs: what predictions are made of, for exactly the experts of `vectors`.
        settings: how coefficients are learned.

    Returns:
        By merged matrix, λ (N,) float32 on the CPU, in the order of the experts.

    Raises:
        InputError: where inputs or model do not fit the experts.
        FloatingPointError: where the entropy or a coefficient is not finite.
    """
    if set(inputs.inputs) != set(vectors.experts):
        raise InputError(
            f"there must be unlabelled inputs for exactly the experts {sorted(vectors.experts)}, "
            f"but got them for {sorted(inputs.inputs)}"
        )
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        _holding_base(inputs.model, vectors),
    ):
        adaptation = _Adaptation(vectors, inputs, settings)
        for step in range(settings.iterations):
            adaptation.step(step)
            if inputs.report is not None:
                inputs.report(step + 1, settings.iterations)
        return adaptation.result()


def held(vectors: TaskVectors) -> TaskVectors:
    """The same task vectors, kept where there is room: on their device, or else on the CPU.

    Room means half of the memory that is free, or that they are held there already. Where neither
    has it, they are read (and changed, where they are `Transformed`) anew each time, which takes
    long and changes no result.
    """
    entries = sum(math.prod(vectors.shape(name)) for name in vectors.names)
    for device in (vectors.device, torch.device("cpu")):
        room = free_memory(device) // 2
        if vectors.is_kept_on(device) or _FLOAT32 * entries * len(vectors) <= room:
            return vectors.keeping(device)
    return vectors


def weighted_sum(
    tau: Tensor,  # (N, m, n)
    coefficients: Tensor,  # (N,)
) -> Tensor:  # (m, n)
    """Σ_i λ_i τ_i."""
    weights = coefficients.to(tau.device)
    return by_strips(tau, lambda part, _rows: torch.einsum("i,imn->mn", weights, part))


def inner_products(
    tau: Tensor,  # (N, m, n)
    gradient: Tensor,  # (m, n)
) -> Tensor:  # (N,), float64
    """⟨G, τ_i⟩ of every task vector."""

    def of(part: Tensor, rows: slice) -> Tensor:
        return row_products(part, gradient[rows]).double().sum(dim=1)

    return sums_by_strips(tau, of)


class _Adaptation:
    """Coefficients, their optimizer, and the model that holds the merged weights."""

    def __init__(
        self, vectors: TaskVectors, inputs: UnlabelledInputs, settings: AdaptationSettings
    ) -> None:
        self._vectors, self._inputs, self._settings = vectors, inputs, settings
        self._merged = {name: inputs.model.get_parameter(name) for name in vectors.names}
        if len(set(self._merged.values())) < len(self._merged):
            raise InputError("merged matrices must not be tied in the model, but some of them are")
        self._device = next(iter(self._merged.values())).device
        # θ_0 is read once: the model's own matrices are overwritten at every step.
        self._base = {
            name: vectors.base[name].to(vectors.device, torch.float32) for name in vectors.names
        }
        start = torch.full((len(vectors),), settings.coefficient, device="cpu")
        self._groups = (
            {"": vectors.names} if settings.task_wise else {name: (name,) for name in vectors.names}
        )
        self._coefficients = {key: start.clone() for key in self._groups}
        self._optimizers = {
            key: torch.optim.Adam(
                [value], lr=settings.learning_rate, betas=ADAM_BETAS, eps=ADAM_EPS, foreach=False
            )
            for key, value in self._coefficients.items()
        }
        for name, parameter in self._merged.items():
            parameter.requires_grad_(True)
            self._write(name, self._tau(name), start)

    def step(self, step: int) -> None:
        """One batch of every task, and one step of every coefficient."""
        for name in sorted(self._inputs.inputs):  # not in the order in which experts were given
            rows = self._inputs.batch(name, step, self._settings.batch_size, self._settings.seed)
            entropy = self._inputs.heads[name].entropy(
                self._inputs.model, self._inputs.inputs[name], rows
            )
            if not math.isfinite(found := entropy.item()):
                raise FloatingPointError(
                    f"the entropy of predictions on {name} became {found} in step {step + 1} of "
                    f"{self._settings.iterations}; {self._remedy()}"
                )
            entropy.backward()  # type: ignore[no-untyped-call]
        for key, names in self._groups.items():
            gradient = torch.zeros(len(self._vectors), dtype=torch.float64, device="cpu")
            for name in names:
                tau = self._tau(name)
                gradient += self._gradient(name, tau)
            self._update(key, gradient, step)
            for name in names:
                # Task vectors of a group of one are still there.
                tau = tau if len(names) == 1 else self._tau(name)
                self._write(name, tau, self._coefficients[key])

    def result(self) -> dict[str, Tensor]:
        """By matrix, the coefficients."""
        return {
            name: self._coefficients[key].clone()
            for key, names in self._groups.items()
            for name in names
        }

    def _tau(self, name: str) -> Tensor:  # (N, m, n)
        return self._vectors[name].to(self._device)

    def _gradient(self, name: str, tau: Tensor) -> Tensor:  # (N,), float64
        """⟨∂L/∂θ_l, τ_i⟩; the matrix's gradient is used up."""
        parameter = self._merged[name]
        gradient, parameter.grad = parameter.grad, None
        if gradient is None:
            raise InputError(f"predictions must depend on every merged matrix, but not on {name}")
        return inner_products(tau, gradient.to(torch.float32)).cpu()

    def _update(self, key: str, gradient: Tensor, step: int) -> None:
        coefficients = self._coefficients[key]
        coefficients.grad = gradient.to(torch.float32)
        self._optimizers[key].step()
        if not coefficients.isfinite().all():
            raise FloatingPointError(
                f"the coefficients{f' of {key}' if key else ''} became {coefficients.tolist()} in "
                f"step {step + 1} of {self._settings.iterations}; {self._remedy()}"
            )

    @torch.no_grad()
    def _write(self, name: str, tau: Tensor, coefficients: Tensor) -> None:
        """θ_l = θ_0l + Σ_i λ_il τ_il, into the model."""
        theta = weighted_sum(tau, coefficients).add_(self._base[name].to(self._device))
        self._merged[name].copy_(theta)

    def _remedy(self) -> str:
        return (
            f"a smaller learning rate than {self._settings.learning_rate}, or smaller coefficients "
            f"at the start than {self._settings.coefficient}, would avoid that"
        )


@contextmanager
def _holding_base(model: nn.Module, vectors: TaskVectors) -> Iterator[None]:
    """The model with the base's weights, not being trained, no gradients; then as it was."""
    state, base = model.state_dict(), vectors.base
    _check_fits(state, base)
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    modes = {module: module.training for module in model.modules()}
    merged = set(vectors.names)
    before: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, tensor in state.items():
                value = base[name].to(tensor.device, tensor.dtype)
                # What is the base's anyway comes from there again.
                if not torch.equal(value, tensor):
                    before[name] = tensor.to("cpu", copy=True)
                    tensor.copy_(value)
        for parameter in flags:
            parameter.requires_grad_(False)
            parameter.grad = None
        model.eval()
        yield
    finally:
        with torch.no_grad():
            for name in merged - before.keys():
                state[name].copy_(base[name])
            for name, tensor in before.items():
                state[name].copy_(tensor)
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
            parameter.grad = None
        for module, mode in modes.items():
            module.training = mode


def _check_fits(state: Mapping[str, Tensor], base: Weights) -> None:
    for names, what in (
        (set(base.names()) - set(state), "lacks"),
        (set(state) - set(base.names()), "has in excess"),
    ):
        if names:
            raise InputError(
                f"the model that is adapted must have the base's parameters, but {what} "
                f"{len(names)} of them, the first being {min(names)}"
            )
    for name, tensor in state.items():
        if tuple(tensor.shape) != base.shape(name):
            raise InputError(
                f"the model that is adapted must have the base's shapes, but its {name} is "
                f"{tuple(tensor.shape)} where the base has {base.shape(name)}"
            )

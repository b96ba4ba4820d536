"""Calculated, not measured: the memory of a GPU that fine-tuning a suite's expert takes.

Weights, gradients and AdamW's two moments are float32; forward passes under autocast keep bfloat16
copies of the weights. What activations take is in `apgd.models.activations`.
"""

from dataclasses import dataclass

import torch

from apgd.shapes import model_bytes
from apgd.suites import FinetuneSettings, LoraSettings, Suite

CARD = 24 * 10**9
"""A GPU of the kind that the paper's authors used (RTX 4090, A10G, L4), in bytes."""
_RESERVE = 1_500_000_000  # CUDA's context, workspaces and what the allocator cannot use
_CPU_MODEL = 100 * 10**6  # of weights, in bytes
_GIGA = 10**9
_FLOAT, _HALF = 4, 2


@dataclass(frozen=True)
class Budget:
    """What fine-tuning one expert takes, in bytes."""

    suite: str
    weights: int
    """All parameters in float32."""
    gradients: int
    """Those of the trained parameters."""
    moments: int
    """AdamW's two for every trained parameter."""
    copies: int
    """bfloat16 copies of the weights."""
    activations: int
    """What is kept of all examples of a micro-batch for the backward pass."""
    micro_batch: int
    """Examples that go through the model at once."""
    batch_size: int
    """Examples of a step."""
    available: int
    """Memory of the GPU."""

    @property
    def total(self) -> int:
        """Everything, with a reserve of 1.5 GB."""
        parts = (self.weights, self.gradients, self.moments, self.copies, self.activations)
        return sum(parts) + _RESERVE

    @property
    def fits(self) -> bool:
        """Whether the GPU has that much."""
        return self.total <= self.available

    @property
    def sentence(self) -> str:
        """For people, before the training starts."""
        parts = " + ".join(
            f"{value / _GIGA:.1f} {what}"
            for what, value in (
                ("weights", self.weights),
                ("gradients", self.gradients),
                ("AdamW", self.moments),
                ("bf16 copies", self.copies),
                (f"activations of {self.micro_batch} examples", self.activations),
                ("reserve", _RESERVE),
            )
        )
        at_once = f"{self.micro_batch} of {self.batch_size} examples at once"
        verdict = f"fits {at_once}" if self.fits else "does not fit"
        return (
            f"fine-tuning for {self.suite}: {self.total / _GIGA:.1f} GB ({parts}), calculated, not "
            f"measured; {verdict} into {self.available / _GIGA:.0f} GB"
        )


def finetune_budget(suite: Suite, settings: FinetuneSettings, available: int = CARD) -> Budget:
    """The memory that fine-tuning takes with the largest micro-batch that should fit.

    Args:
        suite: whose model, at its real size.
        settings: batch size, LoRA, and whether activations are computed again.
        available: memory of the GPU in bytes.
    """
    with torch.device("meta"):
        state = suite.build_model().state_dict()
    every = sum(tensor.numel() for tensor in state.values())
    trained = (
        sum(tensor.numel() for name, tensor in state.items() if suite.is_trained(name))
        if settings.lora is None
        else _adapter_size(settings.lora, {n: t for n, t in state.items() if suite.is_trained(n)})
    )
    one = suite.activation_bytes(recomputed=settings.gradient_checkpointing)
    micro_batch = settings.batch_size
    while True:
        budget = Budget(
            suite=suite.name,
            weights=_FLOAT * every,
            gradients=_FLOAT * trained,
            moments=2 * _FLOAT * trained,
            copies=_HALF * every,
            activations=one * micro_batch,
            micro_batch=micro_batch,
            batch_size=settings.batch_size,
            available=available,
        )
        if budget.fits or micro_batch == 1:
            return budget
        micro_batch //= 2


def _adapter_size(lora: LoraSettings, state: dict[str, torch.Tensor]) -> int:
    """Parameters of an adapter beside the matrices that the settings name."""
    return sum(
        lora.rank * sum(tensor.shape)
        for name, tensor in state.items()
        if tensor.ndim == 2 and name.split(".")[-2] in lora.targets
    )


def wants_gpu(suite: Suite) -> bool:
    """Whether fine-tuning a suite's experts takes days without a GPU: models from 25 M weights."""
    return model_bytes(suite) > _CPU_MODEL

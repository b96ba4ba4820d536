"""One training: model, optimizer and step counter, saved and resumed as one thing."""

import math
import time
from collections.abc import Callable, Sized
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from apgd.batches import batch_indices
from apgd.checkpoints import load_sealed, save_sealed
from apgd.errors import InputError
from apgd.heads import MakesLoss
from apgd.machine import is_out_of_memory
from apgd.microbatches import MicroBatches
from apgd.suites import FinetuneSettings

Report = Callable[[int, int], None]
"""Called after every step with the steps done and their total."""

Rows = Callable[[int], np.ndarray]
"""The examples of a step, int64 (batch,); a function of the step alone."""

_MAX_SEED = 2**63


def learning_rate(step: int, settings: FinetuneSettings) -> float:
    """The learning rate of step 0, 1, ...: a linear warm-up, then what the schedule says."""
    warmup = round(settings.warmup * settings.steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def uses_bfloat16(device: torch.device) -> bool:
    """Whether forward passes are computed in bfloat16 there (weights stay in float32)."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def recompute_activations(model: nn.Module) -> None:
    """Have a model of transformers or open_clip keep only its blocks' inputs for the backward pass.

    Raises:
        InputError: for a model that has no such switch.
    """
    known: Any = model
    if hasattr(model, "gradient_checkpointing_enable"):
        known.gradient_checkpointing_enable({"use_reentrant": False})
    elif hasattr(model, "set_grad_checkpointing"):
        known.set_grad_checkpointing(True)
    else:
        raise InputError(
            f"gradient_checkpointing must be off for a {type(model).__name__}, which has no switch "
            f"for it"
        )


class Training:
    """AdamW on those parameters of a model that require gradients.

    Args:
        model: on its device.
        settings: steps, batches, learning rate.
        seed: of the examples' order, and of dropout.
        micro_batches: how much of a batch goes through the model at once; the whole of it where
            None.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: FinetuneSettings,
        seed: int,
        micro_batches: MicroBatches | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.seed = seed
        self.micro_batches = micro_batches or MicroBatches(settings.batch_size)
        self.step = 0
        self.seconds = 0.0
        """What earlier attempts took, up to their last checkpoint."""
        self.started = time.perf_counter()
        self.events: list[str] = []
        """Sentences on what went wrong so far, and what was done about it."""
        self.learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.AdamW(
            self.learning.values(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            # The default one needs another copy of the parameters at every step.
            fused=self.device.type == "cuda",
        )

    def run(
        self,
        head: MakesLoss,
        examples: Sized,
        checkpoint: Path,
        report: Report | None = None,
        rows: Rows | None = None,
    ) -> float:
        """All steps that are left; the last one's loss.

        Args:
            head: makes the loss.
            examples: what is learned.
            checkpoint: the file from which a killed training resumes.
            report: called after every step.
            rows: which examples a step sees; where None, see `batch_indices`.

        Raises:
            FloatingPointError: where the last loss is not finite.
            RuntimeError: where not even one example fits into memory.
            DiskFullError: where a checkpoint cannot be written.
        """
        gpus = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus):
            loss = self._steps(head, examples, checkpoint, report, rows or self._shuffled(examples))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the loss became {loss} at learning rate {self.settings.learning_rate}"
            )
        return loss

    def _shuffled(self, examples: Sized) -> Rows:
        size, count = self.settings.batch_size, len(examples)
        return lambda step: batch_indices(step, size, count, self.seed).numpy()

    def _steps(
        self,
        head: MakesLoss,
        examples: Sized,
        checkpoint: Path,
        report: Report | None,
        rows: Rows,
    ) -> float:
        settings = self.settings
        loss = torch.zeros(())
        self.model.train()
        if not self.optimizer.state:
            self._make_moments()
        while self.step < settings.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, settings)
            loss = self._gradients(head, examples, rows(self.step))
            nn.utils.clip_grad_norm_(self.learning.values(), settings.clip_norm)
            self.optimizer.step()
            self.step += 1
            if self.step % settings.checkpoint_every == 0 and self.step < settings.steps:
                self.save(checkpoint)
            if report is not None:
                report(self.step, settings.steps)
        return loss.item()

    def _make_moments(self) -> None:
        """AdamW's two means, as its first step would make them: batches are to fit beside them."""
        fused = self.device.type == "cuda"
        for parameter in self.learning.values():
            self.optimizer.state[parameter] = {
                "step": torch.zeros((), device=self.device if fused else "cpu"),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }

    def _gradients(self, head: MakesLoss, examples: Any, rows: np.ndarray) -> Tensor:
        """The loss of a batch, and its gradients in the parameters; smaller parts where need be."""
        while True:
            # Dropout too depends on seed and step alone.
            torch.manual_seed(((self.seed << 32) + self.step) % _MAX_SEED)
            self.optimizer.zero_grad(set_to_none=True)
            try:
                return self._accumulated(head, examples, rows)
            except RuntimeError as error:
                if not is_out_of_memory(error) or self.micro_batches.size == 1:
                    raise
                error.__traceback__ = None  # its frames hold what was computed so far
            self.optimizer.zero_grad(set_to_none=True)
            before = self.micro_batches.size
            self.micro_batches.halve()
            self.events.append(
                f"{before} examples at once did not fit into the memory of {self.device} at step "
                f"{self.step}; from there on {self.micro_batches.size} were taken at once"
            )
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _accumulated(self, head: MakesLoss, examples: Any, rows: np.ndarray) -> Tensor:
        """Gradients of the mean over a batch: each part's mean counts by the part's share."""
        total = torch.zeros((), device=self.device)
        for part in self.micro_batches.parts(rows):
            with self._autocast():
                loss = head.loss(self.model, examples, part) * (len(part) / len(rows))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    def _autocast(self) -> AbstractContextManager[Any]:
        if uses_bfloat16(self.device):
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def save(self, path: Path) -> None:
        """Write what `resume` reads: everything that training changes."""
        tensors = {f"model/{n}": t for n, t in self._changing().items()}
        for name, parameter in self.learning.items():
            for moment, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{moment}/{name}"] = value
        seconds = self.seconds + time.perf_counter() - self.started
        # In the same file as the weights, so that one read gives what belongs together.
        tensors["step"] = torch.tensor(self.step)
        tensors["seconds"] = torch.tensor(seconds, dtype=torch.float64)
        tensors["micro_batch"] = torch.tensor(self.micro_batches.size)
        save_sealed(path, tensors, {"events": self.events})

    def resume(self, path: Path) -> int:
        """Go on from a checkpoint where there is one; the step that training starts at.

        Raises:
            DamagedError: where the checkpoint is not what was written; nothing of it is used.
        """
        if not path.exists():
            return 0
        tensors, about = load_sealed(path, "the training checkpoint")
        self.events = list(cast(list[str], about["events"]))
        changed = {n.removeprefix("model/"): t for n, t in tensors.items() if n[:6] == "model/"}
        self.model.load_state_dict(self.model.state_dict() | changed)
        state = self.optimizer.state_dict()
        state["state"] = {
            index: {
                moment: tensors[f"optimizer/{moment}/{name}"]
                for moment in ("step", "exp_avg", "exp_avg_sq")
            }
            for index, name in enumerate(self.learning)
        }
        self.optimizer.load_state_dict(state)
        self.step = int(tensors["step"])
        self.seconds = float(tensors["seconds"])
        self.micro_batches.size = int(tensors["micro_batch"])
        return self.step

    def _changing(self) -> dict[str, Tensor]:
        """The state dict without frozen parameters."""
        frozen = {n for n, p in self.model.named_parameters() if not p.requires_grad}
        return {n: t for n, t in self.model.state_dict().items() if n not in frozen}

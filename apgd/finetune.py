"""One expert: fine-tuned from the base on one task, checkpointed, resumed, never made twice."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apgd.checkpoints import load_weights, save_weights
from apgd.data import Examples, Split
from apgd.errors import InputError
from apgd.files import content_key, sha256_file, write_json
from apgd.heads import Head
from apgd.source import library_versions, source_hash
from apgd.suites import FinetuneSettings, Suite

_WEIGHTS = "weights.safetensors"
_MANIFEST = "manifest.json"
_PROGRESS = "training.safetensors"

Report = Callable[[int, int], None]
"""Called after every step with the steps done and their total."""


@dataclass(frozen=True)
class ExpertSpec:
    """Everything that defines one expert; its content decides its folder."""

    suite: str
    """The name under which the suite's experts are stored; several suites may share it."""
    task: str
    seed: int
    """Seed of the order in which training examples are seen."""
    settings: FinetuneSettings
    base_sha256: str
    data_sha256: str
    """Hash of the task's training split."""
    head: str
    """Hash of the class names and templates behind the task's zero-shot head."""
    versions: tuple[tuple[str, str], ...]
    """Versions of the libraries that compute."""
    code: str
    """Hash of the source that trains experts."""

    @property
    def key(self) -> str:
        """Name of the expert's folder."""
        return f"{self.suite}-{self.task}-seed{self.seed}-{content_key(asdict(self))}"

    def folder(self, root: Path) -> Path:
        """The expert's folder below the folder of all experts."""
        return root / self.key


@dataclass(frozen=True)
class Expert:
    """A finished expert on disk."""

    weights: Path
    """The safetensors file with the whole model's state dict."""
    sha256: str
    """Hash of that file."""
    manifest: dict[str, Any]


def expert_spec(
    suite: Suite, task: str, seed: int, settings: FinetuneSettings, data_sha256: str
) -> ExpertSpec:
    """The specification of a task's expert as it would be trained here and now."""
    return ExpertSpec(
        suite=suite.stored_as,
        task=task,
        seed=seed,
        settings=settings,
        base_sha256=sha256_file(suite.base_path()),
        data_sha256=data_sha256,
        head=content_key([suite.task(task).class_names, suite.task(task).templates]),
        versions=library_versions("torch", "open_clip_torch", "numpy"),
        code=source_hash("apgd.finetune", "apgd.heads", "apgd.numerics", "apgd.models"),
    )


def find_expert(spec: ExpertSpec, root: Path) -> Expert | None:
    """The finished expert of this specification below `root`, or None.

    Raises:
        InputError: where its weights are not the ones that were written when it was finished, or
            its manifest is damaged.
    """
    folder = spec.folder(root)
    if not (folder / _MANIFEST).exists():
        return None
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        manifest = {**manifest, "sha256": str(manifest["sha256"])}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{folder / _MANIFEST} must be the manifest of an expert, but is not ({error!r}); "
            f"delete {folder} to train the expert again"
        ) from error
    weights = folder / _WEIGHTS
    found = sha256_file(weights) if weights.exists() else "nothing"
    if found != manifest["sha256"]:
        raise InputError(
            f"the weights of expert {spec.task} must have the hash {manifest['sha256'][:12]} that "
            f"their manifest names, but {weights} has {found[:12]}; delete {folder} to train the "
            f"expert again"
        )
    return Expert(weights, found, manifest)


def finetune(
    suite: Suite,
    spec: ExpertSpec,
    root: Path,
    *,
    device: str = "cpu",
    report: Report | None = None,
) -> Expert:
    """Fine-tune an expert, or return the finished one.

    What the suite says is trained learns, the head is frozen; AdamW with the settings' schedule
    (Wei et al., appendix, training details). Training writes a checkpoint every `checkpoint_every`
    steps and goes on from the newest one, with the same bits as if it had never stopped.

    Args:
        suite: where base model, data and head come from.
        spec: what is trained.
        root: folder of all experts.
        device: for example "cpu" or "cuda:0".
        report: called after every step.

    Raises:
        InputError: where a finished expert's file was damaged, or the base does not load.
    """
    finished = find_expert(spec, root)
    if finished is not None:
        return finished
    folder = spec.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    base = load_weights(suite.base_path(), f"the base of suite {suite.name}")
    model = suite.build_model()
    model.load_state_dict(base)
    head = suite.head(model, suite.task(spec.task)).to(device)
    model.to(device)
    run = _Training(model, spec.settings, suite.is_trained)
    resumed_at = run.resume(folder / _PROGRESS)
    run.started = started
    examples = suite.examples(spec.task, Split.TRAIN)
    last_loss = run.train(spec, head, examples, folder / _PROGRESS, report)
    weights = folder / _WEIGHTS
    save_weights(weights, model.state_dict(), {"suite": suite.name, "task": spec.task})
    manifest: dict[str, Any] = {
        "spec": asdict(spec),
        "sha256": sha256_file(weights),
        "device": device,
        "threads": torch.get_num_threads(),
        "resumed_at_step": resumed_at,
        "last_loss": last_loss,
        "seconds": run.seconds + time.perf_counter() - started,
        "tau_norm_ratio": _relative_change(suite, base, model.state_dict()),
    }
    write_json(folder / _MANIFEST, manifest)
    (folder / _PROGRESS).unlink(missing_ok=True)
    return Expert(weights, manifest["sha256"], manifest)


def learning_rate(step: int, settings: FinetuneSettings) -> float:
    """The learning rate of step 0, 1, ...: a linear warm-up, then what the schedule says."""
    warmup = round(settings.warmup * settings.steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    progress = (step - warmup) / max(1, settings.steps - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def batch_indices(step: int, batch_size: int, count: int, seed: int) -> Tensor:
    """The examples of one step: epoch after epoch, each in an order of its own.

    A function of its arguments alone, so that a resumed training sees what it would have seen.
    """
    per_epoch = max(1, count // batch_size)
    epoch, position = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    order = torch.randperm(count, generator=generator)
    return order[position * batch_size : (position + 1) * batch_size]


class _Training:
    """Model, optimizer and step counter, as one thing that can be saved and resumed."""

    def __init__(
        self, model: nn.Module, settings: FinetuneSettings, is_trained: Callable[[str], bool]
    ) -> None:
        self.model = model
        self.settings = settings
        self.step = 0
        self.seconds = 0.0
        """What earlier attempts took, up to their last checkpoint."""
        self.started = time.perf_counter()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_trained(name))
        self.learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.learning.values(),
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
        )

    def train(
        self,
        spec: ExpertSpec,
        head: Head,
        examples: Examples,
        checkpoint: Path,
        report: Report | None,
    ) -> float:
        settings = self.settings
        loss = torch.zeros(())
        self.model.train()
        while self.step < settings.steps:
            chosen = batch_indices(self.step, settings.batch_size, len(examples), spec.seed)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.step, settings)
            loss = head.loss(self.model, examples, chosen.numpy())
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.learning.values(), settings.clip_norm)
            self.optimizer.step()
            self.step += 1
            if self.step % settings.checkpoint_every == 0 and self.step < settings.steps:
                self.save(checkpoint)
            if report is not None:
                report(self.step, settings.steps)
        if not math.isfinite(loss.item()):
            raise FloatingPointError(
                f"the loss of expert {spec.task} became {loss.item()} at learning rate "
                f"{settings.learning_rate}"
            )
        return loss.item()

    def save(self, path: Path) -> None:
        tensors = {f"model/{n}": t for n, t in self.model.state_dict().items()}
        for name, parameter in self.learning.items():
            for moment, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{moment}/{name}"] = value
        seconds = self.seconds + time.perf_counter() - self.started
        # In the same file as the weights, so that one read gives what belongs together.
        tensors["step"] = torch.tensor(self.step)
        tensors["seconds"] = torch.tensor(seconds, dtype=torch.float64)
        save_weights(path, tensors)

    def resume(self, path: Path) -> int:
        """Go on from a checkpoint where there is one; the step that training starts at."""
        if not path.exists():
            return 0
        tensors = load_weights(path, "the training checkpoint")
        self.model.load_state_dict(
            {n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")}
        )
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
        return self.step


def _relative_change(suite: Suite, base: dict[str, Tensor], tuned: dict[str, Tensor]) -> float:
    """‖τ‖ / ‖θ_0‖ over the merged parameters."""
    names = [n for n, t in base.items() if suite.is_merged(n, t)]
    change = sum(float((tuned[n].cpu() - base[n]).square().sum()) for n in names)
    size = sum(float(base[n].square().sum()) for n in names)
    return math.sqrt(change / size)

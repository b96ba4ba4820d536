"""One model: fine-tuned from the base, checkpointed, resumed, never made twice.

It is an expert, which learns one task, or the model that learns all tasks together.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apgd.checkpoints import load_weights, save_weights
from apgd.data import Examples, Split
from apgd.errors import DamagedError, InputError
from apgd.files import (
    content_key,
    put_aside,
    read_sealed,
    sha256_file,
    sha256_path,
    write_sealed,
)
from apgd.heads import Head, MakesLoss
from apgd.lora import write_adapter
from apgd.machine import name_of
from apgd.microbatches import micro_batches
from apgd.mixture import (
    MULTI_TASK,
    Mixture,
    MixtureHead,
    joint_settings,
    joint_sha256,
    mixture_rows,
)
from apgd.source import library_versions, source_hash
from apgd.suites import FinetuneSettings, Suite
from apgd.task_vectors import TaskVectors
from apgd.training import Report, Rows, Training, recompute_activations, uses_bfloat16

_WEIGHTS = "weights.safetensors"
_ADAPTER = "adapter"
_MANIFEST = "manifest.json"
_PROGRESS = "training.safetensors"
_CODE = (
    "apgd.finetune",
    "apgd.training",
    "apgd.batches",
    "apgd.microbatches",
    "apgd.mixture",
    "apgd.lora",
    "apgd.heads",
    "apgd.numerics",
    "apgd.models",
)
_LIBRARIES = ("torch", "open_clip_torch", "transformers", "peft", "numpy")


@dataclass(frozen=True)
class ExpertSpec:
    """Everything that defines one expert; its content decides its folder."""

    suite: str
    """The name under which the suite's experts are stored; several suites may share it."""
    tasks: tuple[str, ...]
    """What it learns: an expert one task, the multi-task model several."""
    seed: int
    """Seed of the order in which training examples are seen."""
    settings: FinetuneSettings
    base_sha256: str
    data_sha256: str
    """Hash of the task's training split; of several, see `joint_sha256`."""
    head: str
    """Hash of the class names and templates behind the tasks' zero-shot heads."""
    versions: tuple[tuple[str, str], ...]
    """Versions of the libraries that compute."""
    code: str
    """Hash of the source that trains experts."""

    @property
    def task(self) -> str:
        """The expert's task, or `multi_task`."""
        return self.tasks[0] if len(self.tasks) == 1 else MULTI_TASK

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
    """The safetensors file with the whole model's state dict, or the folder of a LoRA adapter."""
    sha256: str
    """Hash of that file or folder."""
    manifest: dict[str, Any]


def expert_spec(
    suite: Suite, task: str, seed: int, settings: FinetuneSettings, data_sha256: str
) -> ExpertSpec:
    """The specification of a task's expert as it would be trained here and now."""
    return _spec(suite, (task,), seed, settings, data_sha256)


def joint_spec(
    suite: Suite, seed: int, settings: FinetuneSettings, data: Mapping[str, str]
) -> ExpertSpec:
    """The specification of the model that learns all of a suite's tasks together.

    Args:
        suite: whose tasks.
        seed: of the order in which training examples are seen.
        settings: how one expert is fine-tuned; `joint_settings` follow from it.
        data: hashes of the training splits by task.
    """
    tasks = tuple(task.name for task in suite.tasks)
    whole = joint_sha256([data[task] for task in tasks]) if len(tasks) > 1 else data[tasks[0]]
    return _spec(suite, tasks, seed, joint_settings(settings, len(tasks)), whole)


def _spec(
    suite: Suite,
    tasks: tuple[str, ...],
    seed: int,
    settings: FinetuneSettings,
    data_sha256: str,
) -> ExpertSpec:
    posed = [[suite.task(task).class_names, suite.task(task).templates] for task in tasks]
    return ExpertSpec(
        suite=suite.stored_as,
        tasks=tasks,
        seed=seed,
        settings=settings,
        base_sha256=sha256_file(suite.base_path()),
        data_sha256=data_sha256,
        head=content_key(posed),
        versions=library_versions(*_LIBRARIES),
        code=source_hash(*_CODE, *suite.code),
    )


def find_expert(spec: ExpertSpec, root: Path) -> Expert | None:
    """The finished expert of this specification below `root`, or None.

    Raises:
        DamagedError: where its weights are not the ones that were written when it was finished, or
            its manifest is damaged.
    """
    folder = spec.folder(root)
    if not (folder / _MANIFEST).exists():
        return None
    manifest = read_sealed(folder / _MANIFEST)
    expected = str(manifest.get("sha256"))
    weights = folder / (_WEIGHTS if spec.settings.lora is None else _ADAPTER)
    found = sha256_path(weights) if weights.exists() else "nothing"
    if found != expected:
        raise DamagedError(
            f"the weights of expert {spec.task} must have the hash {expected[:12]} that their "
            f"manifest names, but {weights} has {found[:12]}"
        )
    return Expert(weights, found, manifest)


def find_whole_expert(
    spec: ExpertSpec, root: Path, say: Callable[[str], None] = lambda _sentence: None
) -> Expert | None:
    """As `find_expert`, but a damaged expert is put aside, so that it can be trained again.

    Args:
        spec: the expert's specification.
        root: folder of all experts.
        say: called with a sentence on what was damaged, and where it went.
    """
    try:
        return find_expert(spec, root)
    except DamagedError as damage:
        aside = put_aside(spec.folder(root))
        say(f"{damage}; it was put aside as {aside.name} and is trained again")
        return None


def finetune(
    suite: Suite,
    spec: ExpertSpec,
    root: Path,
    *,
    device: str = "cpu",
    report: Report | None = None,
) -> Expert:
    """Fine-tune an expert or the multi-task model, or return the finished one.

    What the suite says is trained learns, or a LoRA adapter where the settings have one; the head
    is frozen. AdamW with the settings' schedule (Wei et al., appendix, training details). Training
    writes a checkpoint every `checkpoint_every` steps and goes on from the newest one, with the
    same bits as if it had never stopped.

    On a GPU, forward passes are computed in bfloat16 and weights kept in float32; a batch that does
    not fit its memory goes through the model in parts, which changes nothing but rounding (and
    what dropout draws). The manifest's `events` are sentences on what went wrong meanwhile.

    A damaged expert, and a damaged checkpoint of its training, are put aside, and training begins
    again.

    Args:
        suite: where base model, data and head come from.
        spec: what is trained.
        root: folder of all experts.
        device: for example "cpu" or "cuda:0".
        report: called after every step.

    Raises:
        InputError: where the base does not load, or base or examples of this machine are not those
            of the specification.
        DiskFullError: where a checkpoint or the expert cannot be written.
    """
    events: list[str] = []
    finished = find_whole_expert(spec, root, events.append)
    if finished is not None:
        return finished
    folder = spec.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    examples = _examples(suite, spec)
    _check_here(suite, spec, examples.sha256)
    model = suite.build_model()
    model.load_state_dict(load_weights(suite.base_path(), f"the base of suite {suite.name}"))
    heads = [suite.head(model, suite.task(task)).to(device) for task in spec.tasks]
    _choose_what_learns(model, suite, spec)
    model.to(device)
    parts = micro_batches(suite.stored_as, model, spec.settings, device)
    training = Training(model, spec.settings, spec.seed, parts)
    resumed_at = _resume(training, folder / _PROGRESS, events)
    training.events[:0] = events
    training.started = started
    head, rows = _lesson(spec, heads, examples)
    last_loss = training.run(head, examples, folder / _PROGRESS, report, rows)
    weights = _write(model, suite, spec, folder)
    vectors = TaskVectors(suite.base_path(), {"expert": weights}, suite.is_merged, keep=False)
    manifest: dict[str, Any] = {
        "spec": asdict(spec),
        "sha256": sha256_path(weights),
        "device": device,
        "machine": name_of(torch.device(device)),
        "precision": "bfloat16" if uses_bfloat16(torch.device(device)) else "float32",
        "micro_batch": parts.size,
        "threads": torch.get_num_threads(),
        "resumed_at_step": resumed_at,
        "last_loss": last_loss,
        "seconds": training.seconds + time.perf_counter() - started,
        "tau_norm_ratio": float(vectors.relative_norms()[0]),
        "events": training.events,
    }
    write_sealed(folder / _MANIFEST, manifest)
    (folder / _PROGRESS).unlink(missing_ok=True)
    return Expert(weights, manifest["sha256"], manifest)


def _resume(training: Training, checkpoint: Path, events: list[str]) -> int:
    """The step at which training goes on; the first where its checkpoint is damaged."""
    try:
        return training.resume(checkpoint)
    except DamagedError as damage:
        aside = put_aside(checkpoint)
        events.append(f"{damage}; it was put aside as {aside.name} and training began again")
        return 0


def _examples(suite: Suite, spec: ExpertSpec) -> Examples | Mixture:
    parts = [suite.examples(task, Split.TRAIN) for task in spec.tasks]
    return parts[0] if len(parts) == 1 else Mixture(tuple(parts))


def _lesson(
    spec: ExpertSpec, heads: Sequence[Head], examples: Examples | Mixture
) -> tuple[MakesLoss, Rows | None]:
    """What makes the loss, and which examples a step sees where there are several tasks."""
    if not isinstance(examples, Mixture):
        return heads[0], None
    size, counts = spec.settings.batch_size, [len(part) for part in examples.parts]
    return MixtureHead(tuple(heads)), lambda step: mixture_rows(step, size, counts, spec.seed)


def _check_here(suite: Suite, spec: ExpertSpec, data_sha256: str) -> None:
    """Raise InputError where this machine has another base or other data than was asked for."""
    for what, found, asked, remedy in (
        ("the base", sha256_file(suite.base_path()), spec.base_sha256, "the same hub cache"),
        (f"the training data of {spec.task}", data_sha256, spec.data_sha256,
         "the same revision of it (`apgd data prepare`)"),
    ):  # fmt: skip
        if found != asked:
            raise InputError(
                f"{what} must have the hash {asked[:12]} that the run began with, but on this "
                f"machine has {found[:12]}; give all machines {remedy}"
            )


def _choose_what_learns(model: nn.Module, suite: Suite, spec: ExpertSpec) -> None:
    """Freeze all but what is trained, which for a LoRA is put in first."""
    if spec.settings.lora is not None:
        from apgd.lora.training import attach  # PEFT takes seconds to import

        attach(model, spec.settings.lora, spec.seed, suite.is_trained)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(suite.is_trained(name))
    if spec.settings.gradient_checkpointing:
        recompute_activations(model)


def _write(model: nn.Module, suite: Suite, spec: ExpertSpec, folder: Path) -> Path:
    """Put the trained weights, or the adapter alone, into the expert's folder."""
    about = {"suite": suite.stored_as, "task": spec.task}
    lora = spec.settings.lora
    if lora is None:
        weights = folder / _WEIGHTS
        save_weights(weights, model.state_dict(), about)
        return weights
    from apgd.lora.training import factors_of

    adapter = folder / _ADAPTER
    write_adapter(
        adapter, factors_of(model), alpha=lora.alpha, targets=lora.targets, metadata=about
    )
    return adapter

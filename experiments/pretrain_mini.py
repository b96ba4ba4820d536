"""Make the base checkpoint of the suite `mini_vision`, by contrastive pretraining.

    python -m experiments.pretrain_mini --help

The base learns captions of pictures in the clean style, and of a few in each task's own, so that it
is clearly above chance on every task and clearly below an expert. Where to stop was decided on the
validation splits alone, before any merging: a mean zero-shot accuracy of about 50.
"""

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from open_clip.model import CLIP
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from apgd.data import ImageExamples, Split, Task
from apgd.data.rendering import (
    AERIAL,
    CLEAN,
    DIGITS,
    IMITATION,
    IMITATIONS,
    LANDCOVER,
    LETTERS,
    SCENES,
    SHAPES,
    SHIFTED,
    SIGNS,
    TEXTURES,
    VEHICLES,
    Style,
    Subject,
    render,
)
from apgd.errors import InputError
from apgd.files import sha256_file
from apgd.heads import judge
from apgd.models.clip import mini_clip, preprocess
from apgd.models.tokenizer import WordTokenizer
from apgd.suites.mini_vision import MINI_VISION

# Glyphs and fine shapes need more pictures than scenes; none of land cover are in false colours.
_CLEAN_PICTURES: dict[str, tuple[Subject, Style, int]] = {
    "scenes": (SCENES, CLEAN, 3500),
    "vehicles": (VEHICLES, CLEAN, 6000),
    "aerial": (AERIAL, CLEAN, 5500),
    "landcover": (LANDCOVER, CLEAN, 2500),
    "numerals": (DIGITS, CLEAN, 8500),
    "signs": (SIGNS, CLEAN, 6500),
    "handwriting": (IMITATIONS, IMITATION, 2500),
    "textures": (TEXTURES, CLEAN, 6500),
    "letters": (LETTERS, CLEAN, 7500),
    "shapes": (SHAPES, CLEAN, 4500),
}
_SHOWN_SHIFTED = (
    "scenes",
    "vehicles",
    "aerial",
    "numerals",
    "signs",
    "textures",
    "letters",
    "shapes",
)


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How the base is trained."""

    out: Path
    """Where to write the checkpoint (safetensors)."""
    steps: int = 900
    """Optimizer steps."""
    batch_size: int = 128
    """Pictures per step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW; a cosine to zero follows the warm-up."""
    warmup: int = 100
    """Steps over which the learning rate rises."""
    weight_decay: float = 0.1
    """AdamW's decoupled weight decay of matrices."""
    shifted_pictures: int = 100
    """Pictures per task in the task's own style."""
    seed: int = 7
    """Decides pictures, order, weights and noise."""
    threads: int = 2
    """Processor threads."""
    report_every: int = 250
    """Steps between reports of the zero-shot accuracy on the validation splits."""

    def __post_init__(self) -> None:
        for field in ("steps", "batch_size", "learning_rate", "threads", "report_every"):
            if getattr(self, field) <= 0:
                raise InputError(f"{field} must be positive, but is {getattr(self, field)}")
        if not 0 <= self.warmup < self.steps:
            raise InputError(f"warmup must lie in [0, steps), but is {self.warmup}")


@dataclass(frozen=True)
class Captioned:
    """Pictures, and for each the numbers of its captions' and its own class."""

    images: np.ndarray
    """uint8 (n, 32, 32, 3)."""
    classes: Tensor
    """int64 (n,): rows of `captions`."""
    meanings: Tensor
    """int64 (n,): equal where pictures show the same thing, whatever the caption says around it."""
    captions: Tensor
    """int64 (classes, templates, context): token numbers."""


def main(pretraining: Pretraining) -> None:
    """Render, train, write."""
    torch.manual_seed(pretraining.seed)
    torch.set_num_threads(pretraining.threads)
    started = time.perf_counter()
    data = captioned(pretraining, MINI_VISION.tokenizer)
    print(f"{len(data.images)} pictures rendered in {time.perf_counter() - started:.0f} s")
    model = mini_clip(MINI_VISION.tokenizer.vocab_size)

    def report(step: int, loss: float) -> None:
        accuracies = [validation_accuracy(model, task) for task in MINI_VISION.tasks]
        each = " ".join(f"{100 * accuracy:.0f}" for accuracy in accuracies)
        print(
            f"step {step:5d}  {time.perf_counter() - started:5.0f} s  loss {loss:.3f}  "
            f"mean zero-shot {100 * sum(accuracies) / len(accuracies):.1f}  ({each})",
            flush=True,
        )

    train(model, data, pretraining, report)
    write(model, pretraining.out)
    size, sha256 = pretraining.out.stat().st_size, sha256_file(pretraining.out)
    print(f"wrote {pretraining.out}: {size / 2**20:.2f} MiB, SHA-256 {sha256}")


def captioned(pretraining: Pretraining, tokenizer: WordTokenizer) -> Captioned:
    """All pictures to learn from, with their captions."""
    parts: list[tuple[Task, Subject, ImageExamples]] = []
    for number, (name, (subject, style, count)) in enumerate(_CLEAN_PICTURES.items()):
        rng = np.random.default_rng([pretraining.seed, number])
        task = MINI_VISION.task(name)
        parts.append((task, subject, render(subject, style, count, rng)))
        if name in _SHOWN_SHIFTED:
            shifted = render(subject, SHIFTED[name], pretraining.shifted_pictures, rng)
            parts.append((task, subject, shifted))

    rows: dict[tuple[str, int], int] = {}
    meanings: dict[tuple[tuple[str, ...], int], int] = {}
    captions: list[Tensor] = []
    row_of: list[int] = []
    meaning_of: list[int] = []
    for task, subject, examples in parts:
        for label in examples.labels.tolist():
            if (task.name, label) not in rows:
                rows[task.name, label] = len(rows)
                name = task.class_names[label]
                captions.append(tokenizer([text.format(name) for text in task.templates]))
            row_of.append(rows[task.name, label])
            meaning_of.append(meanings.setdefault((subject.class_names, label), len(meanings)))
    return Captioned(
        np.concatenate([examples.images for _, _, examples in parts]),
        torch.tensor(row_of),
        torch.tensor(meaning_of),
        torch.stack(captions),
    )


def train(
    model: CLIP,
    data: Captioned,
    pretraining: Pretraining,
    report: Callable[[int, float], None],
) -> None:
    """Contrastive training in place; a picture's target is every caption of the same meaning."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": pretraining.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=pretraining.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate(step, pretraining.warmup, pretraining.steps)
    )
    rng = np.random.default_rng([pretraining.seed, 1000])
    order = np.empty(0, dtype=np.int64)
    model.train()
    for step in range(1, pretraining.steps + 1):
        if len(order) < pretraining.batch_size:
            order = rng.permutation(len(data.images))
        batch, order = order[: pretraining.batch_size], order[pretraining.batch_size :]
        picked = torch.from_numpy(batch)
        images = _augmented(preprocess(data.images[batch]))
        classes = data.classes[picked]
        template = torch.randint(data.captions.shape[1], (len(batch),))
        # Captions repeat within a batch; each is read once.
        texts, again = torch.unique(data.captions[classes, template], dim=0, return_inverse=True)
        seen = model.encode_image(images, normalize=True)  # (batch, 64)
        read = model.encode_text(texts, normalize=True)[again]  # (batch, 64)
        logits = model.logit_scale.exp() * seen @ read.T
        same = (data.meanings[picked][:, None] == data.meanings[picked][None, :]).float()
        targets = same / same.sum(dim=1, keepdim=True)
        loss = (cross_entropy(logits, targets) + cross_entropy(logits.T, targets)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100.0))
        if step % pretraining.report_every == 0 or step == pretraining.steps:
            model.eval()
            report(step, loss.item())
            model.train()
    model.eval()


def _rate(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _augmented(images: Tensor) -> Tensor:
    """Another gain and more noise for each picture: (n, 3, 32, 32)."""
    n = len(images)
    gain = 0.75 + 0.4 * torch.rand(n, 1, 1, 1)
    noise = 0.25 * torch.rand(n, 1, 1, 1) * torch.randn(images.shape)
    return gain * images + noise


def validation_accuracy(model: CLIP, task: Task) -> float:
    """Share of a task's validation pictures that the zero-shot head names rightly."""
    examples = MINI_VISION.examples(task.name, Split.VALIDATION)
    return float(judge(model, MINI_VISION.head(model, task), examples).mean())


def write(model: CLIP, out: Path) -> None:
    """Write all parameters in float32; `out` is complete or as it was."""
    out.parent.mkdir(parents=True, exist_ok=True)
    state = {
        name: value.detach().float().contiguous() for name, value in model.state_dict().items()
    }
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        save_file(state, temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    try:
        main(tyro.cli(Pretraining, description=__doc__))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

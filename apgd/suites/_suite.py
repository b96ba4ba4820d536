"""The shape of a suite."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from torch import Tensor, nn

from apgd.checkpoints import load_weights, save_weights
from apgd.data import Examples, Split, Task
from apgd.data.holdout import split_size
from apgd.data.hub import HubDataset
from apgd.errors import InputError
from apgd.heads import Head
from apgd.methods import SUFFIX, Value, put_on
from apgd.published import Family


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Fine-tuning of a low-rank change beside frozen matrices (Hu et al., 2021)."""

    rank: int
    """Rank of the change of each matrix."""
    alpha: float
    """The change is alpha / rank times B A."""
    targets: tuple[str, ...]
    """Last parts of the names of the linear layers that get one, for example `q` and `v`."""
    dropout: float = 0.0
    """Share of the inputs of A that are dropped in training."""


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How one expert is fine-tuned from the base."""

    steps: int
    """Optimizer steps."""
    batch_size: int
    """Examples per step."""
    learning_rate: float
    """Peak learning rate of AdamW."""
    weight_decay: float = 0.1
    """AdamW's decoupled weight decay."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up, half a cosine to zero, or the peak all along."""
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises linearly."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    lora: LoraSettings | None = None
    """Low-rank fine-tuning; all trained parameters in full where None."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    checkpoint_every: int = 50
    """Steps between checkpoints from which a killed expert resumes."""


class Suite(ABC):
    """A base model, the tasks that its experts learn, and how they are judged."""

    name: str
    """Identifier on the command line."""
    title: str
    """One line for people."""
    tasks: tuple[Task, ...]
    """Tasks with an expert each, in the order in which tables show them."""
    unseen: tuple[Task, ...] = ()
    """Tasks that no expert sees."""
    corrupted: tuple[str, ...] = ()
    """Names of the tasks whose test images are also shown corrupted."""
    corruptions: tuple[str, ...] = ()
    """Kinds of corruption."""
    corruption_limit: int | None = None
    """Only the first so many test examples of a task are shown corrupted; all where None."""
    finetune: FinetuneSettings
    """How this suite's experts are fine-tuned."""
    published: Mapping[str, Mapping[str, Value]] = MappingProxyType({})
    """By method, the published settings for this kind of model where they differ from the
    defaults of the method's parameters."""
    shortened: Mapping[str, Mapping[str, Value]] = MappingProxyType({})
    """By method, settings that make it quick where the published ones take too long; they take the
    published ones' place."""
    published_suite: str | None = None
    """The suite whose published results are shown beside a run's: this one, or for an embedded
    suite the one that it stands for."""
    published_experts: Mapping[str, str] = MappingProxyType({})
    """By task, the repository on the model hub that holds a published expert."""
    family: Family | None = None
    """The published family that experts fine-tuned by this suite's settings belong to."""
    image_size: int | None = None
    """Pixels per side of the images that the model takes; None for a suite of texts."""

    def settings_of(self, method: str) -> dict[str, Value]:
        """The settings of a method for this suite, where they are not its defaults.

        Of a method that APGD comes before: its own, and those that DOGE TA has of APGD.
        """
        name = method.removesuffix(SUFFIX)
        own = {**self.published.get(name, {}), **self.shortened.get(name, {})}
        if not method.endswith(SUFFIX):
            return own
        return {**own, **put_on(dict(self.published.get("doge_ta", {})))}

    @property
    def stored_as(self) -> str:
        """The name under which experts are stored; suites that share experts share it."""
        return self.name

    @property
    def code(self) -> tuple[str, ...]:
        """The modules whose source decides, beside the library's, what experts are trained on."""
        return (type(self).__module__,)

    @abstractmethod
    def base_path(self) -> Path:
        """The base model's weights, a safetensors file."""

    @abstractmethod
    def build_model(self) -> nn.Module:
        """A fresh model of the base's architecture, weights not yet loaded."""

    @abstractmethod
    def head(self, model: nn.Module, task: Task) -> Head:
        """A task's end of the model.

        Args:
            model: the suite's model with the base's weights.
            task: seen or unseen.
        """

    @abstractmethod
    def is_trained(self, name: str) -> bool:
        """Whether fine-tuning changes the parameter `name`."""

    @abstractmethod
    def is_merged(self, name: str, tensor: Tensor) -> bool:
        """Whether the parameter `name` is one of the matrices that are merged."""

    @abstractmethod
    def examples(self, task: str, split: Split) -> Examples:
        """The examples of a task's split.

        Raises:
            InputError: for an unknown task or split, or where the data are not what was pinned.
        """

    @abstractmethod
    def has_examples(self, task: str, split: Split) -> bool:
        """Whether a split is ready on this machine, so that reading it is quick."""

    def activation_bytes(self, *, recomputed: bool) -> int:  # noqa: ARG002 - little, either way
        """What fine-tuning keeps of one example for the backward pass; 0 for a toy.

        Args:
            recomputed: as with the settings' `gradient_checkpointing`.
        """
        return 0

    def forward_flops(self) -> float | None:
        """Floating-point operations of one example's forward pass; None where nobody counted."""
        return None

    def has_base(self) -> bool:
        """Whether `base_path` has nothing to fetch or to convert."""
        return self.base_path().exists()

    def example_count(self, task: str, split: Split) -> int | None:
        """How many examples a split has, as far as that is known without fetching it.

        Raises:
            InputError: for an unknown task.
        """
        dataset = self.datasets().get(self.task(task).name)
        return None if dataset is None else split_size(dataset, split)

    def published_expert(self, task: str) -> Path:
        """A published expert, downloaded if need be; a file or folder for `import_expert`.

        Raises:
            InputError: where it cannot be had, or nobody has published one.
        """
        raise InputError(f"suite {self.name} has no published experts, but {task} was asked for")

    def import_expert(self, source: Path, folder: Path) -> Path:
        """Bring an expert from elsewhere into this suite's own format.

        Args:
            source: a file or folder in one of the formats that its kind of model comes in.
            folder: exists; what is made goes into it.

        Returns:
            The safetensors file in `folder`.

        Raises:
            InputError: where it is not an expert of this suite's model.
        """
        made = folder / "weights.safetensors"
        save_weights(made, load_weights(source, f"the expert {source}"), {"suite": self.stored_as})
        return made

    def datasets(self) -> Mapping[str, HubDataset]:
        """By task, the data set that has to be fetched; none where examples are made here."""
        return {}

    def corrupted_examples(self, task: str, corruption: str, count: int) -> Examples:
        """The first `count` test examples of a task, under a corruption.

        Raises:
            InputError: for a task that is not among `corrupted`, or an unknown corruption.
        """
        raise InputError(
            f"suite {self.name} shows nothing corrupted, but {count} examples of {task} under "
            f"{corruption} were asked for"
        )

    def task(self, name: str) -> Task:
        """The task called `name`, seen or unseen."""
        for task in (*self.tasks, *self.unseen):
            if task.name == name:
                return task
        known = ", ".join(task.name for task in (*self.tasks, *self.unseen))
        raise InputError(f"unknown task {name!r} of suite {self.name}; known are: {known}")

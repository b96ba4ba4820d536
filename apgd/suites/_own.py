"""A user's own tasks beside those of a suite."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from apgd.data import Examples, ImageExamples, Split, Task
from apgd.data.examples import image_examples, is_ready
from apgd.data.hub import HubDataset
from apgd.data.prepared import prepare
from apgd.errors import InputError
from apgd.heads import Head
from apgd.registry import Registry
from apgd.suites._suite import Suite

_NAME = r"[a-z0-9][a-z0-9_.-]{0,63}"
_SPEC = re.compile(rf"\+(?={_NAME}=/)")
_TEMPLATES = ("a photo of a {}",)
_KEYS = ("data", "title", "class_names", "templates", "image_column", "label_column")


@dataclass(frozen=True, kw_only=True)
class OwnTask:
    """A task of a user, and where its images are."""

    task: Task
    dataset: HubDataset


class WithOwnTasks(Suite):
    """A suite of images whose experts are joined by those of a user's own tasks.

    Args:
        inner: the suite.
        own: the user's tasks.
        name: identifier from which the same suite is made again; see `Suites`.

    Raises:
        InputError: where a task's name is taken, or the suite is not one of images.
    """

    def __init__(self, inner: Suite, own: tuple[OwnTask, ...], name: str) -> None:
        if inner.image_size is None:
            raise InputError(
                f"own tasks need a suite of images, but {inner.name} is {inner.title!r}"
            )
        taken = {task.name for task in (*inner.tasks, *inner.unseen)}
        for one in own:
            if one.task.name in taken:
                raise InputError(
                    f"the name of an own task must be new, but suite {inner.name} has a task "
                    f"{one.task.name!r}"
                )
            taken.add(one.task.name)
        self._inner = inner
        self._own = {one.task.name: one for one in own}
        self._size = inner.image_size
        self.name = name
        added = ", ".join(one.task.title for one in own)
        self.title = f"{inner.title}, with {added}"
        self.tasks = (*inner.tasks, *(one.task for one in own))
        self.unseen = inner.unseen
        self.corrupted = inner.corrupted
        self.corruptions = inner.corruptions
        self.corruption_limit = inner.corruption_limit
        self.finetune = inner.finetune
        self.published = inner.published
        self.image_size = inner.image_size
        self.published_experts = inner.published_experts

    @property
    def stored_as(self) -> str:
        """The inner suite's, whose experts are the same."""
        return self._inner.stored_as

    @property
    def code(self) -> tuple[str, ...]:
        """The inner suite's, whose experts are the same."""
        return self._inner.code

    def base_path(self) -> Path:
        """The inner suite's base."""
        return self._inner.base_path()

    def build_model(self) -> nn.Module:
        """The inner suite's model."""
        return self._inner.build_model()

    def head(self, model: nn.Module, task: Task) -> Head:
        """The inner suite's kind of head, for any task."""
        return self._inner.head(model, task)

    def is_trained(self, name: str) -> bool:
        """As the inner suite."""
        return self._inner.is_trained(name)

    def is_merged(self, name: str, tensor: Tensor) -> bool:
        """As the inner suite."""
        return self._inner.is_merged(name, tensor)

    def published_expert(self, task: str) -> Path:
        """The inner suite's; own tasks have none."""
        if task in self._own:
            return super().published_expert(task)
        return self._inner.published_expert(task)

    def import_expert(self, source: Path, folder: Path) -> Path:
        """As the inner suite: an own task's expert comes in the same formats."""
        return self._inner.import_expert(source, folder)

    def datasets(self) -> Mapping[str, HubDataset]:
        """Those of the inner suite, and the user's."""
        own = {name: one.dataset for name, one in self._own.items()}
        return MappingProxyType({**self._inner.datasets(), **own})

    def examples(self, task: str, split: Split) -> Examples:
        """The examples of a task's split."""
        own = self._own.get(self.task(task).name)
        if own is None:
            return self._inner.examples(task, split)
        prepare(own.dataset)
        found = image_examples(own.dataset, split, size=self._size)
        return ImageExamples(found.images, found.labels, found.sha256)

    def has_examples(self, task: str, split: Split) -> bool:
        """Whether a split is ready on this machine."""
        own = self._own.get(self.task(task).name)
        if own is None:
            return self._inner.has_examples(task, split)
        return is_ready(own.dataset, split, size=self._size)

    def activation_bytes(self, *, recomputed: bool) -> int:
        """As the inner suite."""
        return self._inner.activation_bytes(recomputed=recomputed)

    def forward_flops(self) -> float | None:
        """As the inner suite."""
        return self._inner.forward_flops()

    def has_base(self) -> bool:
        """As the inner suite."""
        return self._inner.has_base()

    def example_count(self, task: str, split: Split) -> int | None:
        """As the inner suite; of own tasks, which have to be read for it, none is known."""
        if self.task(task).name in self._own:
            return None
        return self._inner.example_count(task, split)

    def corrupted_examples(self, task: str, corruption: str, count: int) -> Examples:
        """As the inner suite; own tasks are not shown corrupted."""
        return self._inner.corrupted_examples(task, corruption, count)


def own_task(name: str, path: Path) -> OwnTask:
    """A task made of a folder of images with a folder per class, a Parquet file, or a description.

    Args:
        name: the task's identifier.
        path: `<class>/<image>`, `train|test/<class>/<image>`, a Parquet file with the columns
            `image` and `label`, or a JSON file with the key `data` (one of these, relative to the
            file) and any of `title`, `class_names` (in label order), `templates` (each with one
            `{}`), `image_column`, `label_column`.

    Raises:
        InputError: where the name cannot be one, or nothing of the kind is at `path`.
    """
    _check_name(name)
    if not path.exists():
        raise InputError(f"task {name} must exist, but {path} does not")
    from apgd.data.origins.local import class_names_in  # which imports the library datasets

    described = _described(path) if path.suffix == ".json" else {"data": str(path)}
    data = (path.parent / str(described["data"])).resolve()
    label = str(described.get("label_column", "label"))
    folders = class_names_in(data, label)
    class_names = tuple(described.get("class_names", (f.replace("_", " ") for f in folders)))
    templates = tuple(described.get("templates", _TEMPLATES))
    if len(class_names) != len(folders):
        raise InputError(
            f"{path} must name the {len(folders)} classes of {data}, but names {len(class_names)}"
        )
    for template in templates:
        if str(template).count("{}") != 1:
            raise InputError(f"a template must hold {{}} once, but got {template!r} in {path}")
    return OwnTask(
        task=Task(
            name=name,
            title=str(described.get("title", name.capitalize())),
            stands_for=None,
            class_names=class_names,
            templates=templates,
        ),
        dataset=HubDataset(
            name=name,
            local=data,
            splits=MappingProxyType({Split.TRAIN: "train", Split.TEST: "test"}),
            image_column=str(described.get("image_column", "image")),
            label_column=label,
            class_names=folders,
        ),
    )


def _check_name(name: str) -> None:
    if not re.fullmatch(_NAME, name):
        raise InputError(
            f"a task's name must be lower-case letters, digits, and any of _ . -, at most 64, "
            f"but got {name!r}"
        )


def _described(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} must be JSON, but is not: {error}") from error
    if not isinstance(content, dict) or "data" not in content or set(content) - set(_KEYS):
        raise InputError(
            f"{path} must be a JSON object with the key data and any of {', '.join(_KEYS[1:])}, "
            f"but has {', '.join(content) if isinstance(content, dict) else content!r}"
        )
    return content


def with_tasks(suite: str, tasks: tuple[str, ...]) -> str:
    """The name under which `Suites` has a suite with own tasks.

    Args:
        suite: name of a suite.
        tasks: own tasks, each `NAME=PATH`.

    Raises:
        InputError: where a task is not written like that.
    """
    for task in tasks:
        name, separator, path = task.partition("=")
        if not (separator and path):
            raise InputError(f"--task must be NAME=PATH, but got {task!r}")
        _check_name(name)
        if _SPEC.search(str(Path(path).resolve())):
            raise InputError(f"the path of a task must not hold +NAME=/, but got {task!r}")
        suite += f"+{name}={Path(path).resolve()}"
    return suite


class Suites(Registry[Suite]):
    """The known suites; a name made by `with_tasks` gives one with own tasks."""

    def __getitem__(self, name: str) -> Suite:
        """The suite of that name.

        Raises:
            InputError: for an unknown suite, or a task that cannot be made.
        """
        inner, *tasks = _SPEC.split(name)
        if not tasks:
            return super().__getitem__(name)
        if name not in self._extended:
            parts = (task.partition("=") for task in tasks)
            own = tuple(own_task(task, Path(path)) for task, _, path in parts)
            self._extended[name] = WithOwnTasks(self[inner], own, name)
        return self._extended[name]

    @cached_property
    def _extended(self) -> dict[str, Suite]:
        return {}

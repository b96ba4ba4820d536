"""What a data set of the hub, or a user's own, must look like before a task is made of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from apgd.data.tasks import Split
from apgd.errors import InputError

IMAGE = "image"
"""Column of a prepared file with an image's bytes as they came, never encoded anew."""
LABEL = "label"
"""Column of a prepared file with the labels."""


@dataclass(frozen=True, kw_only=True)
class HubDataset:
    """Where a task's examples come from, and what is known about them.

    A data set has images or texts, never both. One without `hub_id` is the user's own and lies at
    `local`; it is never downloaded.
    """

    name: str
    """The task's name: in messages, on the command line, and in folder names."""
    hub_id: str | None = None
    """`namespace/name` on the hub."""
    config: str | None = None
    """Which of the data set's configurations."""
    revision: str | None = None
    """Commit, tag or branch; the newest commit of the main branch where None."""
    local: Path | None = None
    """A local copy that is taken instead of a download."""
    splits: Mapping[Split, str]
    """The data set's own names of the splits from which TRAIN and TEST are taken. A part of the
    former is our VALIDATION."""
    corruptions: tuple[str, ...] = ()
    """Corruptions of the test images, each a split of that name."""
    image_column: str | None = None
    """Column with the images."""
    text_columns: tuple[str, ...] = ()
    """Columns with the texts, in the order in which a prompt shows them."""
    label_column: str = "label"
    """Column with the labels."""
    class_names: tuple[str, ...] | None = None
    """One name per class, in label order; None where the label is a number in `label_range`."""
    label_range: tuple[float, float] | None = None
    """Smallest and largest label where labels are no classes."""
    rows: Mapping[str, int] = field(default_factory=dict)
    """Known numbers of rows by the data set's split name; unknown ones are not there."""

    def __post_init__(self) -> None:
        if (self.hub_id is None) == (self.local is None):
            raise InputError(
                f"data set {self.name} must have either a hub id or a local folder, "
                f"but got {self.hub_id} and {self.local}"
            )
        if (self.image_column is None) == (not self.text_columns):
            raise InputError(
                f"data set {self.name} must have either an image column or text columns, "
                f"but got {self.image_column} and {self.text_columns}"
            )
        if (self.class_names is None) == (self.label_range is None):
            raise InputError(
                f"data set {self.name} must have either class names or a range of labels, "
                f"but got {self.class_names} and {self.label_range}"
            )
        if not set(self.splits) <= {Split.TRAIN, Split.TEST} or Split.TEST not in self.splits:
            raise InputError(
                f"data set {self.name} must name its test split and may name its train split, "
                f"but names {', '.join(self.splits) or 'none'}"
            )

    @property
    def sources(self) -> tuple[str, ...]:
        """The data set's own names of all splits that are read."""
        return tuple(dict.fromkeys((*self.splits.values(), *self.corruptions)))

    @property
    def classes(self) -> int | None:
        """How many classes there are; None where labels are no classes."""
        return None if self.class_names is None else len(self.class_names)

    def without_corruptions(self) -> "HubDataset":
        """The same data set, of which only train and test are needed."""
        return replace(self, corruptions=())


def hub_dataset(name: str, entry: Mapping[str, Any]) -> HubDataset:
    """A data set from a JSON object whose keys are the fields of `HubDataset`.

    Raises:
        InputError: for an unknown key, a missing one, or values that do not fit each other.
    """
    values = dict(entry)
    try:
        values["splits"] = MappingProxyType(
            {Split(ours): theirs for ours, theirs in values["splits"].items()}
        )
        for key in ("corruptions", "text_columns", "class_names", "label_range"):
            if values.get(key) is not None:
                values[key] = tuple(values[key])
        if "local" in values:
            values["local"] = Path(values["local"])
        values["rows"] = MappingProxyType(dict(values.get("rows", {})))
        return HubDataset(name=name, **values)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"the entry of data set {name} must have the fields of HubDataset, but: {error}"
        ) from error

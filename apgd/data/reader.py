"""The door through which merges are scored, so that no score reads a split that it must not."""

from collections import Counter
from collections.abc import Iterable
from typing import Protocol

from apgd.data.tasks import Examples, Split, Unlabelled


class LeakError(RuntimeError):
    """A stage asked for a split that it must not see, for example a search for the test split."""


class ExampleSource(Protocol):
    """Whatever has examples by task and split; every suite does."""

    def examples(self, task: str, split: Split) -> Examples:
        """The examples of a task's split."""


class SplitReader:
    """Examples of the allowed splits, and a count of how often each was read.

    Args:
        source: where examples come from.
        allowed: the splits that may be read.
        limit: only the first so many examples of each split, all where None.
        share: only so large a part of those; see `Examples.part`.
    """

    def __init__(
        self,
        source: ExampleSource,
        allowed: Iterable[Split],
        limit: int | None = None,
        share: float = 1.0,
    ) -> None:
        self._source = source
        self._allowed = frozenset(allowed)
        self._limit = limit
        self.share = share
        """The part of the examples that is read."""
        self.reads: Counter[str] = Counter()
        """How often examples were read, by split; `SPLIT, unlabelled` where only their inputs."""

    def whole(self) -> "SplitReader":
        """The same without the share; reads through it count here too."""
        other = SplitReader(self._source, self._allowed, self._limit)
        other.reads = self.reads
        return other

    def examples(self, task: str, split: Split) -> Examples:
        """The examples of a task's split.

        Raises:
            LeakError: where the split is not among the allowed ones.
        """
        return self._read(task, split, split)

    def inputs(self, task: str, split: Split) -> Unlabelled:
        """The inputs of a task's split, without labels.

        Raises:
            LeakError: where the split is not among the allowed ones.
        """
        return self._read(task, split, f"{split}, unlabelled").unlabelled()

    def _read(self, task: str, split: Split, counted_as: str) -> Examples:
        if split not in self._allowed:
            allowed = ", ".join(sorted(self._allowed))
            raise LeakError(
                f"the {split} split of task {task} must not be read here; allowed: {allowed}"
            )
        self.reads[counted_as] += 1
        examples = self._source.examples(task, split)
        if self._limit is not None:
            examples = examples.first(self._limit)
        return examples.part(self.share)

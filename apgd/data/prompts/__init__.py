"""Prompts: how the columns of a data set become a question, and its labels an answer in words.

A table of prompts is a JSON object with one entry for every task:

    {"rte": {"prompt": "Text: {sentence1} Claim: {sentence2} …", "answers": ["yes", "no"]},
     "stsb": {"prompt": "First: {sentence1} Second: {sentence2} …", "decimals": 1}}

`prompt` names each text column once in braces (write `{{` for a brace). `answers` holds one text
per class, in label order; for labels that are numbers `decimals` says with how many digits after
the point they are written.
"""

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apgd.data.examples import PreparedTexts
from apgd.data.tasks import TextExamples
from apgd.errors import InputError

__all__ = ["GLUE", "Prompt", "read_prompts"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A task's question and answers."""

    prompt: str
    """The question, with each column's name in braces."""
    answers: tuple[str, ...] = ()
    """The answer for every class; none where labels are numbers."""
    decimals: int | None = None
    """Digits after the point of an answer that is a number."""

    def __post_init__(self) -> None:
        if bool(self.answers) == (self.decimals is not None):
            raise InputError(
                f"a prompt must have either answers or decimals, but {self.prompt!r} has "
                f"{self.answers} and {self.decimals}"
            )
        if len(set(self.answers)) < len(self.answers):
            raise InputError(f"answers must differ, but got {', '.join(self.answers)}")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the question shows, in its order."""
        return tuple(name for _, name, _, _ in string.Formatter().parse(self.prompt) if name)

    def question(self, row: Mapping[str, str]) -> str:
        """The question about one row, by column."""
        return self.prompt.format_map(row)

    def answer(self, label: float) -> str:
        """The answer that a label stands for."""
        if self.decimals is None:
            return self.answers[int(label)]
        return f"{label:.{self.decimals}f}"

    def examples(self, rows: PreparedTexts, columns: tuple[str, ...]) -> TextExamples:
        """Questions and answers of rows.

        Args:
            rows: texts and labels.
            columns: names of the rows' texts, in their order.
        """
        asked = tuple(self.question(dict(zip(columns, texts, strict=True))) for texts in rows.texts)
        return TextExamples(asked, tuple(self.answer(label) for label in rows.labels.tolist()))


GLUE = Path(__file__).parent / "glue.json"
"""Our own questions for the eight GLUE tasks."""


def read_prompts(path: Path, columns: Mapping[str, tuple[str, ...]]) -> Mapping[str, Prompt]:
    """A table of prompts from a file.

    Args:
        path: a JSON file as described above.
        columns: by task, the columns that its question must show.

    Raises:
        InputError: where the file holds something else, or lacks a task or a column.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} must be a JSON file with prompts, but is not: {error}") from error
    found = {}
    for task, names in columns.items():
        if not isinstance(content, dict) or task not in content:
            raise InputError(f"{path} must have a prompt for {task}, but has none")
        try:
            entry = content[task]
            found[task] = Prompt(**entry | {"answers": tuple(entry.get("answers", ()))})
            shown = found[task].columns
        except (TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"the entry of {task} in {path} must have prompt, and answers or decimals, "
                f"but: {error}"
            ) from error
        if sorted(shown) != sorted(names):
            raise InputError(
                f"the prompt of {task} in {path} must show {' and '.join(names)} once each, but "
                f"shows {' and '.join(shown) or 'nothing'}"
            )
    return found

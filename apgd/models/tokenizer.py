"""A tokenizer for a text tower whose whole language is a few dozen words."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from apgd.errors import InputError


class WordTokenizer:
    """Texts as numbers, one number per word.

    Number 0 pads; then come the words in alphabetical order, the start of a text, and its end. The
    end has the highest number because open_clip's text tower finds it by taking the maximum.
    """

    def __init__(self, words: Iterable[str], context_length: int) -> None:
        self._numbers = {word: k for k, word in enumerate(sorted(set(words)), start=1)}
        self.context_length = context_length
        self._start = len(self._numbers) + 1
        self._end = len(self._numbers) + 2

    @property
    def vocab_size(self) -> int:
        """How many numbers there are."""
        return self._end + 1

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        """Numbers of texts, padded with zeros: int64 (texts, context_length).

        Raises:
            InputError: for a word that is not in the vocabulary, or a text that is too long.
        """
        lines = [texts] if isinstance(texts, str) else texts
        rows = torch.zeros(len(lines), self.context_length, dtype=torch.int64)
        for row, line in zip(rows, lines, strict=True):
            numbers = [self._start, *(self._number(word, line) for word in line.split()), self._end]
            if len(numbers) > self.context_length:
                raise InputError(
                    f"a text may have at most {self.context_length - 2} words, but {line!r} has "
                    f"{len(numbers) - 2}"
                )
            row[: len(numbers)] = torch.tensor(numbers)
        return rows

    def _number(self, word: str, line: str) -> int:
        try:
            return self._numbers[word.lower()]
        except KeyError:
            raise InputError(
                f"unknown word {word!r} in {line!r}; the vocabulary has {len(self._numbers)} words"
            ) from None

"""Which prompts are answered together, and how answers are read."""

import pytest

from apgd.models.text_to_text import batches


def test_batches_are_limited_by_prompts_and_by_tokens() -> None:
    lengths = [1, 1, 1, 4, 4, 9]
    found = [list(part) for part in batches(lengths, most=3, tokens=8)]
    assert found == [[0, 1, 2], [3, 4], [5]]  # the last is longer than allowed, and alone


@pytest.mark.parametrize("most", [1, 2, 5, 100])
@pytest.mark.parametrize("tokens", [1, 7, 64, 10**6])
def test_every_prompt_is_in_one_batch(most: int, tokens: int) -> None:
    lengths = sorted([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5])
    parts = list(batches(lengths, most, tokens))
    assert [k for part in parts for k in part] == list(range(len(lengths)))
    for part in parts:
        assert len(part) <= most
        assert len(part) == 1 or len(part) * lengths[part[-1]] <= tokens


def test_nothing_makes_no_batch() -> None:
    assert list(batches([], 4, 4)) == []

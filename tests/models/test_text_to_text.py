"""Which prompts are answered together, and how answers are read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from apgd import TaskVectors
from apgd.adaptation import AdaptationSettings, adapted_coefficients
from apgd.data import Metric, TextExamples
from apgd.models.t5 import t5_tokenizer
from apgd.models.text_to_text import TextToTextHead, batches
from apgd.unlabelled import UnlabelledInputs
from tests.glue_hub import VOCABULARY, tokenizer
from tests.tiny_t5 import tiny_t5

TEXTS = TextExamples(
    ("the cat saw a ball", "it rained", "the small red ball saw the cat"), ("yes", "no", "yes")
)


@pytest.fixture
def head(tmp_path: Path) -> TextToTextHead:
    path = tmp_path / "tokenizer.json"
    tokenizer().save(str(path))
    return TextToTextHead(t5_tokenizer(path), Metric.ACCURACY, longest_prompt=64, longest_answer=8)


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


def test_entropy_is_that_of_the_first_token_that_would_be_said(head: TextToTextHead) -> None:
    model = tiny_t5(vocab_size=VOCABULARY).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # otherwise all tokens are alike
    told = []
    for prompt in TEXTS.inputs:
        numbers = torch.tensor([head._encoded([prompt], 64)[0]])
        said = model.generate(  # type: ignore[operator]
            input_ids=numbers, max_new_tokens=1, output_logits=True, return_dict_in_generate=True
        )
        shares = said.logits[0].double().softmax(dim=-1)
        told.append(float(-(shares * shares.log()).sum()))
    rows = np.array([2, 0])
    found = head.entropy(model, TEXTS.unlabelled(), rows)
    expected = torch.tensor([told[row] for row in rows]).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert abs(told[0] - told[1]) > 1e-3
    assert found.requires_grad


def test_coefficients_of_a_text_model_are_learned(head: TextToTextHead) -> None:
    base = {name: tensor.clone() for name, tensor in tiny_t5(0, VOCABULARY).state_dict().items()}
    states = {}
    for seed in (1, 2):
        torch.manual_seed(seed)
        states[f"expert{seed}"] = {n: t + 0.1 * torch.randn_like(t) for n, t in base.items()}

    def is_merged(name: str, _tensor: Tensor) -> bool:
        return name.endswith(("q.weight", "v.weight"))

    vectors = TaskVectors(base, states, is_merged)
    inputs = UnlabelledInputs(
        tiny_t5(3, VOCABULARY),
        dict.fromkeys(states, head),
        dict.fromkeys(states, TEXTS.unlabelled()),
    )
    settings = AdaptationSettings(
        coefficient=0.3, iterations=2, learning_rate=0.01, batch_size=2, seed=0, task_wise=False
    )
    found = adapted_coefficients(vectors, inputs, settings)
    assert all(value.isfinite().all() for value in found.values())
    changed = [name for name, value in found.items() if not (value == np.float32(0.3)).all()]
    # A single token's attention to itself is the same for any query.
    alone = [n for n in found if "decoder" in n and "SelfAttention.q" in n]
    assert set(changed) == set(found) - set(alone)

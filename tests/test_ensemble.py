"""Ensembles: one voice is that model, two are averaged as by hand, at both kinds of head."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apgd import numerics
from apgd.checkpoints import load_weights
from apgd.data import ImageExamples, Metric, Split, TextExamples
from apgd.heads import Voice, judge, judge_together
from apgd.models.t5 import t5_tokenizer
from apgd.models.text_to_text import TextToTextHead
from apgd.models.zero_shot import ZeroShotHead
from apgd.suites import suites
from tests.glue_hub import VOCABULARY, tokenizer
from tests.tiny_t5 import tiny_t5

TEXTS = TextExamples(
    tuple(f"the cat saw {'a small red ball ' * (k % 5)}{k}" for k in range(24)),
    tuple(("yes", "acceptable", "no it rained")[k % 3] for k in range(24)),
)


@pytest.fixture(autouse=True)
def deterministic() -> None:
    numerics.configure(1)


class Scores(nn.Module):
    """Says the same log-probabilities of three classes about every image."""

    def __init__(self, chances: Sequence[float]) -> None:
        super().__init__()
        self.log = torch.log(torch.tensor(chances))


def fixed_head(count: int) -> tuple[ZeroShotHead, ImageExamples]:
    def preprocess(images: np.ndarray) -> Tensor:
        return torch.zeros(len(images), 1)

    def encode(model: nn.Module, pixels: Tensor) -> Tensor:
        assert isinstance(model, Scores)
        return model.log.expand(len(pixels), 3)

    labels = np.arange(count, dtype=np.int64) % 3
    images = np.zeros((count, 2, 2, 3), np.uint8)
    return ZeroShotHead(torch.eye(3), preprocess, encode), ImageExamples(images, labels)


def test_probabilities_are_averaged_and_not_votes_or_logits() -> None:
    head, examples = fixed_head(300)
    # Two of three vote for class 0, products (mean logits) favour class 1, the mean class 2.
    models = [Scores(c) for c in ([0.45, 0.4, 0.15], [0.45, 0.4, 0.15], [1e-4, 0.01, 0.9899])]
    mean = np.mean([np.exp(model.log.numpy()) for model in models], axis=0)
    assert mean.argmax() == 2
    right = judge_together([lambda m=m: m for m in models], head, examples)
    assert right.dtype == bool
    assert np.array_equal(right, examples.labels == 2)
    swapped = judge_together([lambda m=m: m for m in models[::-1]], head, examples)
    assert np.array_equal(swapped, right)


def shaken(model: nn.Module, seed: int, size: float) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        name: t + size * t.std(correction=0) * torch.randn(t.shape, generator=rng)
        for name, t in model.state_dict().items()
    }


def voices_of(model: nn.Module, states: Sequence[dict[str, Tensor]]) -> list[Voice]:
    """All in one model, as an evaluator has them."""

    def voice(state: dict[str, Tensor]) -> nn.Module:
        model.load_state_dict(state)
        return model.train()  # which judging must undo

    return [lambda state=state: voice(state) for state in states]


def test_one_image_expert_is_itself_and_two_are_averaged() -> None:
    suite = suites["mini_vision"]
    model = suite.build_model()
    base = load_weights(suite.base_path(), "base")
    model.load_state_dict(base)
    head = suite.head(model, suite.task("signs"))
    assert isinstance(head, ZeroShotHead)
    examples = suite.examples("signs", Split.TEST).first(200)
    assert isinstance(examples, ImageExamples)
    states = [base, shaken(model, 1, 0.5)]
    chances, alone = [], []
    for state in states:
        model.load_state_dict(state)
        alone.append(judge(model, head, examples))
        with torch.inference_mode():
            chances.append(head.logits(model, examples.images[:]).softmax(dim=1).numpy())
        assert np.array_equal(judge_together(voices_of(model, [state]), head, examples), alone[-1])
    together = judge_together(voices_of(model, states), head, examples)
    by_hand = np.mean(chances, axis=0).argmax(axis=1) == examples.labels
    assert np.array_equal(together, by_hand)
    assert not any(np.array_equal(together, one) for one in alone)


@pytest.fixture(scope="module")
def text_head(tmp_path_factory: pytest.TempPathFactory) -> TextToTextHead:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer().save(str(path))
    return TextToTextHead(t5_tokenizer(path), Metric.ACCURACY, longest_prompt=64, longest_answer=6)


def said_together(head: TextToTextHead, voices: list[Voice]) -> list[str]:
    return head._said(lambda prompts, mask: head._together(voices, prompts, mask), TEXTS)


@torch.inference_mode()
def test_one_text_expert_says_what_it_says_alone(text_head: TextToTextHead) -> None:
    several = set()
    for seed in range(3):
        model = tiny_t5(seed, VOCABULARY).eval()
        alone = text_head.decoded(model, TEXTS)
        assert said_together(text_head, [lambda model=model: model]) == alone
        several |= set(alone)
    assert len(several) > 1


@torch.inference_mode()
def test_two_text_experts_by_hand(text_head: TextToTextHead) -> None:
    models = [tiny_t5(seed, VOCABULARY).eval() for seed in (0, 1)]
    together = said_together(text_head, [lambda m=m: m for m in models])
    assert together != text_head.decoded(models[0], TEXTS)
    for prompt, said in zip(TEXTS.inputs, together, strict=True):
        encoded = text_head._tokenizer([prompt], return_tensors="pt").input_ids
        tokens = [0]
        while len(tokens) <= 6 and tokens[-1] != 1:
            chances = sum(
                m(input_ids=encoded, decoder_input_ids=torch.tensor([tokens]))
                .logits[0, -1]
                .softmax(0)
                for m in models
            )
            tokens.append(int(chances.argmax()))
        assert text_head._tokenizer.decode(tokens, skip_special_tokens=True).strip() == said


def test_ensembles_are_judged_by_the_tasks_metric(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer().save(str(path))
    ranks = TextToTextHead(t5_tokenizer(path), Metric.SPEARMAN, longest_prompt=64, longest_answer=4)
    numbers = TextExamples(TEXTS.inputs, tuple(f"{k}.0" for k in range(24)))
    model = tiny_t5(0, VOCABULARY).eval()
    voices: list[Voice] = [lambda: model]
    assert np.array_equal(judge_together(voices, ranks, numbers), judge(model, ranks, numbers))

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from apgd.errors import InputError
from apgd.models.mini_t5 import mini_t5
from apgd.models.t5 import t5_tokenizer
from apgd.suites.mini_text import MINI_TEXT
from experiments import pretrain_mini_text
from experiments.pretrain_mini_text import Pretraining, batch, main, pairs, prepare_heads


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_mini_text, "_TOKENIZER_TEXTS", 600)
    yield
    torch.use_deterministic_algorithms(False)


def made(folder: Path, steps: int) -> Pretraining:
    pretraining = Pretraining(
        out=folder / "base.safetensors",
        tokenizer_out=folder / "tokenizer.json",
        steps=steps,
        batch_size=16,
        warmup=1,
        report_every=1,
    )
    main(pretraining)
    return pretraining


def test_two_steps_give_the_same_bytes_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = made(tmp_path / "first", 2), made(tmp_path / "second", 2)
    assert first.out.read_bytes() == second.out.read_bytes()
    assert first.tokenizer_out.read_bytes() == second.tokenizer_out.read_bytes()
    told = capsys.readouterr().out
    assert "step     2" in told
    tokenizer = t5_tokenizer(first.tokenizer_out)
    mini_t5(len(tokenizer)).load_state_dict(load_file(first.out), strict=True)
    special = [tokenizer.convert_ids_to_tokens(k) for k in range(4)]
    assert special == ["<pad>", "</s>", "<unk>", "<extra_id_0>"]


def test_heads_start_where_they_are_meant_to() -> None:
    """One head finds a word's other place, and the end token where there is none."""
    torch.manual_seed(0)
    model = mini_t5(64).eval()
    prepare_heads(model)
    tokens = torch.tensor([[10, 11, 12, 13, 14, 11, 15, 16, 1]])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model.encoder(tokens, output_attentions=True).attentions[0][0]
    assert weights[0, 1].argmax() == 5
    assert weights[0, 5].argmax() == 1
    alone = weights[0, [0, 2, 3, 4, 6, 7]]
    assert (alone.argmax(dim=1) == 8).float().mean() >= 0.5
    assert [int(weights[1, k].argmax()) for k in range(1, 8)] == list(range(7))
    assert [int(weights[2, k].argmax()) for k in range(7)] == list(range(1, 8))


def test_answers_are_padded_with_what_no_loss_is_taken_of() -> None:
    made = batch(MINI_TEXT.tokenizer, ("the dog", "the cat was"), ("dog cat", "dog"))
    assert made["input_ids"].shape == made["attention_mask"].shape == (2, 4)
    assert made["labels"].shape == (2, 3)
    assert made["labels"][1, 2] == -100
    assert made["labels"][0].min() > 0


def test_sources_are_drawn_alike_from_one_seed() -> None:
    first, again = (pairs(np.random.default_rng(3)) for _ in range(2))
    assert [next(first) for _ in range(200)] == [next(again) for _ in range(200)]


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"batch_size": -1}, {"learning_rate": 0.0}, {"warmup": 900}]
)
def test_bad_settings_are_refused(bad: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        Pretraining(
            out=tmp_path / "base.safetensors",
            tokenizer_out=tmp_path / "tokenizer.json",
            **bad,  # type: ignore[arg-type]
        )

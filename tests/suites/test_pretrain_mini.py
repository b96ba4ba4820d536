from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from apgd.data.rendering import CLEAN, SHAPES, render
from apgd.errors import InputError
from apgd.models.clip import mini_clip
from apgd.suites.mini_vision import MINI_VISION
from experiments.pretrain_mini import Captioned, Pretraining, train, write


def few_shapes() -> Captioned:
    examples = render(SHAPES, CLEAN, 64, np.random.default_rng(0))
    labels = torch.from_numpy(examples.labels)
    texts = [MINI_VISION.tokenizer([f"a {name} shape"]) for name in SHAPES.class_names]
    return Captioned(examples.images, labels, labels, torch.stack(texts))


def trained(out: Path) -> list[float]:
    pretraining = Pretraining(out=out, steps=12, batch_size=32, warmup=2, threads=1, report_every=6)
    torch.manual_seed(0)
    model = mini_clip(MINI_VISION.tokenizer.vocab_size)
    losses: list[float] = []
    train(model, few_shapes(), pretraining, lambda _step, loss: losses.append(loss))
    write(model, out)
    return losses


def test_training_is_repeatable_and_learns(tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    losses = trained(first)
    assert len(losses) == 2
    assert losses[1] < losses[0]
    assert trained(second) == losses
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, second.name]
    MINI_VISION.build_model().load_state_dict(load_file(first), strict=True)


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"batch_size": -1}, {"learning_rate": 0.0}, {"warmup": 900}]
)
def test_bad_settings_are_refused(bad: dict[str, float], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        Pretraining(out=tmp_path / "base.safetensors", **bad)  # type: ignore[arg-type]

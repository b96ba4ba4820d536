"""Training in parts: the same step as with the whole batch, smaller parts where memory ends."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apgd import InputError, microbatches, numerics
from apgd.checkpoints import load_weights
from apgd.data import Metric, Split, TextExamples
from apgd.heads import Head
from apgd.microbatches import MicroBatches, micro_batches
from apgd.models.t5 import build_t5, t5_tokenizer
from apgd.models.text_to_text import TextToTextHead
from apgd.suites import FinetuneSettings, suites
from apgd.training import Training, recompute_activations, uses_bfloat16
from tests.glue_hub import VOCABULARY, tokenizer
from tests.tiny_t5 import tiny_config

SETTINGS = FinetuneSettings(
    steps=3, batch_size=8, learning_rate=1e-3, warmup=0.0, schedule="constant", checkpoint_every=2
)
TEXTS = TextExamples(
    tuple(f"the cat saw {'a small red ball ' * (k % 5)}{k}" for k in range(24)),
    tuple(("yes", "acceptable", "no it rained")[k % 3] for k in range(24)),
)


@pytest.fixture(autouse=True)
def deterministic() -> None:
    numerics.configure(1)


@pytest.fixture(scope="module")
def text_head(tmp_path_factory: pytest.TempPathFactory) -> TextToTextHead:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer().save(str(path))
    return TextToTextHead(t5_tokenizer(path), Metric.ACCURACY, longest_prompt=64, longest_answer=8)


def text_model() -> nn.Module:
    torch.manual_seed(0)
    return build_t5(tiny_config(VOCABULARY, dropout=0.0))


def image_case() -> tuple[nn.Module, Head, Any]:
    suite = suites["mini_vision"]
    model = suite.build_model()
    model.load_state_dict(load_weights(suite.base_path(), "base"))
    head = suite.head(model, suite.task("signs"))
    return model, head, suite.examples("signs", Split.TRAIN).first(24)


class OutOfMemoryHead:
    """A head on a device that holds only so many examples."""

    def __init__(self, inner: Head, room: int) -> None:
        self.inner = inner
        self.room = room
        self.refused = 0
        self.seen: list[int] = []

    def loss(self, model: nn.Module, examples: Any, rows: np.ndarray) -> Tensor:
        if len(rows) > self.room:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory, or so it says")
        self.seen.append(len(rows))
        return self.inner.loss(model, examples, rows)


def gradients(model: nn.Module, head: Head, examples: Any, size: int) -> dict[str, Tensor]:
    training = Training(model, SETTINGS, 0, MicroBatches(size))
    model.train()
    training._gradients(head, examples, np.array([0, 7, 3, 19, 4, 11, 13, 23]))
    return {n: p.grad.clone() for n, p in training.learning.items() if p.grad is not None}


@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_parts_make_the_step_of_the_whole_batch(text_head: TextToTextHead, size: int) -> None:
    for model, head, examples in (image_case(), (text_model(), text_head, TEXTS)):
        whole = gradients(model, head, examples, 8)
        parts = gradients(model, head, examples, size)
        assert whole.keys() == parts.keys()
        norm = sum(float(g.double().square().sum()) for g in whole.values()) ** 0.5
        for name, gradient in whole.items():
            assert float((parts[name] - gradient).norm()) < 1e-6 * norm, name
        assert norm > 1e-3


def test_batches_that_do_not_fit_are_halved_and_that_is_remembered(
    text_head: TextToTextHead, tmp_path: Path
) -> None:
    memory = tmp_path / "micro_batches" / "some.json"
    small = OutOfMemoryHead(text_head, room=3)
    training = Training(text_model(), SETTINGS, 0, MicroBatches(8, memory))
    loss = training.run(small, TEXTS, tmp_path / "training.safetensors")
    assert small.refused == 2  # of 8, then of 4
    assert small.seen == [2] * 4 * 3
    assert json.loads(memory.read_text()) == {"size": 2}

    again = OutOfMemoryHead(text_head, room=3)
    second = Training(text_model(), SETTINGS, 0, MicroBatches(8, memory))
    assert second.run(again, TEXTS, tmp_path / "again.safetensors") == loss
    assert again.refused == 0
    for name, parameter in training.learning.items():
        assert torch.equal(parameter, second.learning[name]), name

    whole = Training(text_model(), SETTINGS, 0)
    assert whole.run(text_head, TEXTS, tmp_path / "whole.safetensors") == pytest.approx(loss, 1e-4)


def test_a_failure_in_the_middle_of_a_batch_leaves_no_gradients_behind(
    text_head: TextToTextHead, tmp_path: Path
) -> None:
    class Later(OutOfMemoryHead):
        def loss(self, model: nn.Module, examples: Any, rows: np.ndarray) -> Tensor:
            if len(self.seen) == 1 and not self.refused:
                self.refused += 1
                raise torch.OutOfMemoryError
            return super().loss(model, examples, rows)

    later = Later(text_head, room=4)
    broken = Training(text_model(), SETTINGS, 0, MicroBatches(4))
    broken.run(later, TEXTS, tmp_path / "broken.safetensors")
    assert broken.micro_batches.size == 2
    smooth = Training(text_model(), SETTINGS, 0, MicroBatches(2))
    smooth.run(text_head, TEXTS, tmp_path / "smooth.safetensors")
    for name, parameter in smooth.learning.items():
        assert torch.equal(parameter, broken.learning[name]), name


def test_what_does_not_fit_one_by_one_fails(text_head: TextToTextHead, tmp_path: Path) -> None:
    head = OutOfMemoryHead(text_head, room=0)
    training = Training(text_model(), SETTINGS, 0)
    with pytest.raises(torch.OutOfMemoryError):
        training.run(head, TEXTS, tmp_path / "training.safetensors")
    assert head.refused == 4  # of 8, 4, 2 and 1


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "CUDA error: out of memory",
    ],
)
def test_what_libraries_say_of_full_memory_halves_a_batch(
    text_head: TextToTextHead, tmp_path: Path, said: str
) -> None:
    class Told(OutOfMemoryHead):
        def loss(self, model: nn.Module, examples: Any, rows: np.ndarray) -> Tensor:
            if len(rows) > self.room:
                raise RuntimeError(said)
            return super().loss(model, examples, rows)

    training = Training(text_model(), SETTINGS, 0)
    training.run(Told(text_head, room=4), TEXTS, tmp_path / "training.safetensors")
    assert training.micro_batches.size == 4
    said = "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"
    with pytest.raises(RuntimeError, match="EXECUTION_FAILED"):
        Training(text_model(), SETTINGS, 0).run(Told(text_head, room=4), TEXTS, tmp_path / "other")


def test_batches_are_fitted_beside_the_optimizers_means(
    text_head: TextToTextHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Looks(OutOfMemoryHead):
        def loss(self, model: nn.Module, examples: Any, rows: np.ndarray) -> Tensor:
            if not self.seen:
                assert list(training.optimizer.state) == list(training.learning.values())
            return super().loss(model, examples, rows)

    training = Training(text_model(), SETTINGS, 0)
    training.run(Looks(text_head, room=8), TEXTS, tmp_path / "training.safetensors")
    # The optimizer itself would begin with the same ones.
    monkeypatch.setattr(Training, "_make_moments", lambda _training: None)
    own = Training(text_model(), SETTINGS, 0)
    own.run(text_head, TEXTS, tmp_path / "own.safetensors")
    for name, parameter in own.learning.items():
        assert torch.equal(parameter, training.learning[name]), name
        for moment, value in own.optimizer.state[parameter].items():
            made = training.optimizer.state[training.learning[name]][moment]
            assert torch.equal(value, made), (name, moment)
            assert (value.dtype, value.device, value.stride()) == (
                made.dtype, made.device, made.stride(),
            )  # fmt: skip


def test_a_resumed_training_keeps_its_parts(text_head: TextToTextHead, tmp_path: Path) -> None:
    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    head = OutOfMemoryHead(text_head, room=2)
    whole = Training(text_model(), SETTINGS, 0)
    whole.run(head, TEXTS, tmp_path / "whole.safetensors")
    first = Training(text_model(), SETTINGS, 0)
    with pytest.raises(KeyboardInterrupt):
        first.run(head, TEXTS, tmp_path / "training.safetensors", stop)
    second = Training(text_model(), SETTINGS, 0)
    assert second.resume(tmp_path / "training.safetensors") == 2
    assert second.micro_batches.size == 2
    second.run(head, TEXTS, tmp_path / "training.safetensors")
    for name, parameter in whole.learning.items():
        assert torch.equal(parameter, second.learning[name]), name


@pytest.mark.parametrize("content", ["{", "[]", '{"size": 0}', '{"size": "4"}', "{}"])
def test_a_damaged_memory_is_forgotten(tmp_path: Path, content: str) -> None:
    (tmp_path / "some.json").write_text(content)
    assert MicroBatches(8, tmp_path / "some.json").size == 8


def test_a_memory_of_more_than_the_batch_is_the_batch(tmp_path: Path) -> None:
    (tmp_path / "some.json").write_text('{"size": 64}')
    assert MicroBatches(8, tmp_path / "some.json").size == 8


def test_sizes_belong_to_a_model_its_settings_and_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APGD_CACHE", str(tmp_path))
    gpu = SimpleNamespace(name="a card", total_memory=24 * 10**9)
    monkeypatch.setattr(microbatches.torch.cuda, "get_device_properties", lambda _device: gpu)
    model = text_model()

    def size(**changes: Any) -> int:
        return micro_batches("suite", model, replace(SETTINGS, **changes), "cuda:0").size

    micro_batches("suite", model, SETTINGS, "cuda:0").halve()
    assert size() == 4
    assert size(learning_rate=1.0) == 4
    assert size(gradient_checkpointing=True) == 8
    assert size(batch_size=16) == 16
    assert micro_batches("other", model, SETTINGS, "cuda:0").size == 8
    assert micro_batches("suite", model, SETTINGS, "cpu").size == 8
    model.get_parameter("shared.weight").requires_grad_(False)
    assert size() == 8
    model.get_parameter("shared.weight").requires_grad_(True)
    gpu.total_memory += 1
    assert size() == 8


def test_recomputing_runs_every_block_twice(text_head: TextToTextHead) -> None:
    model = text_model().train()
    runs = []
    for module in model.modules():
        if type(module).__name__ == "T5Attention":
            module.register_forward_hook(lambda *_: runs.append(1))
    text_head.loss(model, TEXTS, np.arange(4)).backward()
    plain = len(runs)
    recompute_activations(model)
    text_head.loss(model, TEXTS, np.arange(4)).backward()
    assert len(runs) - plain == 2 * plain == 2 * (2 + 2 + 2)


def test_recomputing_images_changes_nothing() -> None:
    model, head, examples = image_case()
    plain = gradients(model, head, examples, 8)
    recompute_activations(model)
    again = gradients(model, head, examples, 8)
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    with pytest.raises(InputError, match="gradient_checkpointing must be off for a Linear"):
        recompute_activations(nn.Linear(2, 2))


def test_the_loss_of_texts_is_a_mean_over_tokens_then_examples(text_head: TextToTextHead) -> None:
    model = text_model().eval()
    rows = np.arange(4)
    expected = []
    for row in rows:
        prompt, mask = text_head._batch(text_head._encoded([TEXTS.inputs[row]], 64))
        answer, _ = text_head._batch(text_head._encoded([TEXTS.targets[row]], 8))
        logits = model(input_ids=prompt, attention_mask=mask, labels=answer).logits
        told = logits.log_softmax(-1).gather(2, answer.unsqueeze(2))
        expected.append(-told.mean())
    loss = text_head.loss(model, TEXTS, rows)
    torch.testing.assert_close(loss, torch.stack(expected).mean())


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_bfloat16_on_gpus_that_have_it_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda:0")
    for supported in (True, False):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s
        )
        assert uses_bfloat16(cuda) == supported
        assert not uses_bfloat16(torch.device("cpu"))
        training = Training(text_model(), SETTINGS, 0)
        assert isinstance(training._autocast(), nullcontext)
        training.device = cuda
        context = training._autocast()
        assert isinstance(context, torch.autocast) == supported
        assert getattr(context, "fast_dtype", None) == (torch.bfloat16 if supported else None)


def test_a_loss_that_is_not_finite_is_an_error(text_head: TextToTextHead, tmp_path: Path) -> None:
    model = text_model()
    model.get_parameter("lm_head.weight").data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the loss became nan at learning rate 0.001"):
        Training(model, SETTINGS, 0).run(text_head, TEXTS, tmp_path / "training.safetensors")


def test_training_leaves_the_random_numbers_of_others_alone(
    text_head: TextToTextHead, tmp_path: Path
) -> None:
    training = Training(text_model(), SETTINGS, 0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    training.run(text_head, TEXTS, tmp_path / "training.safetensors")
    assert torch.equal(torch.rand(3), expected)

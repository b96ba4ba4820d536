"""Zero-shot heads: batches, the short way, and the compiled one."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apgd import numerics
from apgd.data import ImageExamples
from apgd.errors import InputError
from apgd.heads import judge, judge_together
from apgd.models import compilation
from apgd.models.clip import encode, encode_class_token, mini_clip, preprocess
from apgd.models.zero_shot import ZeroShotHead

BATCH = 100
COUNT = 2 * BATCH + 30


@pytest.fixture(autouse=True)
def deterministic() -> None:
    numerics.configure(1)


def examples(count: int = COUNT) -> ImageExamples:
    rng = np.random.default_rng(0)
    return ImageExamples(rng.integers(0, 256, (count, 32, 32, 3), np.uint8), np.arange(count) % 7)


def mini(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return mini_clip(50).eval()


def mini_head() -> ZeroShotHead:
    classes = torch.randn(7, 64, generator=torch.Generator().manual_seed(3))
    return ZeroShotHead(classes, preprocess, encode, encode_class_token)


class Counted:
    """An encoder that says how many pictures it got at a time."""

    def __init__(self, encoder: compilation.Encoder = encode) -> None:
        self.encoder = encoder
        self.sizes: list[int] = []

    def __call__(self, model: nn.Module, pixels: Tensor) -> Tensor:
        self.sizes.append(len(pixels))
        return self.encoder(model, pixels)


def test_answers_take_the_short_way_and_are_the_same() -> None:
    model, own = mini(0), replace(mini_head(), shortcut=None)
    short = Counted(encode_class_token)
    head = replace(mini_head(), encode=Counted(), shortcut=short)
    found = judge(model, head, examples())
    assert short.sizes == [BATCH, BATCH, 30]
    assert np.array_equal(found, judge(model, own, examples()))
    assert np.array_equal(judge_together([lambda: model], head, examples()), found)
    rows = np.arange(4)
    entropy = head.entropy(model, examples(), rows)
    torch.testing.assert_close(entropy, own.entropy(model, examples(), rows))
    assert short.sizes == [BATCH, BATCH, 30] * 2 + [4]


def test_learning_and_statistics_take_the_models_own_way() -> None:
    model, own, short = mini(0), Counted(), Counted()
    head = replace(mini_head(), encode=own, shortcut=short)
    head.loss(model, examples(), np.arange(3))
    head.log_likelihoods(model, examples(), 0)
    head.logits(model, examples().images[:2])
    assert own.sizes == [3, 1, 2]
    assert short.sizes == []


def test_only_whole_batches_go_through_the_program() -> None:
    model, short, program = mini(0), Counted(), Counted()
    head = replace(mini_head(), shortcut=short, program=program)
    judge(model, head, examples())
    head.entropy(model, examples(), np.arange(BATCH)).backward()  # type: ignore[no-untyped-call]
    assert program.sizes == [BATCH, BATCH]
    assert short.sizes == [30, BATCH]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the graphs that torch captured; they are run without being compiled further."""
    captured: list[int] = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., object]:
        captured.append(len(graph.graph.nodes))
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend=backend, **options))
    compilation.compiled.cache_clear()
    compilation.check_compiler.cache_clear()
    yield captured
    compilation.compiled.cache_clear()
    compilation.check_compiler.cache_clear()
    torch._dynamo.reset()


def test_one_graph_serves_all_heads_and_all_weights(graphs: list[int]) -> None:
    model, head, data = mini(0), mini_head().compiled(), examples()
    probes = len(graphs)
    assert np.array_equal(judge(model, head, data), judge(model, mini_head(), data))
    assert len(graphs) == probes + 1  # one piece, without breaks
    assert graphs[-1] > 50
    for seed in (1, 2):
        model.load_state_dict(mini(seed).state_dict())
        other = replace(mini_head(), classes=torch.randn(4, 64)).compiled()
        expected = judge(model, replace(other, program=None), data)
        assert np.array_equal(judge(model, other, data), expected)
    assert len(graphs) == probes + 1


def test_a_missing_compiler_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_f: object, **_options: object) -> Callable[[Tensor], Tensor]:
        def call(_x: Tensor) -> Tensor:
            raise RuntimeError("InvalidCxxCompiler: No working C++ compiler\n\nSet TORCH_LOGS")

        return call

    monkeypatch.setattr(torch, "compile", none)
    compilation.check_compiler.cache_clear()
    with pytest.raises(InputError, match=r"^a machine must have .* says: InvalidCxx.*compiler$"):
        mini_head().compiled()
    compilation.check_compiler.cache_clear()


@pytest.mark.slow
@pytest.mark.soak
def test_a_really_missing_compiler(tmp_path: object) -> None:
    code = "from apgd.models.compilation import check_compiler; check_compiler('cpu')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "InputError: a machine must have what torch compiles with for cpu" in done.stderr
    assert "no-such-compiler" in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.soak
def test_a_compiled_forward_is_the_same_up_to_rounding() -> None:
    model, head = mini(0), mini_head().compiled()
    assert head.program is not None
    pixels = preprocess(examples().images[:BATCH])
    with torch.inference_mode():
        found, expected = head.program(model, pixels), encode(model, pixels)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert np.array_equal(judge(model, head, examples()), judge(model, mini_head(), examples()))

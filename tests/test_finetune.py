"""Fine-tuning: schedule, order of examples, resume to the bit, reuse, damage."""

import dataclasses
import itertools
import math
import re
from pathlib import Path

import pytest
import torch

from apgd import InputError, numerics
from apgd.batches import batch_indices
from apgd.checkpoints import load_weights
from apgd.data import Split
from apgd.errors import DamagedError
from apgd.files import sha256_file
from apgd.finetune import (
    Expert,
    ExpertSpec,
    expert_spec,
    find_expert,
    find_whole_expert,
    finetune,
)
from apgd.suites import FinetuneSettings, suites
from apgd.training import learning_rate

SUITE = suites["mini_vision"]
SETTINGS = FinetuneSettings(steps=6, batch_size=8, learning_rate=1e-4, checkpoint_every=2)


@pytest.fixture(autouse=True)
def deterministic() -> None:
    numerics.configure(1)


@pytest.fixture
def spec() -> ExpertSpec:
    data = SUITE.examples("signs", Split.TRAIN).sha256
    return expert_spec(SUITE, "signs", 0, SETTINGS, data)


def weights(expert: Expert) -> dict[str, torch.Tensor]:
    return load_weights(expert.weights, "expert")


class KilledError(Exception):
    pass


def test_resumed_training_has_the_same_bits(tmp_path: Path, spec: ExpertSpec) -> None:
    whole = finetune(SUITE, spec, tmp_path / "whole")

    def kill(done: int, _total: int) -> None:
        if done == 5:
            raise KilledError

    with pytest.raises(KilledError):
        finetune(SUITE, spec, tmp_path / "killed", report=kill)
    assert find_expert(spec, tmp_path / "killed") is None
    resumed = finetune(SUITE, spec, tmp_path / "killed")
    assert resumed.manifest["resumed_at_step"] == 4
    assert resumed.sha256 == whole.sha256
    assert sorted(p.name for p in resumed.weights.parent.iterdir()) == [
        "manifest.json",
        "weights.safetensors",
    ]


def test_finished_experts_are_reused(tmp_path: Path, spec: ExpertSpec) -> None:
    first = finetune(SUITE, spec, tmp_path)
    written = first.weights.stat().st_mtime_ns
    steps: list[int] = []
    second = finetune(SUITE, spec, tmp_path, report=lambda done, _total: steps.append(done))
    assert steps == []
    assert second.weights.stat().st_mtime_ns == written


def test_only_the_image_encoder_learns(tmp_path: Path, spec: ExpertSpec) -> None:
    base = load_weights(SUITE.base_path(), "base")
    tuned = weights(finetune(SUITE, spec, tmp_path))
    assert set(tuned) == set(base)
    for name in base:
        assert torch.equal(base[name], tuned[name]) == (not name.startswith("visual.")), name


def test_what_defines_an_expert_decides_its_folder(spec: ExpertSpec) -> None:
    changed = [
        dataclasses.replace(spec, seed=1),
        dataclasses.replace(spec, data_sha256="0" * 64),
        dataclasses.replace(spec, base_sha256="0" * 64),
        dataclasses.replace(spec, settings=dataclasses.replace(SETTINGS, steps=7)),
    ]
    assert len({s.key for s in (spec, *changed)}) == 5


def test_seeds_differ(tmp_path: Path, spec: ExpertSpec) -> None:
    other = dataclasses.replace(spec, seed=1)
    assert finetune(SUITE, spec, tmp_path).sha256 != finetune(SUITE, other, tmp_path).sha256


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_damaged_expert_is_put_aside_and_trained_again(tmp_path: Path, spec: ExpertSpec) -> None:
    expert = finetune(SUITE, spec, tmp_path)
    flip(expert.weights, -1)
    with pytest.raises(DamagedError, match="the weights of expert signs must have the hash"):
        find_expert(spec, tmp_path)
    again = finetune(SUITE, spec, tmp_path)
    assert again.sha256 == expert.sha256
    (event,) = again.manifest["events"]
    assert f"was put aside as {spec.key}.damaged and is trained again" in event
    kept = tmp_path / f"{spec.key}.damaged" / "weights.safetensors"
    assert sha256_file(kept) != expert.sha256
    again.weights.unlink()
    said: list[str] = []
    assert find_whole_expert(spec, tmp_path, said.append) is None
    assert "has nothing; it was put aside" in said[0]
    assert (tmp_path / f"{spec.key}.damaged-2" / "manifest.json").exists()


@pytest.mark.parametrize("cut", [False, True])
def test_a_damaged_manifest_is_found(tmp_path: Path, spec: ExpertSpec, cut: bool) -> None:
    expert = finetune(SUITE, spec, tmp_path)
    manifest = spec.folder(tmp_path) / "manifest.json"
    text = manifest.read_text()
    # A digit of the loss, which no hash of the weights would miss.
    manifest.write_text(text[:99] if cut else re.sub(r'("last_loss": \d\.\d)\d', r"\g<1>x", text))
    assert manifest.read_text() != text
    with pytest.raises(DamagedError, match=r"manifest\.json must"):
        find_expert(spec, tmp_path)
    assert finetune(SUITE, spec, tmp_path).sha256 == expert.sha256


@pytest.mark.parametrize("where", ["header", "tensors", "cut", "empty"])
def test_a_damaged_checkpoint_is_never_resumed_from(
    tmp_path: Path, spec: ExpertSpec, where: str
) -> None:
    def kill(done: int, _total: int) -> None:
        if done == 5:
            raise KilledError

    with pytest.raises(KilledError):
        finetune(SUITE, spec, tmp_path / "hurt", report=kill)
    checkpoint = spec.folder(tmp_path / "hurt") / "training.safetensors"
    if where in ("cut", "empty"):
        checkpoint.write_bytes(checkpoint.read_bytes()[: 1000 if where == "cut" else 0])
    else:
        flip(checkpoint, 30 if where == "header" else -1)
    again = finetune(SUITE, spec, tmp_path / "hurt")
    assert again.sha256 == finetune(SUITE, spec, tmp_path / "whole").sha256
    assert again.manifest["resumed_at_step"] == 0
    (event,) = again.manifest["events"]
    assert "was put aside as training.safetensors.damaged and training began again" in event


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    settings = FinetuneSettings(steps=100, batch_size=1, learning_rate=2.0, warmup=0.1)
    rates = [learning_rate(step, settings) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(1 - math.cos(math.pi / 90), rel=1e-6)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_batches_cover_each_epoch_once() -> None:
    seen = torch.cat([batch_indices(step, 5, 20, seed=3) for step in range(4)])
    assert sorted(seen.tolist()) == list(range(20))
    again = torch.cat([batch_indices(step, 5, 20, seed=3) for step in range(4, 8)])
    assert sorted(again.tolist()) == list(range(20))
    assert not torch.equal(seen, again)
    assert not torch.equal(batch_indices(0, 5, 20, seed=3), batch_indices(0, 5, 20, seed=4))


@pytest.mark.parametrize(
    ("field", "said"), [("base_sha256", "the base must"), ("data_sha256", "data of signs must")]
)
def test_a_machine_with_another_base_or_other_data_does_not_train(
    tmp_path: Path, spec: ExpertSpec, field: str, said: str
) -> None:
    other = dataclasses.replace(spec, **{field: "0" * 64})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"{said}.*000000000000.*on this machine"):
        finetune(SUITE, other, tmp_path)
    assert find_expert(other, tmp_path) is None

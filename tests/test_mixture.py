"""Joint training: what a step sees, its loss, resume to the bit, and what a model's name says."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apgd import InputError, numerics
from apgd.checkpoints import load_weights
from apgd.data import Split
from apgd.finetune import ExpertSpec, find_expert, finetune, joint_spec
from apgd.microbatches import MicroBatches
from apgd.mixture import Mixture, MixtureHead, joint_settings, joint_sha256, mixture_rows
from apgd.suites import FinetuneSettings, suites
from apgd.training import Training
from tests.glue_hub import HubCache
from tests.suites.test_flan_t5 import cache, filled, tiny_suite  # noqa: F401 - fixtures

SUITE = suites["mini_vision"]
SETTINGS = FinetuneSettings(steps=2, batch_size=8, learning_rate=1e-4, checkpoint_every=2)


@pytest.fixture(autouse=True)
def deterministic() -> None:
    numerics.configure(1)


class Few:
    """The embedded suite with its first tasks alone."""

    def __new__(cls, count: int = 3) -> object:
        few = object.__new__(type(SUITE))
        few.__dict__.update(SUITE.__dict__)
        few.tasks = SUITE.tasks[:count]  # type: ignore[misc]
        return few


def data_of(suite: object) -> dict[str, str]:
    return {t.name: suite.examples(t.name, Split.TRAIN).sha256 for t in suite.tasks}  # type: ignore[attr-defined]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
def test_every_task_is_seen_equally_often(batch_size: int) -> None:
    counts = (50, 5, 200)
    seen: Counter[int] = Counter()
    for step in range(30):
        rows = mixture_rows(step, batch_size, counts, seed=0)
        assert rows.shape == (batch_size,)
        seen.update(np.searchsorted([0, 50, 55], rows, side="right") - 1)
        assert max(seen.values()) - min(seen[task] for task in range(3)) <= 1


def test_each_task_goes_through_its_examples_epoch_after_epoch() -> None:
    counts = (6, 3)
    rows = np.concatenate([mixture_rows(step, 4, counts, seed=5) for step in range(12)])
    first, second = (rows[rows < 6], rows[rows >= 6] - 6)
    for own, count in ((first, 6), (second, 3)):
        epochs = own.reshape(-1, count)
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_step_is_a_function_of_its_number_and_seed() -> None:
    counts = (40, 40)
    forward = [mixture_rows(step, 10, counts, 3) for step in range(6)]
    backward = [mixture_rows(step, 10, counts, 3) for step in reversed(range(6))][::-1]
    assert np.array_equal(forward, backward)
    assert not np.array_equal(forward[0], mixture_rows(0, 10, counts, 4))
    # Tasks of one size are not shuffled alike.
    rows = np.concatenate(forward)
    assert not np.array_equal(rows[rows < 40], rows[rows >= 40] - 40)


def test_the_loss_is_the_mean_over_examples_of_all_tasks() -> None:
    model = SUITE.build_model()
    model.load_state_dict(load_weights(SUITE.base_path(), "base"))
    heads = [SUITE.head(model, task) for task in SUITE.tasks[:3]]
    parts = [SUITE.examples(task.name, Split.TRAIN).first(20) for task in SUITE.tasks[:3]]
    mixture = Mixture(tuple(parts))
    assert len(mixture) == 60
    rows = np.array([3, 41, 59, 25, 3, 40])
    single = [
        heads[row // 20].loss(model, parts[row // 20], np.array([row % 20])).item() for row in rows
    ]
    whole = MixtureHead(tuple(heads)).loss(model, mixture, rows)
    assert whole.item() == pytest.approx(np.mean(single), rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_parts_of_a_batch_make_the_same_step(size: int) -> None:
    def gradients(size: int) -> dict[str, torch.Tensor]:
        model = SUITE.build_model()
        model.load_state_dict(load_weights(SUITE.base_path(), "base"))
        heads = tuple(SUITE.head(model, task) for task in SUITE.tasks[:3])
        parts = tuple(SUITE.examples(t.name, Split.TRAIN).first(20) for t in SUITE.tasks[:3])
        training = Training(model, SETTINGS, 0, MicroBatches(size))
        rows = mixture_rows(0, 8, (20, 20, 20), 0)
        training._gradients(MixtureHead(heads), Mixture(parts), rows)
        return {n: p.grad for n, p in training.learning.items() if p.grad is not None}

    whole, parted = gradients(8), gradients(size)
    norm = sum(float(g.double().square().sum()) for g in whole.values()) ** 0.5
    for name, gradient in whole.items():
        assert float((parted[name] - gradient).norm()) < 1e-6 * norm, name


def test_it_sees_as_many_examples_of_a_task_as_the_expert() -> None:
    joint = joint_settings(SETTINGS, 3)
    assert joint == replace(SETTINGS, steps=6)
    seen = np.concatenate([mixture_rows(k, 8, (9, 9, 9), 0) for k in range(joint.steps)])
    assert Counter(seen // 9) == dict.fromkeys(range(3), SETTINGS.steps * SETTINGS.batch_size)


class KilledError(Exception):
    pass


def test_a_resumed_training_has_the_same_bits(tmp_path: Path) -> None:
    suite = Few()
    spec = joint_spec(suite, 0, SETTINGS, data_of(suite))  # type: ignore[arg-type]
    whole = finetune(suite, spec, tmp_path / "whole")  # type: ignore[arg-type]
    assert whole.manifest["resumed_at_step"] == 0

    def kill(done: int, total: int) -> None:
        assert total == 6
        if done == 5:
            raise KilledError

    with pytest.raises(KilledError):
        finetune(suite, spec, tmp_path / "killed", report=kill)  # type: ignore[arg-type]
    resumed = finetune(suite, spec, tmp_path / "killed")  # type: ignore[arg-type]
    assert resumed.manifest["resumed_at_step"] == 4
    assert resumed.sha256 == whole.sha256
    found = find_expert(spec, tmp_path / "killed")
    assert found is not None
    assert found.sha256 == whole.sha256


def test_what_defines_it_decides_its_folder() -> None:
    suite, data = Few(), data_of(Few())
    spec = joint_spec(suite, 0, SETTINGS, data)  # type: ignore[arg-type]
    assert spec.task == "multi_task"
    assert "-multi_task-seed0-" in spec.key
    others = [
        joint_spec(suite, 1, SETTINGS, data),  # type: ignore[arg-type]
        joint_spec(Few(2), 0, SETTINGS, data),  # type: ignore[arg-type]
        joint_spec(suite, 0, replace(SETTINGS, steps=3), data),  # type: ignore[arg-type]
        joint_spec(suite, 0, SETTINGS, data | {SUITE.tasks[1].name: "0" * 64}),  # type: ignore[arg-type]
    ]
    assert len({s.key for s in (spec, *others)}) == 5


def test_a_machine_with_other_data_does_not_train(tmp_path: Path) -> None:
    suite, data = Few(), data_of(Few())
    spec = joint_spec(suite, 0, SETTINGS, data | {SUITE.tasks[1].name: "0" * 64})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the training data of multi_task must have the hash"):
        finetune(suite, spec, tmp_path)  # type: ignore[arg-type]


def test_a_mixtures_hash_is_that_of_its_parts_in_order() -> None:
    first, second = (SUITE.examples(t.name, Split.TRAIN).first(4) for t in SUITE.tasks[:2])
    mixed = Mixture((first, second))
    assert mixed.sha256 == joint_sha256([first.sha256, second.sha256])
    assert mixed.sha256 != Mixture((second, first)).sha256


@pytest.mark.parametrize("lora", [False, True])
def test_texts_are_learned_together_in_full_and_with_lora(
    cache: HubCache,  # noqa: F811
    tmp_path: Path,
    lora: bool,
) -> None:
    suite = tiny_suite(lora=lora, tasks=("rte", "stsb"))
    settings = replace(suite.finetune, steps=2, batch_size=4, learning_rate=1e-3)
    spec: ExpertSpec = joint_spec(suite, 0, settings, data_of(suite))
    model = finetune(suite, spec, tmp_path)
    assert model.weights.is_dir() == lora
    base = load_weights(suite.base_path(), "base")
    tuned = load_weights(model.weights, "model", base)
    assert tuned.keys() == base.keys()
    assert any(not torch.equal(base[name], tuned[name]) for name in base)
    assert model.manifest["spec"]["settings"]["steps"] == 4

"""Test-time adaptation against autograd through the merge, and torch's own Adam."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from apgd import InputError, TaskVectors
from apgd.adaptation import AdaptationSettings, adapted_coefficients, held, inner_products
from apgd.checkpoints import load_weights, save_weights
from apgd.data import Split, TextExamples
from apgd.heads import mean_entropy
from apgd.suites import suites
from apgd.unlabelled import UnlabelledInputs
from tests.classifiers import LinearHead, Network, experts, images, unlabelled
from tests.conftest import State

SETTINGS = AdaptationSettings(
    coefficient=0.3, iterations=6, learning_rate=0.02, batch_size=8, seed=3, task_wise=False
)
MATRICES = ("first.weight", "second.weight")


class Merged(nn.Module):
    """The definition: a graph from the coefficients through the merge to the entropy."""

    def __init__(self, base: State, states: dict[str, State], task_wise: bool) -> None:
        super().__init__()
        self.base, self.states = base, states
        rows = 1 if task_wise else len(MATRICES)
        self.coefficients = nn.Parameter(torch.full((rows, len(states)), SETTINGS.coefficient))
        self.network = Network().eval()

    def forward(self, pixels: Tensor) -> Tensor:
        weights = dict(self.base)
        for row, name in enumerate(MATRICES):
            for number, state in enumerate(self.states.values()):
                coefficient = self.coefficients[row % len(self.coefficients), number]
                weights[name] = weights[name] + coefficient * (state[name] - self.base[name])
        scores: Tensor = functional_call(self.network, weights, (pixels,))
        return scores


def by_definition(
    base: State, states: dict[str, State], inputs: UnlabelledInputs, settings: AdaptationSettings
) -> Tensor:  # (1 or matrices, N)
    merged = Merged(base, states, settings.task_wise)
    optimizer = torch.optim.Adam([merged.coefficients], lr=settings.learning_rate)
    for step in range(settings.iterations):
        optimizer.zero_grad()
        total = torch.zeros(())
        for name in states:
            rows = inputs.batch(name, step, settings.batch_size, settings.seed)
            total = total + inputs.heads[name].entropy(merged, inputs.inputs[name], rows)
        total.backward()
        optimizer.step()
    return merged.coefficients.detach()


@pytest.mark.parametrize("task_wise", [False, True])
@pytest.mark.parametrize("iterations", [1, 6])
def test_steps_are_those_of_autograd_and_adam(task_wise: bool, iterations: int) -> None:
    base, states = experts()
    inputs = unlabelled(base, list(states))
    settings = replace(SETTINGS, task_wise=task_wise, iterations=iterations)
    found = adapted_coefficients(TaskVectors(base, states), inputs, settings)
    expected = by_definition(base, states, inputs, settings).expand(len(MATRICES), -1)
    assert list(found) == list(MATRICES)
    for row, name in enumerate(MATRICES):
        torch.testing.assert_close(found[name], expected[row], rtol=1e-5, atol=1e-6)
        assert (found[name] - SETTINGS.coefficient).abs().min() > 0.2 * SETTINGS.learning_rate


def test_adam_is_followed_where_gradients_are_so_small_that_epsilon_counts() -> None:
    base, states = experts(size=3e-8)
    inputs = unlabelled(base, list(states))
    found = adapted_coefficients(TaskVectors(base, states), inputs, SETTINGS)
    expected = by_definition(base, states, inputs, SETTINGS)
    change = found[MATRICES[0]] - SETTINGS.coefficient
    assert change.abs().max() > 1e-4
    torch.testing.assert_close(
        change, expected[0] - SETTINGS.coefficient, rtol=5e-3, atol=1e-6
    )  # of task vectors that are rounding itself


def test_entropy_falls() -> None:
    base, states = experts()
    inputs = unlabelled(base, list(states))
    vectors = TaskVectors(base, states)

    @torch.no_grad()
    def total(coefficients: dict[str, Tensor]) -> float:
        model = Network().eval()
        delta = {n: torch.einsum("i,imn->mn", c, vectors[n]) for n, c in coefficients.items()}
        model.load_state_dict(vectors.apply(delta))
        every = np.arange(40)
        return sum(float(inputs.heads[n].entropy(model, inputs.inputs[n], every)) for n in states)

    start = adapted_coefficients(vectors, inputs, replace(SETTINGS, iterations=0))
    assert all((value == np.float32(0.3)).all() for value in start.values())
    later = adapted_coefficients(vectors, inputs, replace(SETTINGS, iterations=40))
    assert total(later) < 0.9 * total(start)


def test_the_order_of_experts_does_not_matter() -> None:
    base, states = experts()
    names = list(states)
    found = adapted_coefficients(TaskVectors(base, states), unlabelled(base, names), SETTINGS)
    turned = dict(reversed(states.items()))
    again = adapted_coefficients(TaskVectors(base, turned), unlabelled(base, names[::-1]), SETTINGS)
    for name in MATRICES:
        torch.testing.assert_close(again[name].flip(0), found[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("task_wise", [False, True])
def test_files_and_memory_give_the_same_bits(tmp_path: Path, task_wise: bool) -> None:
    base, states = experts()
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("base", *states)}
    for name, path in paths.items():
        save_weights(path, base if name == "base" else states[name])
    inputs = unlabelled(base, list(states))
    settings = replace(SETTINGS, task_wise=task_wise)
    in_memory = adapted_coefficients(TaskVectors(base, states), inputs, settings)
    source = paths.pop("base")
    for keep in (False, True):
        again = adapted_coefficients(TaskVectors(source, paths, keep=keep), inputs, settings)
        assert all(torch.equal(again[name], in_memory[name]) for name in MATRICES)


def test_held_vectors_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base, states = experts()
    vectors = TaskVectors(base, states, keep=False)
    kept = held(vectors)
    assert kept[MATRICES[0]] is kept[MATRICES[0]]
    assert vectors[MATRICES[0]] is not vectors[MATRICES[0]]
    assert torch.equal(vectors[MATRICES[0]], kept[MATRICES[0]])
    monkeypatch.setattr("apgd.adaptation.free_memory", lambda _device: 1000)
    assert held(vectors) is vectors
    already = TaskVectors(base, states, keep=True)
    for room in (1000, 10**9):  # no second copy of what is held anyway
        monkeypatch.setattr("apgd.adaptation.free_memory", lambda _device, room=room: room)
        assert held(already)[MATRICES[0]] is already[MATRICES[0]]


@pytest.mark.parametrize("task_wise", [False, True])
def test_task_vectors_are_read_once_per_step(task_wise: bool) -> None:
    base, states = experts()
    reads: list[str] = []

    class Counting(TaskVectors):
        def __getitem__(self, name: str) -> Tensor:
            reads.append(name)
            return super().__getitem__(name)

    settings = replace(SETTINGS, task_wise=task_wise)
    adapted_coefficients(Counting(base, states), unlabelled(base, list(states)), settings)
    per_step = 2 if task_wise else 1
    assert len(reads) == len(MATRICES) * (1 + per_step * SETTINGS.iterations)


def test_only_merged_matrices_get_gradients_and_no_dropout() -> None:
    base, states = experts()
    inputs = unlabelled(base, list(states))
    seen: list[tuple[set[str], bool]] = []

    class Watching(LinearHead):
        def entropy(self, model: nn.Module, examples: Any, rows: np.ndarray) -> Tensor:
            learning = {n for n, p in model.named_parameters() if p.requires_grad}
            seen.append((learning, any(module.training for module in model.modules())))
            return super().entropy(model, examples, rows)

    heads = {n: Watching(h.classes) for n, h in inputs.heads.items() if isinstance(h, LinearHead)}
    adapted_coefficients(TaskVectors(base, states), replace(inputs, heads=heads), SETTINGS)
    assert seen == [(set(MATRICES), False)] * len(states) * SETTINGS.iterations


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("other", [False, True])
def test_the_model_is_left_as_it_was(fails: bool, other: bool) -> None:
    base, states = experts()
    inputs = unlabelled(base, list(states))
    model = inputs.model
    if other:  # not the base's weights: those of an expert
        model.load_state_dict(states["expert1"])
    model.train()
    model.drop.eval()
    model.norm.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = None
    if fails:
        broken = LinearHead(torch.full((4, 6), float("nan")))
        inputs = replace(inputs, heads={**inputs.heads, "expert2": broken})
        with pytest.raises(FloatingPointError, match="on expert2 became nan in step 1 of 6"):
            adapted_coefficients(TaskVectors(base, states), inputs, SETTINGS)
    else:
        found = adapted_coefficients(TaskVectors(base, states), inputs, SETTINGS)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
        "norm.weight", "norm.bias"
    }  # fmt: skip
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert not model.drop.training
    if found is not None:  # and what it held before does not matter
        fresh = unlabelled(base, list(states))
        again = adapted_coefficients(TaskVectors(base, states), fresh, SETTINGS)
        assert all(torch.equal(found[name], again[name]) for name in MATRICES)


def test_coefficients_that_run_away_are_told() -> None:
    base, states = experts()
    vectors, inputs = TaskVectors(base, states), unlabelled(base, list(states))
    remedy = "smaller learning rate than 0.02, or smaller coefficients at the start than 0.3"

    class Steep(LinearHead):
        def entropy(self, model: Any, examples: Any, rows: np.ndarray) -> Tensor:
            found = super().entropy(model, examples, rows)
            steep: Tensor = (0 * model.second.weight).sum().sqrt()  # 0, and its slope is not finite
            return found + steep

    heads = {name: Steep(torch.ones(4, 6)) for name in states}
    message = r"coefficients of second.weight became \[nan, .* in step 1 of 6; a " + remedy
    with pytest.raises(FloatingPointError, match=message):
        adapted_coefficients(vectors, replace(inputs, heads=heads), SETTINGS)


def test_progress_is_told() -> None:
    base, states = experts()
    told: list[tuple[int, int]] = []
    inputs = replace(unlabelled(base, list(states)), report=lambda *a: told.append(a))
    adapted_coefficients(TaskVectors(base, states), inputs, SETTINGS)
    assert told == [(step, 6) for step in range(1, 7)]


def test_gradients_work_where_the_caller_infers() -> None:
    base, states = experts()
    inputs = unlabelled(base, list(states))
    vectors = TaskVectors(base, states)
    expected = adapted_coefficients(vectors, inputs, SETTINGS)
    with torch.no_grad():
        found = adapted_coefficients(vectors, inputs, SETTINGS)
    assert all(torch.equal(found[name], expected[name]) for name in MATRICES)


def test_what_does_not_fit_is_refused() -> None:
    base, states = experts()
    inputs = unlabelled(base, list(states))
    vectors = TaskVectors(base, states)
    some = {name: states[name] for name in ("expert0", "expert1")}
    with pytest.raises(InputError, match=r"exactly the experts \['expert0', 'expert1'\], but got"):
        adapted_coefficients(TaskVectors(base, some), inputs, SETTINGS)
    with pytest.raises(InputError, match="lacks 5 of them, the first being first.bias"):
        adapted_coefficients(vectors, replace(inputs, model=nn.Identity()), SETTINGS)
    wide = Network()
    wide.second = nn.Linear(10, 7, bias=False)
    with pytest.raises(InputError, match=r"its second.weight is \(7, 10\) where the base has"):
        adapted_coefficients(vectors, replace(inputs, model=wide), SETTINGS)


def test_labels_cannot_be_reached() -> None:
    base, states = experts()
    inputs = unlabelled(base, list(states))
    labelled = images(0)
    alone = labelled.unlabelled()
    assert not hasattr(alone, "labels")
    with pytest.raises(AttributeError):
        LinearHead(torch.ones(4, 6)).loss(inputs.model, alone, np.arange(2))
    with pytest.raises(AttributeError):
        LinearHead(torch.ones(4, 6)).answers(inputs.model, alone)
    with pytest.raises(InputError, match="without labels, but those of expert0 are ImageExamples"):
        replace(inputs, inputs={**inputs.inputs, "expert0": labelled})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="must be of the same experts"):
        replace(inputs, heads={})
    with pytest.raises(InputError, match="must not be empty, but those of expert0 are"):
        replace(inputs, inputs={**inputs.inputs, "expert0": images(0, 0).unlabelled()})
    texts = TextExamples(("a b", "c"), ("yes", "no")).unlabelled()
    assert not hasattr(texts, "targets")
    assert len(texts) == 2


def test_identity_is_of_the_inputs_alone() -> None:
    first = images(0)
    relabelled = dataclasses.replace(first, labels=(first.labels + 1) % 4, source_sha256="s")
    assert first.sha256 != relabelled.sha256
    assert first.unlabelled().sha256 == relabelled.unlabelled().sha256
    assert first.unlabelled().sha256 != images(1).unlabelled().sha256
    texts = TextExamples(("a", "b"), ("yes", "no"))
    turned = TextExamples(("a", "b"), ("no", "yes"))
    assert texts.unlabelled().sha256 == turned.unlabelled().sha256
    assert texts.unlabelled().sha256 != TextExamples(("b", "a"), ("", "")).unlabelled().sha256
    inputs = unlabelled(experts()[0], ["a"])
    assert inputs.identity() == {"of": "", "a": inputs.inputs["a"].sha256}
    named = dataclasses.replace(inputs, label="another suite")
    assert named.identity() != inputs.identity()


def test_batches_are_a_function_of_seed_and_step() -> None:
    inputs = unlabelled(experts()[0], ["a", "b"])
    epoch = [inputs.batch("a", step, 8, seed=1) for step in range(5)]
    assert sorted(np.concatenate(epoch)) == list(range(40))
    assert np.array_equal(inputs.batch("a", 3, 8, seed=1), epoch[3])
    assert not np.array_equal(inputs.batch("b", 3, 8, seed=1), epoch[3])
    assert not np.array_equal(inputs.batch("a", 3, 8, seed=2), epoch[3])
    assert not np.array_equal(inputs.batch("a", 8, 8, seed=1), epoch[3])
    assert sorted(inputs.batch("a", 0, 100, seed=1)) == list(range(40))
    alone = unlabelled(experts()[0], ["a"])
    assert np.array_equal(alone.batch("a", 3, 8, seed=1), epoch[3])


def test_entropy_is_the_definition() -> None:
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 2.0, -1.0, 0.5]])
    shares = scores[1].double().exp() / scores[1].double().exp().sum()
    second = -(shares * shares.log()).sum()
    expected = (torch.tensor(4.0).log() + second.float()) / 2
    torch.testing.assert_close(mean_entropy(scores), expected)
    torch.testing.assert_close(mean_entropy(scores.bfloat16()), expected, rtol=1e-2, atol=0)
    sure = torch.tensor([[1e4, 0.0, -1e4]], requires_grad=True)
    mean_entropy(sure).backward()
    assert float(mean_entropy(sure)) == 0
    assert sure.grad is not None
    assert torch.equal(sure.grad, torch.zeros(1, 3))


def test_zero_shot_head_has_the_entropy_of_its_classes() -> None:
    suite = suites["mini_vision"]
    model = suite.build_model()
    model.load_state_dict(load_weights(suite.base_path(), "the base"))
    model.eval()
    head = suite.head(model, suite.task("signs"))
    examples = suite.examples("signs", Split.VALIDATION)
    rows = np.array([5, 2, 9])
    shares = head.logits(model, examples.images[rows]).softmax(dim=1).double()  # type: ignore[attr-defined]
    expected = -(shares * shares.log()).sum(dim=1).mean()
    found = head.entropy(model, examples.unlabelled(), rows)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


def test_inner_products_are_the_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 7, 1), (2, 1, 5), (4, 300, 400)):
        tau = torch.randn(shape, generator=generator)
        gradient = torch.randn(shape[1:], generator=generator)
        expected = (tau.double() * gradient.double()).sum(dim=(1, 2))
        torch.testing.assert_close(inner_products(tau, gradient), expected, rtol=1e-4, atol=1e-4)

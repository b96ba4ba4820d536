"""What merges share is found once, and is what each would find alone."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from apgd import shared_work
from apgd.projective import shared_subspace, task_bases
from apgd.shared_work import SharedWork
from apgd.task_vectors import TaskVectors
from tests.conftest import State

Make = Callable[..., tuple[State, dict[str, State]]]


@pytest.fixture
def vectors(model: Make) -> TaskVectors:
    return TaskVectors(*model())


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often something was decomposed, or thresholds were looked for."""
    counted: Counter[str] = Counter()

    def counting(place: Any, name: str) -> None:
        original = getattr(place, name)

        def call(*arguments: Any) -> Any:
            counted[name] += 1
            return original(*arguments)

        monkeypatch.setattr(place, name, call)

    counting(shared_work, "task_bases")
    counting(shared_work, "shared_of")
    counting(TaskVectors, "magnitude_thresholds")
    return counted


def projector(basis: Tensor) -> Tensor:
    return basis @ basis.T


def test_a_matrix_is_decomposed_once_for_every_size(
    vectors: TaskVectors, counts: Counter[str]
) -> None:
    shared = SharedWork(vectors)
    for _ in range(3):
        for size in (1, 2, 4):
            for name in vectors.names:
                shared.subspace(name, size, size)
    matrices = len(vectors.names)
    assert counts == {"task_bases": matrices, "shared_of": 3 * matrices}


def test_nothing_is_decomposed_whose_vectors_are_known(
    vectors: TaskVectors, counts: Counter[str]
) -> None:
    known = {name: task_bases(vectors[name], 3) for name in vectors.names}
    shared = SharedWork(vectors, known)
    for name in vectors.names:
        shared.subspace(name, 2, 2)
        assert shared.bases(name) is known[name]
    assert counts["task_bases"] == 0
    assert counts["shared_of"] == len(vectors.names)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("k", "shared_k"), [(1, 1), (2, 2), (3, 2), (4, 20), (0, 0), (100, 3)])
def test_subspaces_are_those_of_one_merge(
    known: bool, k: int, shared_k: int, vectors: TaskVectors
) -> None:
    largest = {name: task_bases(vectors[name], 5) for name in vectors.names}
    shared = SharedWork(vectors, largest if known and k <= 5 else None)
    for name in vectors.names:
        found = shared.subspace(name, k, shared_k)
        expected = shared_subspace(vectors[name], k, shared_k)
        assert found.shape == expected.shape
        torch.testing.assert_close(projector(found), projector(expected), atol=2e-6, rtol=0)


def test_subspaces_of_the_last_sizes_are_kept(vectors: TaskVectors, counts: Counter[str]) -> None:
    shared = SharedWork(vectors)
    sizes = [(1, 1), (2, 2), (3, 3), (4, 4)]
    for size in (*sizes, *sizes):
        shared.subspace("square", *size)
    assert counts["shared_of"] == 4
    shared.subspace("square", 5, 5)  # in the place of (1, 1)
    for size in sizes[1:]:
        shared.subspace("square", *size)
    assert counts["shared_of"] == 5
    shared.subspace("square", 1, 1)
    assert counts["shared_of"] == 6
    assert counts["task_bases"] == 1


def test_thresholds_are_looked_for_once_per_keep_ratio(
    vectors: TaskVectors, counts: Counter[str]
) -> None:
    shared = SharedWork(vectors)
    for _ in range(3):
        for ratio in (0.1, 0.3, 1.0):
            found = shared.magnitude_thresholds(ratio)
            torch.testing.assert_close(found, TaskVectors.magnitude_thresholds(vectors, ratio))
    assert counts["magnitude_thresholds"] == 3 + 9  # once each, and nine times by this test

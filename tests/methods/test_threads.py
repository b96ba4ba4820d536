"""Elementwise methods give the same bits on any number of threads and in other processes."""

import pickle

import pytest
import torch

from apgd import TaskVectors
from apgd.methods import methods
from tests.conftest import same_bits

SHAPES = {"a": (700, 450), "b": (90, 1300), "c": (1, 17)}
NAMES = ["dare_average", "dare_ties", "breadcrumbs", "pcb", "consensus_ta", "consensus_ties"]


@pytest.fixture(scope="module")
def vectors() -> TaskVectors:
    generator = torch.Generator().manual_seed(0)
    base = {n: torch.randn(s, generator=generator) for n, s in SHAPES.items()}
    experts = {
        f"e{i}": {n: t + 0.01 * torch.randn(t.shape, generator=generator) for n, t in base.items()}
        for i in range(3)
    }
    return TaskVectors(base, experts, keep=False)


@pytest.mark.parametrize("name", NAMES)
def test_threads_do_not_matter(name: str, vectors: TaskVectors) -> None:
    method = methods[name]
    params = method.parse({})
    one = method.merge(vectors, params)
    torch.set_num_threads(3)
    three = method.merge(vectors, params)
    assert all(same_bits(one[n], three[n]) for n in SHAPES)


@pytest.mark.parametrize("name", NAMES)
def test_what_other_processes_are_sent_arrives_whole(name: str, vectors: TaskVectors) -> None:
    method = methods[name]
    params = method.parse({})
    changed = method.transform(vectors, params)
    prepared = method.prepare(changed, params, None)  # type: ignore[arg-type]
    ours = method.combine(changed["b"], params, prepared)
    there, settings, known = pickle.loads(pickle.dumps((changed, params, prepared)))  # noqa: S301
    theirs = method.combine(there["b"], settings, known)
    ours, theirs = (getattr(found, "delta", found) for found in (ours, theirs))
    assert same_bits(ours, theirs)
    assert len(pickle.dumps(prepared)) < 10_000

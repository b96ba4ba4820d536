"""A search as one writes it first: a function for Ray Tune that does a trial from its beginning.

Every trial is a process of its own, which loads base and experts, merges, reads the validation
examples and scores them all. Nothing is shared and nothing is stopped.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from optuna.samplers import TPESampler
from ray import tune as ray_tune
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search.optuna import OptunaSearch
from torch import Tensor

import apgd
from apgd.checkpoints import load_weights
from apgd.data import Split
from apgd.heads import judge
from apgd.methods import Limit, Value, methods
from apgd.methods._apgd import default_basis_size
from apgd.suites import suites
from apgd.task_vectors import Select

ENGINES = ("plain", "apgd")
"""Who merges: torch's SVD and autograd, as `merge_plainly`, or this library's `apgd.merge`."""

State = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Given:
    """What all trials have in common."""

    suite: str
    experts: tuple[tuple[str, str], ...]
    """Tasks and the paths of their experts."""
    engine: str
    """One of `ENGINES`."""
    limit: int | None
    """Only the first so many validation examples of each task; all where None."""


@dataclass(frozen=True)
class NaiveSearch:
    """What came out."""

    ended: list[float]
    """When each trial ended, on the performance counter, in the order in which they began."""
    seconds: dict[str, float]
    """Mean seconds of a trial in each of its steps, as it measured them itself."""
    best: float
    """Largest mean accuracy on validation examples."""


def run_naively(
    given: Given, published: Mapping[str, Value], rank: int, trials: int, scratch: Path
) -> NaiveSearch:
    """Search η, k, iterations, learning rate and keep ratio of DOGE TA.

    Args:
        given: what is merged and judged.
        published: parameters that are tried first.
        rank: r, the largest k.
        trials: how many; as many run side by side as Ray has CPUs.
        scratch: folder for Tune's files.

    Raises:
        RuntimeError: where a trial failed.
    """
    ends = _Ends()
    space = search_space(rank)
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(ray_tune.with_parameters(trial, given=given), {"cpu": 1}),
        param_space=space,
        tune_config=ray_tune.TuneConfig(
            metric="accuracy",
            mode="max",
            num_samples=trials,
            search_alg=OptunaSearch(
                sampler=TPESampler(seed=0),
                points_to_evaluate=[{name: published[name] for name in space}],
            ),
            reuse_actors=False,
        ),
        run_config=ray_tune.RunConfig(
            name="naive", storage_path=str(scratch.resolve()), verbose=0, callbacks=[ends]
        ),
    )
    results = tuner.fit()
    if results.errors:
        raise RuntimeError(f"a naive trial failed: {results.errors[0]}")
    found = [result.metrics or {} for result in results]
    steps = ("load", "merge", "read", "score")
    return NaiveSearch(
        ended=[ends.times[number] for number in sorted(ends.times)],
        seconds={step: sum(of[step] for of in found) / len(found) for step in steps},
        best=max(float(of["accuracy"]) for of in found),
    )


def search_space(rank: int) -> dict[str, Any]:
    """DOGE TA's declared ranges, for Tune."""
    space: dict[str, Any] = {}
    for declared in methods["doge_ta"].params.declared():
        if declared.search is None:
            continue
        low, high = declared.search
        top = rank if isinstance(high, Limit) else high
        if declared.kind is int:
            draw = ray_tune.lograndint if declared.log else ray_tune.randint
            space[declared.name] = draw(int(low), int(top) + 1)
        else:
            between = ray_tune.loguniform if declared.log else ray_tune.uniform
            space[declared.name] = between(low, top)
    return space


class _Ends(ray_tune.Callback):
    """Notes when trials end."""

    def __init__(self) -> None:
        self.times: dict[int, float] = {}

    def on_trial_complete(
        self,
        iteration: int,  # noqa: ARG002 - Tune's interface
        trials: list[TuneTrial],
        trial: TuneTrial,
        **_info: Any,
    ) -> None:
        """Called with a trial that came to its end."""
        self.times[trials.index(trial)] = time.perf_counter()


def trial(config: dict[str, Any], given: Given) -> None:
    """Do a whole trial."""
    torch.set_num_threads(int(ray.get_runtime_context().get_assigned_resources()["CPU"]))
    times = [time.perf_counter()]

    def lap() -> float:
        times.append(time.perf_counter())
        return times[-1] - times[-2]

    suite = suites[given.suite]
    base = load_weights(suite.base_path(), "the base")
    experts = {task: load_weights(Path(path), task, base) for task, path in given.experts}
    seconds = {"load": lap()}
    if given.engine == "apgd":
        merged = dict(apgd.merge("doge_ta", base, experts, select=suite.is_merged, **config))
    else:
        merged = merge_plainly(base, experts, suite.is_merged, **config)
    seconds["merge"] = lap()
    examples = {task: suite.examples(task, Split.VALIDATION) for task in experts}
    if given.limit is not None:
        examples = {task: found.first(given.limit) for task, found in examples.items()}
    seconds["read"] = lap()
    model = suite.build_model()
    model.load_state_dict(base)
    heads = {task: suite.head(model, suite.task(task)) for task in experts}
    model.load_state_dict(merged)
    scores = [float(judge(model, heads[task], examples[task]).mean()) for task in experts]
    seconds["score"] = lap()
    ray_tune.report({"accuracy": sum(scores) / len(scores), **seconds})


def merge_plainly(
    base: State,
    experts: Mapping[str, State],
    select: Select,
    *,
    eta: float,
    iterations: int,
    learning_rate: float,
    keep_ratio: float,
    basis_size: int | None = None,
) -> State:
    """DOGE TA as the paper writes it down, without a thought for speed: full SVDs and autograd.

    Args:
        base: θ_0.
        experts: θ_i.
        select: whether a parameter is merged.
        eta: η of the coefficients.
        iterations: of Adam.
        learning_rate: Adam's.
        keep_ratio: share of every task vector's entries that is kept.
        basis_size: k; ⌊r/N⌋ where None.
    """
    merged = dict(base)
    names = [name for name, tensor in base.items() if select(name, tensor)]
    tau = {
        name: torch.stack([expert[name] - base[name] for expert in experts.values()])
        for name in names
    }  # (N, m, n)
    sizes = torch.cat([tau[name].abs().flatten(1) for name in names], dim=1)
    entries = sizes.shape[1]
    smaller = max(1, entries - int(keep_ratio * entries))
    thresholds = sizes.sort(dim=1).values[:, smaller - 1]  # (N,)
    for name in names:
        vectors = tau[name]
        k = basis_size or default_basis_size(min(vectors.shape[1:]), len(experts))
        coefficients = eta / vectors.flatten(1).norm(dim=1)  # (N,)
        weighted = torch.einsum("i,imn->mn", coefficients, vectors)
        parts = [torch.linalg.svd(of, full_matrices=False).U[:, :k] for of in vectors]
        basis = torch.linalg.svd(torch.cat(parts, dim=1), full_matrices=False).U[:, :k]  # (m, k)
        delta = torch.zeros_like(vectors[0], requires_grad=True)
        adam = torch.optim.Adam([delta], lr=learning_rate)
        for _ in range(iterations):
            adam.zero_grad()
            gaps = (vectors * (vectors - weighted - coefficients.sum() * delta)).sum(dim=2)
            torch.autograd.backward(gaps.square().sum())
            if delta.grad is None:
                raise RuntimeError("the loss must have a gradient, but has none")
            delta.grad -= basis @ (basis.T @ delta.grad)
            adam.step()
        kept = vectors.abs() >= thresholds[:, None, None]
        change = torch.einsum("i,imn->mn", coefficients, kept * (vectors + delta.detach()))
        merged[name] = base[name] + change
    return merged

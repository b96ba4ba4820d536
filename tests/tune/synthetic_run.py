"""Run folders with made-up results: what the report reads, without anything being trained."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from apgd.data import Examples, ImageExamples
from tune.records import Kind, Record, RecordStore, Variant
from tune.references import REFERENCES
from tune.report import Axis

TASKS = {
    "digits": ("House numbers", "SVHN", 10),
    "signs": ("Rendered signs", "GTSRB", 43),
    "glyphs": ("Handwritten glyphs", None, 26),
    "fabric": ("Textures", "DTD", 12),
}
UNSEEN = {"fields": ("Fields from above", "EuroSAT", 8), "marks": ("Pen marks", "MNIST", 10)}
CORRUPTED = ("digits", "signs")
CORRUPTIONS = ("motion_blur", "gaussian_noise", "contrast")
TITLES = {
    "average": "Weight averaging",
    "task_arithmetic": "Task Arithmetic",
    "ties": "Ties-Merging",
    "doge_ta": "DOGE TA",
}
AXES = {
    "task_arithmetic": [Axis(name="scaling", meaning="factor of the summed task vectors")],
    "ties": [
        Axis(name="scaling", meaning="factor of the merged task vector"),
        Axis(name="keep_ratio", meaning="share of the entries that are kept"),
    ],
    "doge_ta": [
        Axis(name="eta", meaning="global magnitude of the coefficients", log=True),
        Axis(name="keep_ratio", meaning="share of the entries that are kept"),
        Axis(name="iterations", meaning="steps of the descent", log=True),
    ],
}
PUBLISHED: dict[str, dict[str, float | int | None]] = {
    "average": {},
    "task_arithmetic": {"scaling": 0.3},
    "ties": {"scaling": 0.3, "keep_ratio": 0.2},
    "doge_ta": {"eta": 0.07, "keep_ratio": 0.3, "iterations": 400},
}
RATES = {
    "pretrained": 0.42,
    "experts": 0.93,
    "average": 0.60,
    "task_arithmetic": 0.66,
    "ties": 0.68,
    "doge_ta": 0.745,
}


def manifest(seeds: int = 1, **changes: object) -> dict[str, object]:
    """A complete manifest; `changes` replace its top-level fields."""

    def listed(tasks: Mapping[str, tuple[str, str | None, int]]) -> list[dict[str, object]]:
        return [
            {"name": name, "title": title, "stands_for": place, "classes": classes}
            for name, (title, place, classes) in tasks.items()
        ]

    return {
        "experiment": {
            "name": "small-repro",
            "suite": "small",
            "seeds": seeds,
            "trials": 20,
            "methods": list(TITLES),
            "smoke": False,
            "level": 0.95,
        },
        "suite": {
            "name": "small",
            "title": "A small encoder on rendered tasks",
            "published_suite": "clip_vit_b32_8",
            "tasks": listed(TASKS),
            "unseen": listed(UNSEEN),
            "corrupted": list(CORRUPTED),
            "corruptions": list(CORRUPTIONS),
        },
        "versions": {"apgd": "0.1.0", "torch": "2.13.0", "ray": "2.60.0", "python": "3.11.9"},
        "git_commit": "0123456789abcdef0123456789abcdef01234567",
        "git_dirty": False,
        "machine": {
            "description": "one machine, 16 cores",
            "cpus": 16,
            "gpus": [],
            "workers": 4,
            "threads_per_worker": 4,
        },
        "hashes": {
            "base": "a" * 64,
            "experts": {f"{task}-seed{seed}": "b" * 64 for task in TASKS for seed in range(seeds)},
            "data": {f"{task}/test": "c" * 64 for task in (*TASKS, *UNSEEN)},
        },
        "command": "python -m experiments.small_repro --seeds 3 --trials 20",
        "started": "2026-01-05T09:30:00+00:00",
        "finished": "2026-01-05T11:02:10+00:00",
        "stages": [
            {"name": "experts", "seconds": 3120.5, "done": 9, "reused": 3},
            {"name": "search", "seconds": 1810.0, "done": 180, "reused": 0},
            {"name": "evaluation", "seconds": 61.2, "done": 22, "reused": 0},
        ],
        "split_reads": {"validation": 180, "test": 22},
        **changes,
    }


def write_manifest(run_dir: Path, content: Mapping[str, object]) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "manifest.json").write_text(json.dumps(content), encoding="utf-8")


def add_row(
    run_dir: Path,
    method: str,
    variant: Variant,
    seed: int,
    correct: Mapping[str, np.ndarray],
    params: Mapping[str, float | int | None] | None = None,
) -> None:
    """One evaluation with these results per example."""
    record = Record(
        kind=Kind.EVALUATION,
        method=method,
        variant=variant,
        seed=seed,
        params=params or {},
        inputs={"base": "a" * 64},
        scores={cell: float(bits.mean()) for cell, bits in correct.items()},
        seconds={"merge": 12.5, "score": 30.0},
    )
    RecordStore(run_dir).add(record, correct)


def add_trial(
    run_dir: Path,
    method: str,
    seed: int,
    params: Mapping[str, float | int | None],
    scores: Mapping[str, float],
) -> None:
    """One trial with these validation accuracies by task."""
    record = Record(
        kind=Kind.TRIAL,
        method=method,
        variant=Variant.TUNED,
        seed=seed,
        params=params,
        inputs={},
        scores={f"validation/{task}": score for task, score in scores.items()},
    )
    RecordStore(run_dir).add(record)


def write_run(
    run_dir: Path,
    *,
    seeds: int = 1,
    examples: int = 400,
    rates: Mapping[str, float] = RATES,
    trials: int = 20,
) -> None:
    """A whole run whose methods are right about as often as `rates` says."""
    write_manifest(run_dir, manifest(seeds))
    rng = np.random.default_rng(17)
    ease = {cell: rng.random(examples) for cell in _cells()}
    for seed in range(seeds):
        for method, rate in rates.items():
            if method == "pretrained" and seed > 0:
                continue
            reference = method in REFERENCES
            variants = [Variant.REFERENCE] if reference else [Variant.PUBLISHED, Variant.TUNED]
            for variant in variants:
                if method == "average" and variant is Variant.TUNED:
                    continue
                lift = 0.02 * (variant is Variant.TUNED) + rng.normal(0, 0.006)
                correct = {
                    cell: values + rng.normal(0, 0.15, examples) < rate + lift - _penalty(cell)
                    for cell, values in ease.items()
                    if not (method == "experts" and cell.split("/")[1] in UNSEEN)
                }
                params = PUBLISHED.get(method, {})
                if variant is Variant.TUNED:
                    params = _search(run_dir, method, seed, trials, rng)
                add_row(run_dir, method, variant, seed, correct, params)
        for task in TASKS:
            _add_expert(run_dir, task, seed)


def _search(
    run_dir: Path, method: str, seed: int, trials: int, rng: np.random.Generator
) -> dict[str, float | int | None]:
    """Trials around the published settings; returns the parameters of the best."""
    best: tuple[float, dict[str, float | int | None]] = (-1.0, {})
    for _ in range(trials):
        factors = np.exp(rng.normal(0, 0.5, len(PUBLISHED[method])))
        params: dict[str, float | int | None] = {
            name: type(value)(min(value * factor, 0.95) if value < 1 else value * factor)
            for (name, value), factor in zip(PUBLISHED[method].items(), factors, strict=True)
            if value is not None
        }
        score = RATES[method] - 0.05 * float(np.sum(np.log(factors) ** 2)) + rng.normal(0, 0.004)
        add_trial(run_dir, method, seed, params, dict.fromkeys(TASKS, score))
        best = max(best, (score, params), key=lambda pair: pair[0])
    return best[1]


def _add_expert(run_dir: Path, task: str, seed: int) -> None:
    RecordStore(run_dir).add(
        Record(
            kind=Kind.EXPERT,
            method=task,
            variant=Variant.REFERENCE,
            seed=seed,
            params={},
            inputs={"seed": str(seed)},
            scores={f"validation/{task}": 0.93},
            seconds={"train": 260.0 + seed},
            details={"tau_norm_ratio": 0.021 + 0.001 * seed, "steps": 2000},
        )
    )


def _cells() -> list[str]:
    plain = [f"test/{task}" for task in (*TASKS, *UNSEEN)]
    return plain + [f"{corruption}/{task}" for corruption in CORRUPTIONS for task in CORRUPTED]


def _penalty(cell: str) -> float:
    condition, task = cell.split("/")
    shift = {"digits": 0.05, "signs": -0.06, "glyphs": 0.0, "fabric": 0.1}.get(task, 0.25)
    return shift + (0.0 if condition == "test" else 0.12)


def samples(count: int = 16) -> dict[str, Examples]:
    """Coloured noise, smooth enough to look like something; (count, 32, 32, 3) by task."""
    rng = np.random.default_rng(4)
    coarse = {task: rng.integers(0, 256, (count, 4, 4, 3)) for task in (*TASKS, *UNSEEN)}
    return {
        task: pictures(np.repeat(np.repeat(values, 8, axis=1), 8, axis=2))
        for task, values in coarse.items()
    }


def pictures(images: np.ndarray) -> ImageExamples:
    return ImageExamples(images.astype(np.uint8), np.zeros(len(images), np.int64))

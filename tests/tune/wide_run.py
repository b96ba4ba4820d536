"""A made-up run of every kind of method: twenty-two of them, eight tasks, three seeds."""

from pathlib import Path

import numpy as np
import torch

from apgd.analysis import DeltaLayer, ExpertLayer, delta_layer, expert_layer
from apgd.evidence import Need
from tests.tune.synthetic_run import add_row, add_trial, manifest, write_manifest
from tune.geometry import write_geometry
from tune.records import Kind, RecordStore, Variant
from tune.report import Axis

TITLES = {
    "weight_averaging": "Weight averaging",
    "task_arithmetic": "Task arithmetic",
    "ties": "Ties-Merging",
    "dare_average": "DARE + weight averaging",
    "dare_task_arithmetic": "DARE + task arithmetic",
    "dare_ties": "DARE + Ties-Merging",
    "breadcrumbs": "Model breadcrumbs",
    "pcb": "PCB-Merging",
    "consensus_ta": "Consensus task arithmetic",
    "tsv_m": "TSV-Merge",
    "iso_c": "Iso-C",
    "iso_cts": "Iso-CTS",
    "wudi": "WUDI-Merging",
    "doge_ta": "DOGE TA",
    "fisher": "Fisher merging",
    "regmean": "RegMean",
    "adamerging_task_wise": "AdaMerging (task-wise)",
    "adamerging_layer_wise": "AdaMerging (layer-wise)",
    "adamerging_plusplus_layer_wise": "AdaMerging++ (layer-wise)",
    "doge_am": "DOGE AM",
    "ties+apgd": "Ties-Merging + APGD",
    "tsv_m+apgd": "TSV-Merge + APGD",
}
NEEDS = {
    "fisher": Need.FISHER,
    "regmean": Need.GRAM,
    **{name: Need.INPUTS for name in TITLES if name.startswith("adamerging") or name == "doge_am"},
}
TASKS = {
    "scenes": ("Scenes", "SUN397"),
    "vehicles": ("Vehicles", "Cars"),
    "aerial": ("Aerial objects", "RESISC45"),
    "land": ("Land cover", "EuroSAT"),
    "numerals": ("Numerals", "SVHN"),
    "signs": ("Traffic signs", "GTSRB"),
    "handwriting": ("Handwriting", "MNIST"),
    "textures": ("Textures", "DTD"),
}
AXES = {
    name: [
        Axis(name="coefficient", meaning="factor of the merged task vector"),
        Axis(name="keep_ratio", meaning="share of the entries that are kept", log=True),
    ]
    for name in TITLES
    if name not in ("weight_averaging", "dare_average", "regmean")
}
RATES = {name: 0.60 + 0.011 * (place // 2) for place, name in enumerate(TITLES)}


def write_wide_run(run_dir: Path, *, seeds: int = 3, examples: int = 150, trials: int = 6) -> None:
    """The methods are right about as often as `RATES` says, later ones more often."""
    tasks = [
        {"name": name, "title": title, "stands_for": place, "classes": 10}
        for name, (title, place) in TASKS.items()
    ]
    described = manifest(
        seeds,
        suite={
            "name": "wide",
            "title": "A small encoder on rendered tasks",
            "published_suite": "clip_vit_b32_8",
            "tasks": tasks,
        },
    )
    experiment = {**described["experiment"], "methods": list(TITLES)}  # type: ignore[dict-item]
    write_manifest(run_dir, {**described, "experiment": experiment})
    rng = np.random.default_rng(5)
    ease = {task: rng.random(examples) for task in TASKS}
    likes = {(name, task): rng.normal(0, 0.02) for name in TITLES for task in TASKS}

    def answers(name: str, rate: float) -> dict[str, np.ndarray]:
        return {
            f"test/{task}": values + rng.normal(0, 0.1, examples)
            < rate + likes.get((name, task), 0.0)
            for task, values in ease.items()
        }

    add_row(run_dir, "pretrained", Variant.REFERENCE, 0, answers("pretrained", 0.5))
    for seed in range(seeds):
        add_row(run_dir, "experts", Variant.REFERENCE, seed, answers("experts", 0.9))
        for name, rate in RATES.items():
            add_row(run_dir, name, Variant.PUBLISHED, seed, answers(name, rate - 0.01))
            if name not in AXES:
                continue
            best: dict[str, float | int | None] = {}
            for number in range(trials):
                best = {"coefficient": 0.3 + 0.1 * number, "keep_ratio": 0.1 * (number + 1)}
                score = rate - 0.01 * (trials - number) + rng.normal(0, 0.002)
                add_trial(run_dir, name, seed, best, dict.fromkeys(TASKS, score))
            add_row(run_dir, name, Variant.TUNED, seed, answers(name, rate), best)


def add_geometry(run_dir: Path, *, matrices: int = 12) -> None:
    """Figures of the first seed's rows, as if random task vectors had been merged."""
    generator = torch.Generator().manual_seed(3)
    taus = {
        f"visual.blocks.{number // 2}.{'attn' if number % 2 else 'mlp'}.weight": torch.randn(
            len(TASKS), 16, 12, generator=generator
        )
        for number in range(matrices)
    }
    for record in RecordStore(run_dir).all(Kind.EVALUATION):
        if record.seed or record.method == "pretrained":
            continue
        layers: list[ExpertLayer] | list[DeltaLayer]
        if record.method == "experts":
            layers = [expert_layer(name, tau) for name, tau in taus.items()]
        else:
            share = 1 + list(TITLES).index(record.method) / 10
            layers = [
                delta_layer(name, tau, share * tau[: 3 + record.seed].mean(dim=0))
                for name, tau in taus.items()
            ]
        write_geometry(run_dir, record.key, record.method, tuple(TASKS), layers)

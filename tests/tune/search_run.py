"""A made-up run whose search stopped trials early, swept settings inside them, and had failures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tests.tune.synthetic_run import AXES, TASKS, TITLES, manifest, write_manifest
from tune.records import Kind, Record, RecordStore, Variant
from tune.report import Axis

SHARES = (1 / 9, 1 / 3, 1.0)
KEEP_RATIOS = (0.1, 0.3, 0.6, 1.0)
ITERATIONS = (50, 150, 400)
SEARCH_TITLES = {name: TITLES[name] for name in ("doge_ta", "ties")}
SEARCH_AXES: Mapping[str, Sequence[Axis]] = {
    "doge_ta": [
        Axis(name="eta", meaning="global magnitude of the coefficients", log=True),
        Axis(name="basis_size", meaning="size k of the shared subspace"),
        Axis(name="learning_rate", meaning="of Adam", log=True),
        Axis(name="iterations", meaning="steps of the descent", log=True),
        Axis(name="keep_ratio", meaning="share of the entries that are kept"),
    ],
    "ties": AXES["ties"],
}


def trial(
    number: int,
    seed: int = 0,
    *,
    method: str = "doge_ta",
    params: Mapping[str, float] | None = None,
    rungs: Sequence[tuple[float, Sequence[tuple[Mapping[str, float], Mapping[str, float]]]]] = (),
    stopped: bool = False,
    reads: Mapping[str, int] | None = None,
) -> Record:
    """A trial that judged these rungs: shares, each with (parameters, objectives) of settings."""
    stored = []
    for share, settings in rungs:
        accuracies = [found["accuracy"] for _, found in settings]
        stored.append(
            {
                "share": share,
                "settings": [{"params": dict(p), "objectives": dict(o)} for p, o in settings],
                "best": int(np.argmax(accuracies)),
            }
        )
    share, settings = rungs[-1]
    own, reached = settings[stored[-1]["best"]]
    return Record(
        kind=Kind.TRIAL,
        method=method,
        variant=Variant.TUNED,
        seed=seed,
        params={**(params or {}), **own},
        inputs={"number": str(number)},
        scores={f"validation/{task}": reached["accuracy"] for task in TASKS},
        details={
            "number": number,
            "share": share,
            "stopped": stopped,
            "objectives": dict(reached),
            "rungs": stored,
            "reads": dict(reads or {"validation": 4 * len(rungs)}),
        },
    )


def failed(number: int, seed: int = 0, *, method: str = "doge_ta", error: str = "") -> Record:
    """A trial that failed."""
    return Record(
        kind=Kind.TRIAL,
        method=method,
        variant=Variant.TUNED,
        seed=seed,
        params={"eta": 0.5},
        inputs={"number": str(number)},
        scores={},
        details={"number": number, "error": error or "the merge ran out of memory"},
    )


def begin(
    run_dir: Path, *trials: Record, seeds: int = 1, objectives: Sequence[str] = ("accuracy",)
) -> None:
    """A run of these trials alone."""
    content = manifest(seeds)
    fields = {"methods": list(SEARCH_TITLES), "objectives": list(objectives)}
    experiment = {**content["experiment"], **fields}  # type: ignore[dict-item]
    write_manifest(run_dir, {**content, "experiment": experiment})
    store = RecordStore(run_dir)
    for record in trials:
        store.add(record)


def searched(
    seeds: int = 2, count: int = 24, *, names: Sequence[str] = ("accuracy",)
) -> list[Record]:
    """Trials of DOGE TA whose score depends on eta most, on keep_ratio a little, on k hardly."""
    rng = np.random.default_rng(11)
    trials = []
    for seed in range(seeds):
        for number in range(count):
            if number == 5:
                trials.append(failed(number, seed))
                continue
            params = {
                "eta": float(np.exp(rng.uniform(np.log(0.01), 0))),
                "basis_size": int(rng.integers(1, 17)),
                "learning_rate": float(np.exp(rng.uniform(np.log(1e-5), np.log(1e-3)))),
            }
            base = 0.72 + 0.05 * seed - 0.03 * np.log(params["eta"] / 0.07) ** 2
            reached = 3 if base > 0.66 else 2 if base > 0.6 else 1
            rungs = []
            for share, steps in list(zip(SHARES, ITERATIONS, strict=True))[:reached]:
                settings = []
                for keep in KEEP_RATIOS:
                    score = base - 0.05 * (keep - 0.3) ** 2 + 0.01 * np.log10(steps / 400)
                    score += float(rng.normal(0, 0.004))
                    worst = 0.7 * score + 0.06 * keep + float(rng.normal(0, 0.01))
                    unseen = 0.5 * score - 0.08 * keep + float(rng.normal(0, 0.01))
                    whole = {"accuracy": score, "worst_task": worst, "unseen": unseen}
                    chosen = {name: float(whole[name]) for name in names}
                    settings.append(({"keep_ratio": keep, "iterations": steps}, chosen))
                rungs.append((share, settings))
            trials.append(trial(number, seed, params=params, rungs=rungs, stopped=reached < 3))
    return trials

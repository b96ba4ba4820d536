"""How long things took in earlier runs: experts' manifests, and records of other run folders."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

from apgd.data import Split
from apgd.errors import InputError
from apgd.suites import FinetuneSettings, Suite
from tune.experiment import Experiment
from tune.planning.machines import Machines
from tune.planning.work import example_count
from tune.records import Kind, Record, RecordStore
from tune.references import ENSEMBLE


@dataclass(frozen=True)
class Rates:
    """Seconds that were measured on the same kind of device; empty where nothing was."""

    step: float | None = None
    """Seconds of a step of an expert's training."""
    experts: int = 0
    """Of how many experts that is."""
    rows: Mapping[str, float] = field(default_factory=dict)
    """Seconds of a row of the table, by method."""
    trials: Mapping[str, float] = field(default_factory=dict)
    """Seconds of a trial of a search, by method."""
    merges: Mapping[str, float] = field(default_factory=dict)
    """Seconds of one merge for a row, by method."""
    example: float | None = None
    """Seconds of scoring one example."""
    units: Mapping[str, float] = field(default_factory=dict)
    """Seconds of a worker for a unit of another stage, by the stage's name; `data` where all was
    ready."""
    runs: int = 0
    """Of how many runs rows, trials, merges and units are."""


def measured_rates(experiment: Experiment, suite: Suite, machines: Machines, threads: int) -> Rates:
    """What earlier runs of the suite tell about those machines.

    Args:
        experiment: says where experts and other runs are, and what counts as comparable.
        suite: its suite.
        machines: for which a rate is wanted; only what was measured on the same kind counts.
        threads: of a worker there; what processors with other numbers did does not count.
    """
    steps = list(_step_seconds(experiment, suite, machines, threads))
    runs = list(_runs(experiment, suite, machines, threads))
    limits = f"{experiment.limit}/{experiment.corruption_limit}"
    rows, merges, trials = defaultdict(list), defaultdict(list), defaultdict(list)
    units = defaultdict(list)
    examples = []
    tasks = {task.name for task in suite.tasks}
    for folder, manifest in runs:
        for record in _records(folder, Kind.EVALUATION):
            # Ablations also have rows of fewer tasks.
            whole = tasks <= {cell.split("/")[1] for cell in record.scores}
            if whole and "same_as" not in record.details and "merged" not in record.inputs:
                if record.inputs.get("examples") == limits:
                    rows[record.method].append(sum(record.seconds.values()))
                merges[record.method].append(record.seconds["merge"])
                if record.method != ENSEMBLE and (count := _examples(suite, record)):
                    examples.append(record.seconds["score"] / count)
        for record in _records(folder, Kind.TRIAL):
            same_examples = record.inputs.get("examples", "").split("/")[0] == str(experiment.limit)
            if same_examples and "trial" in record.inputs and "error" not in record.details:
                trials[record.method].append(sum(record.seconds.values()))
        for stage in manifest["stages"]:
            done = stage["reused"] if stage["name"] == "data" else stage["done"]
            others = stage["done"] if stage["name"] == "data" else stage["reused"]
            if done > 0 and others == 0:
                seconds = stage["seconds"] * manifest["machine"]["workers"] / done
                units[stage["name"]].append(seconds)
    return Rates(
        step=median(steps) if steps else None,
        experts=len(steps),
        rows={method: median(found) for method, found in rows.items()},
        trials={method: fmean(found) for method, found in trials.items()},
        merges={method: median(found) for method, found in merges.items()},
        example=median(examples) if examples else None,
        units={name: median(found) for name, found in units.items()},
        runs=len(runs),
    )


def _step_seconds(
    experiment: Experiment, suite: Suite, machines: Machines, threads: int
) -> Iterator[float]:
    wanted = experiment.finetune_settings(suite)
    for path in sorted(experiment.experts_dir.glob("*/manifest.json")):
        manifest = _json(path)
        spec = manifest.get("spec", {})
        if spec.get("suite") != suite.stored_as or not _alike(spec.get("settings", {}), wanted):
            continue
        on_gpu = str(manifest.get("device", "")).startswith("cuda")
        name = manifest.get("machine", "" if on_gpu else "cpu")
        steps = spec["settings"].get("steps", 0)
        if not _same_kind(machines, on_gpu, str(name)) or not steps or "seconds" not in manifest:
            continue
        if on_gpu or manifest.get("threads") == threads:
            yield manifest["seconds"] / steps


def _alike(found: Mapping[str, Any], wanted: FinetuneSettings) -> bool:
    return (
        found.get("batch_size") == wanted.batch_size
        and (found.get("lora") is None) == (wanted.lora is None)
        and found.get("gradient_checkpointing", False) == wanted.gradient_checkpointing
    )


def _runs(
    experiment: Experiment, suite: Suite, machines: Machines, threads: int
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Finished runs of the suite beside this one, and itself."""
    for path in sorted(experiment.folder.parent.glob("*/manifest.json")):
        manifest = _json(path)
        machine = manifest.get("machine", {})
        devices = machine.get("devices", [])
        if (
            manifest.get("suite", {}).get("name") != suite.name
            or manifest.get("experiment", {}).get("smoke") != experiment.smoke
            or not devices
            or "stages" not in manifest
        ):
            continue
        on_gpu = machine.get("gpus", 0) > 0
        same = all(_same_kind(machines, on_gpu, str(device)) for device in devices)
        if same and (on_gpu or machine.get("threads_per_worker") == threads):
            yield path.parent, manifest


def _same_kind(machines: Machines, on_gpu: bool, name: str) -> bool:
    if machines.device is None or not machines.device.is_gpu or not on_gpu:
        # Processors are taken as one kind: what they are called says little of their speed.
        return not on_gpu and (machines.device is None or not machines.device.is_gpu)
    return machines.device.is_named(name)


def _examples(suite: Suite, record: Record) -> int | None:
    """How many examples a row was scored on; None where that is not known."""
    limit, corruption_limit = (
        None if part == "None" else int(part) for part in record.inputs["examples"].split("/")
    )
    total = 0
    for cell in record.scores:
        condition, task = cell.split("/")
        count = example_count(suite, task, Split.TEST)
        if count is None:
            return None
        count = min(count, limit or count)
        total += min(count, corruption_limit or count) if condition != Split.TEST else count
    return total


def _records(folder: Path, kind: Kind) -> Iterator[Record]:
    store = RecordStore(folder)
    for key in store.keys(kind):
        try:
            record = store.get(kind, key)
        except InputError:  # damaged, or of another version, which tells nothing here
            continue
        if record is not None:
            yield record


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # being written, or damaged: whoever reads it next will say so
        return {}
    return found if isinstance(found, dict) else {}

"""What the report of the ablations was made of."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apgd.files import sha256_file
from apgd.suites import Suite
from tune.ablations.settings import AblationSettings
from tune.cluster import Cluster
from tune.evaluators import mean_score
from tune.experts import DataHashes, Experts
from tune.manifest import command_line, describe_machine, describe_suite, git_state, now, versions
from tune.progress import Stage
from tune.records import Kind, Record, Variant
from tune.workers import Introduction


def describe(
    settings: AblationSettings,
    suite: Suite,
    started: str,
    cluster: Cluster,
    workers: Sequence[Introduction],
    hashes: DataHashes,
    experts: Experts,
    stages: Sequence[Stage],
    records: Mapping[str, Record],
) -> dict[str, Any]:
    """Enough to make the report again and get the same numbers, as JSON values.

    Args:
        settings: already cut down.
        suite: what was merged and tested.
        started: when the run began.
        cluster: where it took place.
        workers: who did it.
        hashes: SHA-256 of the examples by task and split.
        experts: finished experts by seed and task.
        stages: what was done, and how long it took.
        records: what was scored, by key.
    """
    reads = Counter(split for record in records.values() for split in record.details["reads"])
    return {
        "experiment": {"name": settings.name, **settings.as_dict()},
        "suite": describe_suite(suite, corrupted=False),
        "versions": versions(),
        **git_state(),
        "machine": describe_machine(cluster, workers),
        "hashes": {
            "base": sha256_file(suite.base_path()),
            "experts": {
                f"{task}-seed{seed}": expert.sha256
                for (seed, task), expert in sorted(experts.items())
            },
            "data": {f"{task}/{split}": h for (task, split), h in sorted(hashes.items())},
        },
        "command": command_line(),
        "started": started,
        "finished": now(),
        "stages": [stage.as_dict() for stage in stages],
        "split_reads": {str(split): count for split, count in sorted(reads.items())},
        "records": {
            kind: sorted(key for key, record in records.items() if record.kind is kind)
            for kind in (Kind.TRIAL, Kind.EVALUATION)
        },
        "results": _means(records.values(), [task.name for task in suite.tasks]),
    }


def _means(records: Iterable[Record], tasks: Sequence[str]) -> dict[str, float]:
    """Mean test score, over seeds, of the experts and of published settings on all tasks."""
    found: dict[str, list[float]] = {}
    for record in records:
        whole = record.inputs.get("merged", ",".join(tasks)) == ",".join(tasks)
        plain = record.variant in (Variant.REFERENCE, Variant.PUBLISHED)
        if whole and plain and record.kind is Kind.EVALUATION:
            row = f"{record.method}-{record.variant}"
            found.setdefault(row, []).append(mean_score(record, tasks))
    return {row: sum(values) / len(values) for row, values in found.items()}

"""How the run was made: the line under the headline, and all that is needed to repeat it."""

from collections.abc import Mapping
from typing import Any

from tune.records import Variant
from tune.report.document import Block, Command, Details, Facts, Section
from tune.report.formatting import ABSENT, moment, number, short
from tune.report.run import RowKey, Run


def setting_line(run: Run) -> str:
    """One line: suite, seeds, trials, machine, date, commit."""
    manifest = run.manifest
    parts = [manifest.suite, f"seeds: {manifest.seeds}"]
    if manifest.trials is not None:
        parts.append(f"trials per method and seed: {manifest.trials}")
    if manifest.machine.get("description"):
        parts.append(str(manifest.machine["description"]))
    parts += [moment(manifest.started), f"commit {_commit(run)}"]
    return " · ".join(parts)


def _commit(run: Run) -> str:
    if run.manifest.git_commit is None:
        return "unknown"
    state = " with uncommitted changes" if run.manifest.git_dirty else ""
    return short(run.manifest.git_commit) + state


def reproduce_section(run: Run) -> Section:
    """Everything needed to repeat the run, and to see whether it is the same."""
    manifest = run.manifest
    facts = [
        ("Experiment", manifest.name or ABSENT),
        ("Commit", (manifest.git_commit or "unknown")[:40]),
        ("Uncommitted changes", {True: "yes", False: "none", None: "unknown"}[manifest.git_dirty]),
        ("Started", moment(manifest.started)),
        ("Finished", moment(manifest.finished) if manifest.finished else "not yet"),
        *((key.replace("_", " ").capitalize(), _flat(v)) for key, v in manifest.machine.items()),
        ("Versions", ", ".join(f"{name} {v}" for name, v in manifest.versions.items()) or ABSENT),
        *((f"Hash of the {kind}", shown) for kind, shown in _short_hashes(manifest.hashes)),
    ]
    blocks: list[Block | Details] = []
    if manifest.command:
        blocks.append(Command(text=manifest.command))
    blocks.append(Facts(items=tuple(facts)))
    settings = tuple((name, _flat(value)) for name, value in manifest.settings.items())
    blocks.append(Details(summary="All settings", blocks=(Facts(items=settings),)))
    full = _full_hashes(manifest.hashes)
    if full:
        blocks.append(Details(summary="All hashes (SHA-256)", blocks=(Facts(items=full),)))
    tuned = _all_params(run)
    if tuned:
        blocks.append(Details(summary="All parameters of every merge", blocks=(tuned,)))
    return Section(name="reproduce", title="Repeating this run", blocks=tuple(blocks))


def _flat(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_flat(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_flat(item)}" for key, item in value.items())
    return "none" if value is None else str(value)


def _short_hashes(hashes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """One hash in short; of several, how many there are."""
    return [
        (kind, f"{len(value)} files, in manifest.json" if isinstance(value, dict) else short(value))
        for kind, value in hashes.items()
        if value
    ]


def _full_hashes(hashes: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    for kind, value in hashes.items():
        if isinstance(value, Mapping):
            pairs += [(f"{kind}: {name}", str(digest)) for name, digest in value.items()]
        elif value:
            pairs.append((kind, str(value)))
    return tuple(pairs)


def _all_params(run: Run) -> Facts | None:
    items = []
    for row, by_seed in run.evaluations.items():
        for seed, record in by_seed.items():
            if record.params:
                text = ", ".join(f"{k} = {number(v)}" for k, v in sorted(record.params.items()))
                items.append((f"{_named(run, row)}, seed {seed}", text))
    return Facts(items=tuple(items)) if items else None


def _named(run: Run, row: RowKey) -> str:
    name = run.row_title(row)
    return name if row.variant is not Variant.REFERENCE else f"{name} (reference)"

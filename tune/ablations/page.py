"""The report of the ablations: one section each, and how to repeat them."""

from collections.abc import Mapping
from typing import Any

from tune.ablations.catalogue import CATALOGUE
from tune.ablations.finding import Finding
from tune.report.document import (
    Block,
    Command,
    Details,
    Document,
    Facts,
    Section,
    Table,
    TableRow,
    Text,
    Warnings,
    numbers,
    words,
)
from tune.report.formatting import counted, duration, moment, number, short

_SMOKE = (
    "This is a smoke run: its sizes are cut down to prove that everything works. "
    "Its numbers mean nothing."
)


def document(findings: Mapping[str, Finding], manifest: Mapping[str, Any]) -> Document:
    """The report.

    Args:
        findings: by name of the ablation, in the order of the report.
        manifest: what was run, as `tune.manifest.Manifest.write` returns it.
    """
    experiment = manifest["experiment"]
    commit = manifest["git_commit"]
    setting = [
        manifest["suite"]["title"],
        f"seeds: {experiment['seeds']}",
        f"budget: {number(experiment['budget'])}",
        str(manifest["machine"]["description"]),
        moment(manifest["started"]),
        f"commit {short(commit) if commit else 'unknown'}"
        + (" with uncommitted changes" if manifest["git_dirty"] else ""),
    ]
    first = next(iter(findings.values()))
    return Document(
        title="Ablations of DOGE TA",
        headline=first.sentence if len(findings) == 1 else _headline(findings),
        setting=" · ".join(setting),
        lead=(Warnings(items=(_SMOKE,)),) if experiment["smoke"] else (),
        sections=(
            *(_section(name, finding) for name, finding in findings.items()),
            _cost(manifest),
            _repeating(manifest),
        ),
    )


def _headline(findings: Mapping[str, Finding]) -> str:
    """The beginning of what was found first, and how much more there is."""
    name, finding = next(iter(findings.items()))
    sentence = finding.sentence.partition(": ")[0].partition("; ")[0]
    return f"{CATALOGUE[name].title}: {sentence[:1].lower()}{sentence[1:].rstrip('.')}."


def _section(name: str, finding: Finding) -> Section:
    ablation = CATALOGUE[name]
    blocks: list[Block | Details] = [Text(text=ablation.question), Text(text=finding.sentence)]
    if finding.figure is not None:
        blocks.append(finding.figure.plot)
    blocks += finding.blocks
    return Section(name=name, title=ablation.title, blocks=tuple(blocks))


def _cost(manifest: Mapping[str, Any]) -> Section:
    reads = Table(
        name="split_reads",
        caption="How often each split was read",
        header=("Split", "Merges and trials"),
        rows=tuple(
            TableRow(cells=(*words(split), *numbers([str(count)])))
            for split, count in manifest["split_reads"].items()
        ),
        notes=(
            "Test data are read only where nothing is chosen by them: every choice of a parameter "
            "is made on validation data.",
        ),
    )
    stages = Table(
        name="stages",
        caption="Stages",
        header=("Stage", "Time", "Computed", "Reused"),
        rows=tuple(
            TableRow(
                cells=(
                    *words(stage["name"]),
                    *numbers(
                        [duration(stage["seconds"]), str(stage["done"]), str(stage["reused"])]
                    ),
                )
            )
            for stage in manifest["stages"]
        ),
        notes=("Reused: found on disk from an earlier start, and not computed again.",),
    )
    return Section(name="cost", title="Reads and time", blocks=(reads, stages))


def _repeating(manifest: Mapping[str, Any]) -> Section:
    facts = [
        ("Merges in this report", counted(sum(map(len, manifest["records"].values())), "record")),
        ("Finished", moment(manifest["finished"])),
        ("Versions", ", ".join(f"{name} {v}" for name, v in manifest["versions"].items())),
        ("Base", short(manifest["hashes"]["base"])),
    ]
    settings = tuple((name, str(value)) for name, value in manifest["experiment"].items())
    hashes = tuple(
        (f"{kind}: {name}", digest)
        for kind in ("experts", "data")
        for name, digest in manifest["hashes"][kind].items()
    )
    return Section(
        name="repeating",
        title="Repeating this run",
        blocks=(
            Command(text=manifest["command"]),
            Facts(items=tuple(facts)),
            Details(summary="All settings", blocks=(Facts(items=settings),)),
            Details(summary="All hashes (SHA-256)", blocks=(Facts(items=hashes),)),
        ),
    )

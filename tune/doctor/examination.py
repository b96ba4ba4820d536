"""All checks of one machine or of a cluster, in the order in which they are shown."""

import platform
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from apgd.suites import suites
from tune.doctor import judge
from tune.doctor.facts import Facts, Question, look, software
from tune.doctor.finding import Finding, about_all, grouped
from tune.doctor.folders import Probe, laid, shows
from tune.doctor.needs import Needs, needs_of
from tune.doctor.nodes import Answer, ask_nodes, find_cluster

_DRIVER = "this process"
_STORE_BYTES = 200 * 2**20
"""The object store of a Ray that a run starts on one machine."""


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What was found."""

    nodes: tuple[str, ...]
    """The machines that were asked."""
    findings: tuple[Finding, ...]


def examine_here(suite: str, folders: Mapping[str, Path]) -> Examination:
    """Look at this machine, without Ray.

    Args:
        suite: what a run is to be of.
        folders: where it is to write, by what they are for.
    """
    needs = needs_of(suites[suite])
    name = platform.node()
    with ExitStack() as stack:
        probes = [stack.enter_context(laid(what, path)) for what, path in folders.items()]
        answer = Answer(facts=look(Question(suite, tuple(probes)), name), store_bytes=_STORE_BYTES)
        findings = _judged(needs, probes, {name: answer}, cluster=False)
    return Examination(nodes=(name,), findings=tuple(findings))


def examine_cluster(
    address: str, suite: str, folders: Mapping[str, Path], seconds: float
) -> Examination:
    """Join a cluster and look at each of its nodes.

    Args:
        address: `host:port`, or `auto` for the one that this machine is part of.
        suite: what a run is to be of.
        folders: where it is to write, by what they are for.
        seconds: how long a node may take to answer.

    Raises:
        InputError: where no cluster answers.
    """
    from tune.cluster import ray_session

    needs = needs_of(suites[suite])
    address = find_cluster(address)
    with ExitStack() as stack:
        stack.enter_context(ray_session(address=address))
        probes = [stack.enter_context(laid(what, path)) for what, path in folders.items()]
        answers = ask_nodes(Question(suite, tuple(probes)), seconds)
        findings = _judged(needs, probes, answers, cluster=True)
    return Examination(nodes=tuple(answers), findings=tuple(findings))


def _judged(
    needs: Needs, probes: Sequence[Probe], answers: Mapping[str, Answer], *, cluster: bool
) -> list[Finding]:
    facts = {name: a.facts for name, a in answers.items() if a.facts is not None}
    problems = {name: a.problem for name, a in answers.items() if a.problem is not None}
    installed = {name: found.software for name, found in facts.items()}
    if cluster:
        # Who starts a run may use another environment than the node that it runs on.
        installed[_DRIVER] = software()
    findings = judge.judge_silent(problems)
    findings += judge.judge_versions(installed) + judge.judge_code(installed)
    known = {name: answers[name].gpus if cluster else None for name in facts}
    findings += grouped(
        "GPUs", {n: judge.judge_gpus(f.gpus, needs, known[n]) for n, f in facts.items()}
    )
    findings += grouped("machine", {n: judge.judge_machine(f, needs) for n, f in facts.items()})
    for probe in probes:
        findings += _folder(probe, facts)
    free = [
        folder.free_bytes
        for found in facts.values()
        for folder in found.folders
        if folder.what == "experts folder" and folder.free_bytes is not None
    ]
    if free:
        findings += about_all("experts disk", [judge.judge_experts_disk(min(free), needs)])
    findings += grouped(
        "cache",
        {
            n: judge.judge_cache_disk(f.cache, f.cache_free_bytes, bool(f.downloads.lacking), needs)
            for n, f in facts.items()
        },
    )
    findings += grouped(
        "downloads", {n: judge.judge_downloads(f.downloads, needs.suite) for n, f in facts.items()}
    )
    findings += grouped(
        "open files", {n: judge.judge_open_files(f.open_files) for n, f in facts.items()}
    )
    findings += grouped(
        "shared memory",
        {
            n: judge.judge_shared_memory(f.shared_memory_bytes, answers[n].store_bytes)
            for n, f in facts.items()
        },
    )
    if cluster:
        clocks = {n: judge.judge_clock(answers[n].skew, answers[n].uncertainty) for n in facts}
        findings += grouped("clock", clocks)
        findings += grouped("tokens", {n: judge.judge_tokens(f.tokens) for n, f in facts.items()})
    return findings


def _folder(probe: Probe, facts: Mapping[str, Facts]) -> list[Finding]:
    """A folder from the asking machine, and where it can be written to also from the others."""
    if probe.problem is not None:
        return about_all(probe.what, [judge.judge_probe(probe)])
    judged = {}
    for name, found in facts.items():
        folder = next(f for f in found.folders if f.what == probe.what)
        back = folder.sees and folder.problem is None and shows(probe, name)
        judged[name] = judge.judge_folder(folder, back)
    return grouped(probe.what, judged)

"""What to think of what was found: found values in, judgements out, nothing looked at."""

from collections import Counter
from collections.abc import Mapping

from tune.doctor.downloads import DownloadFacts
from tune.doctor.facts import Facts, Software
from tune.doctor.finding import Finding, Judgement, failure, grouped, ok, warning
from tune.doctor.folders import FolderFacts, Probe
from tune.doctor.gpus import GpuFacts
from tune.doctor.needs import Needs

SKEW_WARNING = 1.0
SKEW_FAILURE = 30.0
"""Seconds by which a machine's clock may differ from that of the asking machine."""
OPEN_FILES = 4096
_FREE_SHARE = 0.1
"""Of the memory of a GPU, in use by others before it is said."""
_GB = 1e9
_UPDATE = "bring it up to date with `ray up`, or install the same versions by hand"


def judge_versions(by_node: Mapping[str, Software]) -> list[Finding]:
    """Every package is there, and the same everywhere."""
    lines = {node: [("Python", s.python), *s.packages] for node, s in by_node.items()}
    seen: dict[str, Counter[str | None]] = {}
    for listed in lines.values():
        for name, version in listed:
            seen.setdefault(name, Counter())[version] += 1
    usual = {name: versions.most_common(1)[0][0] for name, versions in seen.items()}
    judged = {}
    for node, listed in lines.items():
        missing = [name for name, version in listed if version is None]
        other = [f"{n} {v} (elsewhere {usual[n]})" for n, v in listed if v and v != usual[n]]
        if missing:
            judged[node] = failure(f"not installed: {', '.join(missing)}", _UPDATE)
        elif other:
            judged[node] = failure(", ".join(other), _UPDATE)
        else:
            judged[node] = ok(", ".join(f"{name} {version}" for name, version in listed))
    return grouped("versions", judged)


def judge_code(by_node: Mapping[str, Software]) -> list[Finding]:
    """All run the same source of apgd and tune."""
    usual = Counter(s.code for s in by_node.values() if s.code).most_common(1)
    judged = {}
    for node, software in by_node.items():
        if software.code is None:
            judged[node] = failure("apgd and tune do not import", _UPDATE)
        elif software.code != usual[0][0]:
            found = f"source {software.code}, elsewhere {usual[0][0]}"
            judged[node] = failure(found, "bring it up to date with `ray up`")
        else:
            judged[node] = ok(f"source {software.code}")
    return grouped("code", judged)


def judge_gpus(facts: GpuFacts, needs: Needs, known: int | None = None) -> Judgement:
    """GPUs answer, torch computes on them, and an expert fits.

    Args:
        facts: what was found.
        needs: what the suite takes.
        known: how many Ray hands out there; None where it was not asked.
    """
    if facts.problem is not None:
        return failure(
            f"the driver does not answer: {facts.problem}",
            "repair the driver (often a restart of the machine), or leave the machine out",
        )
    if not facts.gpus:
        if known:
            return failure(
                f"none, though Ray hands out {known}", "start Ray there without --num-gpus"
            )
        if needs.wants_gpu:
            return warning(
                f"none; the CPUs take days over experts of {needs.suite}",
                "nothing, where this is the head of machines with GPUs: say --gpus N to a run",
            )
        return ok("none; the CPUs are used")
    kinds = Counter(gpu.name for gpu in facts.gpus)
    least = min(facts.gpus, key=lambda gpu: gpu.free_bytes)
    found = (
        f"{', '.join(f'{count} x {name}' for name, count in kinds.items())}, "
        f"{_gb(least.free_bytes)} of {_gb(least.total_bytes)} free, driver {least.driver}"
    )
    if facts.build is None and facts.torch_problem is None:
        return failure(f"{found}; this torch is for CPUs alone", "install torch for CUDA")
    if facts.usable < len(facts.gpus):
        why = f" ({facts.torch_problem})" if facts.torch_problem else ""
        return failure(
            f"{found}; torch can use {facts.usable} of {len(facts.gpus)}{why}",
            "install a driver that is as new as torch's CUDA asks for, and look at "
            "CUDA_VISIBLE_DEVICES",
        )
    found += f", usable with CUDA {facts.build}"
    fits, sentence = needs.fits(least.free_bytes)
    if not fits:
        return failure(
            f"{found}; {sentence}",
            "end what else uses the GPU (`nvidia-smi` names it), or take a smaller suite",
        )
    if known is not None and known < len(facts.gpus):
        return warning(
            f"{found}; Ray hands out {known} of {len(facts.gpus)}",
            f"start Ray there with --num-gpus={len(facts.gpus)}",
        )
    if least.free_bytes < (1 - _FREE_SHARE) * least.total_bytes:
        return warning(f"{found}; something else uses one", "`nvidia-smi` names what uses it")
    return ok(found)


def judge_machine(facts: Facts, needs: Needs) -> Judgement:
    """There is memory for a worker."""
    cpus = f"{facts.cpus} CPU{'' if facts.cpus == 1 else 's'}"
    found = f"{cpus}, {_gb(facts.free_bytes)} of {_gb(facts.memory_bytes)} memory free"
    if facts.free_bytes < needs.memory_bytes and not facts.gpus.gpus:
        return warning(
            f"{found}; a worker for {needs.suite} takes about {_gb(needs.memory_bytes)}",
            "end other programs, take fewer workers with --cpus, or a larger machine",
        )
    return ok(found)


def judge_probe(probe: Probe) -> Judgement:
    """A folder can be written to from the asking machine."""
    if probe.problem is None:
        return ok(f"{probe.path} can be written to")
    return failure(
        f"{probe.path}: {probe.problem}",
        f"choose another folder with --{_option(probe.what)}, or give yourself the right to write",
    )


def judge_folder(facts: FolderFacts, seen_back: bool) -> Judgement:
    """A machine sees what the others write into a folder, and the others see what it writes.

    Args:
        facts: the folder from there.
        seen_back: whether the asking machine sees what was written there.
    """
    share = (
        "put the folder on storage that all machines share (NFS, or a bucket mounted there) and "
        f"name it with --{_option(facts.what)}"
    )
    if not facts.sees:
        return failure(f"does not see what other machines write to {facts.path}", share)
    if facts.problem is not None:
        return failure(
            f"{facts.path} cannot be written to: {facts.problem}",
            "give the user that Ray runs as the right to write there",
        )
    if not seen_back:
        return failure(f"other machines do not see what it writes to {facts.path}", share)
    if facts.renames is not None:
        return failure(
            f"in {facts.path} a rename does not replace a file at once: {facts.renames}",
            "take storage that can (NFS, EFS, FSx; no plain bucket), or results can be lost",
        )
    if facts.lock is not None:
        return warning(
            f"{facts.path}: {facts.lock}",
            "mount it with locks (NFS 4, not `nolock`), or see to it yourself that no two runs "
            "use one folder",
        )
    return ok(f"{facts.path}: seen by all, can be written to, locks hold, renames are whole")


def judge_experts_disk(free: int, needs: Needs) -> Judgement:
    """The experts of a suite fit on the disk."""
    found = f"{_gb(free)} free for experts; {needs.suite} takes {_gb(needs.experts_bytes)} a seed"
    if free < needs.experts_bytes:
        return failure(found, "make room, or choose another disk with --experts-dir")
    return ok(found)


def judge_cache_disk(cache: str, free: int, lacking: bool, needs: Needs) -> Judgement:
    """What is made of downloads fits beside them.

    Args:
        cache: its folder.
        free: bytes free there.
        lacking: whether something has still to be made.
        needs: what the suite takes.
    """
    found = f"{_gb(free)} free in {cache}"
    if not lacking:
        return ok(found)
    found += f"; {needs.suite} takes {_gb(needs.cache_bytes)} beside its downloads"
    if free < needs.cache_bytes:
        return failure(found, "make room, or choose another disk with APGD_CACHE (and HF_HOME)")
    return ok(found)


def judge_downloads(facts: DownloadFacts, suite: str) -> Judgement:
    """What a suite needs from the hub is there or can be had."""
    if not facts.needed:
        return ok(f"{suite} downloads nothing")
    there = f"data of {facts.needed - len(facts.lacking)} of {facts.needed} tasks are there"
    if not facts.offline and facts.unreachable is None:
        return ok(f"the hub answers; {there}")
    state = "HF_HUB_OFFLINE is set" if facts.offline else f"no hub ({facts.unreachable})"
    lacking = [f"lacking are {', '.join(facts.lacking)}"] if facts.lacking else []
    if len(facts.lacking) == facts.needed:
        lacking = ["lacking are all"]
    lacking += [] if facts.base_there else ["the base model is not there"]
    if not lacking:
        return ok(f"{state}; everything is there")
    unset = "unset HF_HUB_OFFLINE, or " if facts.offline else ""
    return failure(
        f"{state}; {there}; {'; '.join(lacking)}",
        f"{unset}run `apgd data prepare {suite}` where the hub can be reached, and copy "
        "$HF_HOME and $APGD_CACHE",
    )


def judge_clock(skew: float, uncertainty: float) -> Judgement:
    """A machine's clock is that of the asking machine.

    Args:
        skew: seconds that it is ahead.
        uncertainty: half of the time that asking took.
    """
    if uncertainty > SKEW_WARNING:
        return warning(
            "could not be read quickly enough", "look at the network between the machines"
        )
    least = max(0.0, abs(skew) - uncertainty)
    found = f"{abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
    advice = "set the clocks by NTP (`timedatectl set-ntp true`)"
    if least > SKEW_FAILURE:
        return failure(f"{found}; tokens and logs go wrong", advice)
    if least > SKEW_WARNING:
        return warning(found, advice)
    return ok(f"within {SKEW_WARNING:g} s of the asking machine's")


def judge_open_files(limit: int) -> Judgement:
    """Ray may open as many files and connections as it needs."""
    if limit < OPEN_FILES:
        return warning(
            f"a process may have {limit} open",
            "`ulimit -n 65536` before Ray is started, as cluster.yaml does",
        )
    return ok(f"at least {OPEN_FILES} may be open")


def judge_shared_memory(size: int | None, store: int) -> Judgement:
    """Ray's object store fits into shared memory.

    Args:
        size: bytes of /dev/shm; None where there is none.
        store: bytes of the object store.
    """
    if size is None or size < store:
        found = "none" if size is None else f"{_gb(size)} of it"
        return warning(
            f"{found}, but Ray's object store has {_gb(store)}; it goes to a disk, which is slow",
            "give a container more of it (`docker run --shm-size=4g`)",
        )
    return ok(f"{_gb(size)} of it, enough for Ray's object store of {_gb(store)}")


def judge_tokens(on: bool) -> Judgement:
    """Nobody without the token can run code on the cluster."""
    if on:
        return ok("Ray asks for a token")
    return warning(
        "Ray asks for no token: who reaches its ports can run programs there",
        "start Ray with RAY_AUTH_MODE=token and the same ~/.ray/auth_token on all machines",
    )


def judge_silent(problems: Mapping[str, str]) -> list[Finding]:
    """Machines that could not be looked at.

    Args:
        problems: what happened, by machine.
    """
    advice = "look at it (`ray status`, ssh), and at its version of apgd (`ray up`), or remove it"
    return grouped("answer", {node: failure(why, advice) for node, why in problems.items()})


def _option(what: str) -> str:
    return {"run folder": "run-dir"}.get(what, "experts-dir")


def _gb(count: float) -> str:
    return f"{count / _GB:.3g} GB"

"""Fisher merging: closed forms, scales, faults."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apgd import InputError, TaskVectors, merge, merge_files
from apgd.evidence import Evidence
from apgd.methods import methods
from tests.conftest import SHAPES, State
from tests.methods.statistics_files import (
    check_streaming_equals_memory,
    check_works_in_another_process,
    in_files,
    merged,
)

Make = Callable[..., tuple[State, dict[str, State]]]


def information(experts: dict[str, State], seed: int = 1) -> dict[str, State]:
    """Random information, of a scale of its own for every expert."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {n: 10.0**-k * torch.rand(s, generator=generator) ** 4 for n, s in SHAPES.items()}
        for k, name in enumerate(experts)
    }


def test_equal_information_is_the_average(model: Make) -> None:
    base, experts = model(3)
    one = information(experts)["expert0"]
    result = merged("fisher", base, experts, dict.fromkeys(experts, one))
    average = merge("weight_averaging", base, experts)
    for name in base:
        torch.testing.assert_close(result[name], average[name], rtol=1e-5, atol=1e-6)


def test_where_only_one_expert_has_information_it_is_taken(model: Make) -> None:
    base, experts = model(2)
    mask = {n: torch.arange(torch.Size(s).numel()).view(s) % 2 == 0 for n, s in SHAPES.items()}
    given = {
        "expert0": {n: m.float() for n, m in mask.items()},
        "expert1": {n: (~m).float() for n, m in mask.items()},
    }
    result = merged("fisher", base, experts, given, minimal_weight=1e-12)
    for name, chosen in mask.items():
        expected = torch.where(chosen, experts["expert0"][name], experts["expert1"][name])
        torch.testing.assert_close(result[name], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("normalisation", ["norm", "none"])
def test_weighted_mean_by_definition(model: Make, normalisation: str) -> None:
    base, experts = model(4)
    given = information(experts)
    result = merged(
        "fisher", base, experts, given, minimal_weight=1e-4, normalisation=normalisation
    )
    flat = torch.stack([torch.cat([f[n].flatten() for n in SHAPES]) for f in given.values()])
    flat = flat.double()
    weights = flat + 1e-4
    if normalisation == "norm":
        weights = weights / (flat.norm(dim=1, keepdim=True) + 1e-4)
    weights = weights / weights.sum(dim=0)
    theta = torch.stack([torch.cat([e[n].flatten() for n in SHAPES]) for e in experts.values()])
    found = torch.cat([result[n].flatten() for n in SHAPES])
    torch.testing.assert_close(found.double(), (weights * theta).sum(dim=0), rtol=1e-5, atol=1e-6)


def test_with_a_large_minimal_weight_experts_are_averaged(model: Make) -> None:
    base, experts = model(3)
    average = merge("weight_averaging", base, experts)
    result = merged("fisher", base, experts, information(experts), minimal_weight=1e6)
    torch.testing.assert_close(result["wide"], average["wide"], rtol=1e-4, atol=1e-5)


def test_without_information_experts_are_averaged(model: Make) -> None:
    base, experts = model(3)
    nothing = {name: {n: torch.zeros(s) for n, s in SHAPES.items()} for name in experts}
    average = merge("weight_averaging", base, experts)
    for normalisation in ("norm", "none"):
        result = merged("fisher", base, experts, nothing, normalisation=normalisation)
        for name in base:
            torch.testing.assert_close(result[name], average[name])


def test_scale_of_an_experts_information_does_not_matter(model: Make) -> None:
    base, experts = model(2)
    given = information(experts)
    scaled = {**given, "expert1": {n: 2.0**20 * f for n, f in given["expert1"].items()}}
    ours, theirs = (
        merged("fisher", base, experts, f, minimal_weight=1e-12) for f in (given, scaled)
    )
    for name in base:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)
    theirs = merged("fisher", base, experts, scaled, minimal_weight=1e-12, normalisation="none")
    assert (theirs["wide"] - experts["expert1"]["wide"]).abs().median() < 1e-3


def test_order_of_experts_does_not_matter(model: Make) -> None:
    base, experts = model(5)
    given = information(experts)
    ours = merged("fisher", base, experts, given)
    theirs = merged("fisher", base, dict(reversed(experts.items())), given)
    for name in base:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6)


def test_inputs_are_left_as_they_are(model: Make) -> None:
    base, experts = model(2)
    given = information(experts)
    kept = {e: {n: f.clone() for n, f in s.items()} for e, s in given.items()}
    merged("fisher", base, experts, given)
    assert all(torch.equal(given[e][n], kept[e][n]) for e in given for n in SHAPES)


def test_one_expert_stays_as_it_is(model: Make) -> None:
    base, experts = model(1)
    result = merged("fisher", base, experts, information(experts))
    for name in SHAPES:
        torch.testing.assert_close(result[name], experts["expert0"][name], rtol=0, atol=1e-6)


def test_streaming_equals_memory(model: Make, tmp_path: Path) -> None:
    base, experts = model(3)
    check_streaming_equals_memory("fisher", base, experts, information(experts), tmp_path)


def test_threads_do_not_matter(model: Make) -> None:
    base, experts = model(3)
    given = information(experts)
    one = merged("fisher", base, experts, given)
    torch.set_num_threads(2)
    two = merged("fisher", base, experts, given)
    assert all(torch.equal(one[n], two[n]) for n in base)


def test_what_is_prepared_can_be_sent(model: Make, tmp_path: Path) -> None:
    base, experts = model(2)
    files = in_files(tmp_path, information(experts))
    check_works_in_another_process("fisher", base, experts, files, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("expert1"), "be given for every expert, but .* missing of expert1"),
        (lambda s: s.update(other=s["expert0"]), "belong to one of the experts, .*: other"),
        (lambda s: s["expert1"].pop("tall"), "cover every merged matrix, .* expert1 lack tall"),
        (
            lambda s: s["expert1"].update(tall=torch.ones(5, 5)),
            r"shape \(12, 5\) for tall, but the statistics of expert expert1 have \(5, 5\)",
        ),
        (lambda s: s["expert0"]["row"].fill_(torch.nan), "must be finite, but row of"),
        (lambda s: s["expert0"]["row"].fill_(-0.5), "must not be negative, but row of .* -0.5"),
        (
            lambda s: s["expert0"].update(row=torch.ones(1, 7, dtype=torch.int64)),
            "must be floating-point, but row of",
        ),
    ],
)
def test_wrong_statistics_are_refused(
    model: Make, change: Callable[[dict[str, State]], object], message: str
) -> None:
    base, experts = model(2)
    given = information(experts)
    change(given)
    with pytest.raises(InputError, match=message):
        merged("fisher", base, experts, given)


def test_without_statistics_it_is_refused(model: Make) -> None:
    with pytest.raises(InputError, match="method fisher needs Fisher information on training data"):
        merge("fisher", *model(2))


def test_statistics_are_checked_before_work_begins(model: Make) -> None:
    base, experts = model(2)
    given = information(experts)
    given["expert1"]["wide"][0, 0] = torch.inf
    method = methods["fisher"]
    with pytest.raises(InputError, match="must be finite, but wide"):
        method.prepare(TaskVectors(base, experts), method.parse({}), Evidence(statistics=given))


def test_an_existing_merge_stays_where_statistics_turn_out_wrong(
    model: Make, tmp_path: Path
) -> None:
    base, experts = model(2)
    (tmp_path / "given").mkdir()
    paths = in_files(tmp_path, {"base": base, **experts})
    foundation, out = paths.pop("base"), tmp_path / "out"
    merge_files("ties", foundation, paths, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    given = information(experts)
    del given["expert1"]["tall"]
    evidence = Evidence(statistics=in_files(tmp_path / "given", given))
    with pytest.raises(InputError, match="must cover every merged matrix"):
        merge_files("fisher", foundation, paths, out, overwrite=True, evidence=evidence)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

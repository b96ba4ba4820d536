"""RegMean: closed forms, least squares, singular inner products, faults."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from apgd import InputError, TaskVectors, merge
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


def grams(experts: dict[str, State], seed: int = 1, rows: int = 40) -> dict[str, State]:
    """Inner products of random inputs with correlated coordinates."""
    generator = torch.Generator().manual_seed(seed)

    def gram(n: int) -> Tensor:
        mixing = torch.randn(n, n, generator=generator, dtype=torch.float64)
        x = torch.randn(rows, n, generator=generator, dtype=torch.float64) @ mixing
        return (x.T @ x / rows).float()

    return {name: {n: gram(shape[1]) for n, shape in SHAPES.items()} for name in experts}


def delta_of(base: State, experts: dict[str, State], given: dict[str, State], name: str) -> Tensor:
    """(Σ τ_i G_i)(Σ G_i)⁻¹ in float64."""
    taus = [(experts[e][name] - base[name]).double() for e in experts]
    total = sum(given[e][name].double() for e in experts)
    product = sum(t @ given[e][name].double() for t, e in zip(taus, experts, strict=True))
    return torch.linalg.solve(total, product, left=False)


def test_white_inputs_give_the_average(model: Make) -> None:
    base, experts = model(3)
    white = {name: {n: torch.eye(s[1]) for n, s in SHAPES.items()} for name in experts}
    result = merged("regmean", base, experts, white)
    average = merge("weight_averaging", base, experts)
    for name in base:
        torch.testing.assert_close(result[name], average[name], rtol=1e-5, atol=1e-6)


def test_closed_form(model: Make) -> None:
    base, experts = model(3)
    given = grams(experts)
    result = merged("regmean", base, experts, given, off_diagonal=1.0, ridge=1e-12)
    for name in SHAPES:
        expected = delta_of(base, experts, given, name)
        found = (result[name] - base[name]).double()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_off_diagonal_entries_are_scaled(model: Make) -> None:
    base, experts = model(3)
    given = grams(experts)
    for factor in (0.0, 0.7):
        scaled = {
            e: {n: factor * g + (1 - factor) * g.diag().diag() for n, g in s.items()}
            for e, s in given.items()
        }
        ours = merged("regmean", base, experts, given, off_diagonal=factor, ridge=1e-9)
        expected = delta_of(base, experts, scaled, "wide")
        torch.testing.assert_close(
            (ours["wide"] - base["wide"]).double(), expected, rtol=1e-3, atol=1e-5
        )


def test_without_off_diagonal_columns_are_weighted_means(model: Make) -> None:
    base, experts = model(2)
    given = grams(experts)
    result = merged("regmean", base, experts, given, off_diagonal=0.0, ridge=1e-9)
    first, second = (given[e]["wide"].diagonal() for e in experts)
    mean = (experts["expert0"]["wide"] * first + experts["expert1"]["wide"] * second) / (
        first + second
    )
    torch.testing.assert_close(result["wide"], mean, rtol=1e-4, atol=1e-5)


def test_it_minimises_the_squared_differences_of_outputs(model: Make) -> None:
    base, experts = model(3)
    generator = torch.Generator().manual_seed(3)
    inputs = {e: torch.randn(50, 15, generator=generator) for e in experts}
    given = grams(experts)
    for expert, x in inputs.items():
        given[expert]["wide"] = x.T @ x / len(x)
    result = merged("regmean", base, experts, given, off_diagonal=1.0)["wide"]

    def loss(w: Tensor) -> Tensor:
        return sum((x @ (w - experts[e]["wide"]).T).square().sum() for e, x in inputs.items())

    best = loss(result)
    for seed in range(5):
        other = torch.randn(result.shape, generator=torch.Generator().manual_seed(seed))
        assert loss(result + 1e-2 * other) > best
        assert loss(result - 1e-2 * other) > best


def test_experts_with_orthogonal_inputs_are_all_reproduced() -> None:
    generator = torch.Generator().manual_seed(0)
    m, n = 6, 8
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator)).Q
    base = {"w": torch.randn(m, n, generator=generator)}
    experts, given, inputs = {}, {}, {}
    for number, columns in enumerate((slice(0, 3), slice(3, 7))):  # one direction has no inputs
        name = f"expert{number}"
        experts[name] = {"w": base["w"] + torch.randn(m, n, generator=generator)}
        part = basis[:, columns]
        x = torch.randn(30, part.shape[1], generator=generator) @ part.T
        inputs[name], given[name] = x, {"w": x.T @ x / len(x)}
    result = merged("regmean", base, experts, given, off_diagonal=1.0, ridge=1e-4)["w"]
    for name, x in inputs.items():
        torch.testing.assert_close(x @ result.T, x @ experts[name]["w"].T, rtol=1e-3, atol=5e-3)
    # In the direction without inputs, the experts' average.
    mean = torch.stack([e["w"] for e in experts.values()]).mean(dim=0)
    torch.testing.assert_close(result @ basis[:, 7], mean @ basis[:, 7], rtol=0, atol=1e-2)


def test_without_inputs_experts_are_averaged(model: Make) -> None:
    base, experts = model(3)
    nothing = {name: {n: torch.zeros(s[1], s[1]) for n, s in SHAPES.items()} for name in experts}
    average = merge("weight_averaging", base, experts)
    result = merged("regmean", base, experts, nothing)
    for name in base:
        torch.testing.assert_close(result[name], average[name])


def test_an_indefinite_sum_raises_the_ridge_and_says_so(model: Make) -> None:
    base, experts = model(2)
    given = {name: {n: torch.eye(s[1]) for n, s in SHAPES.items()} for name in experts}
    for state in given.values():
        state["square"][0, 1] = state["square"][1, 0] = 1.0001  # as rounding might leave it
    result = merge("regmean", base, experts, evidence=Evidence(statistics=given), off_diagonal=1.0)
    ridges = {layer.name: layer.details["ridge"] for layer in result.summary.layers}
    assert ridges["tall"] == 1e-6
    assert ridges["square"] == pytest.approx(1e-3)
    average = merge("weight_averaging", base, experts)
    torch.testing.assert_close(result["square"], average["square"], rtol=1e-4, atol=1e-5)


def test_order_of_experts_does_not_matter(model: Make) -> None:
    base, experts = model(5)
    given = grams(experts)
    ours = merged("regmean", base, experts, given)
    theirs = merged("regmean", base, dict(reversed(experts.items())), given)
    for name in base:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_one_expert_stays_as_it_is(model: Make) -> None:
    base, experts = model(1)
    result = merged("regmean", base, experts, grams(experts))
    for name in SHAPES:
        torch.testing.assert_close(result[name], experts["expert0"][name], rtol=0, atol=1e-5)


def test_streaming_equals_memory(model: Make, tmp_path: Path) -> None:
    base, experts = model(3)
    check_streaming_equals_memory("regmean", base, experts, grams(experts), tmp_path)


def test_threads_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(300, 90, generator=generator)}
    experts = {k: {"w": base["w"] + torch.randn(300, 90, generator=generator)} for k in "abc"}
    x = {k: torch.randn(200, 90, generator=generator) for k in experts}
    given = {k: {"w": x[k].T @ x[k]} for k in experts}
    one = merged("regmean", base, experts, given)
    torch.set_num_threads(2)
    two = merged("regmean", base, experts, given)
    assert torch.equal(one["w"], two["w"])


def test_inputs_are_left_as_they_are(model: Make) -> None:
    base, experts = model(2)
    given = grams(experts)
    kept = {e: {n: f.clone() for n, f in s.items()} for e, s in given.items()}
    merged("regmean", base, experts, given)
    assert all(torch.equal(given[e][n], kept[e][n]) for e in given for n in SHAPES)


def test_what_is_prepared_can_be_sent(model: Make, tmp_path: Path) -> None:
    base, experts = model(2)
    files = in_files(tmp_path, grams(experts))
    check_works_in_another_process("regmean", base, experts, files, tmp_path)


def test_memory_counts_the_inner_products() -> None:
    base = {"w": torch.zeros(4, 1000)}
    vectors = TaskVectors(base, {"a": base, "b": base})
    assert methods["regmean"].working_bytes(vectors, "w") > 4 * 8 * 1000**2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["expert1"].update(tall=torch.ones(12, 5)),
            r"shape \(5, 5\) for tall, but the statistics of expert expert1 have \(12, 5\)",
        ),
        (lambda s: s["expert1"].pop("tall"), "cover every merged matrix, .* expert1 lack tall"),
        (lambda s: s["expert0"]["row"].fill_(torch.inf), "must be finite, but row of"),
        (lambda s: s["expert0"]["row"].neg_(), "must not be negative, but row of"),
    ],
)
def test_wrong_statistics_are_refused(
    model: Make, change: Callable[[dict[str, State]], object], message: str
) -> None:
    base, experts = model(2)
    given = grams(experts)
    change(given)
    with pytest.raises(InputError, match=message):
        merged("regmean", base, experts, given)

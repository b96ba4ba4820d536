"""Statistics of training data: two ways to each number, and what defines a file of them."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apgd import InputError, numerics
from apgd.checkpoints import load_weights, read_metadata
from apgd.data import Split
from apgd.evidence import Need
from apgd.layer_inputs import LayerInputs
from apgd.suites import suites
from apgd.training import Report
from apgd.training_statistics import (
    StatisticSettings,
    StatisticSpec,
    chosen_rows,
    collect,
    collect_to,
    fisher_information,
    inner_products,
    statistic_spec,
    statistics_file,
)
from tests.classifiers import LinearHead, Network
from tests.evidence import Linears, LinearsHead, images

VISION = suites["mini_vision"]
TEXT = suites["mini_text"]
PINNED_ROWS = [1044, 2591, 4111, 725]
FEW = StatisticSettings(examples=3)


@pytest.fixture(autouse=True)
def deterministic() -> None:
    numerics.configure(1)


def matrices(model: nn.Module) -> dict[str, Tensor]:
    return {n: p for n, p in model.state_dict(keep_vars=True).items() if p.ndim == 2}


def hooked(model: nn.Module, run: Callable[[], object]) -> dict[str, Tensor]:
    """Means of x xᵀ for modules of linear layers, by their hooks."""
    seen: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Any:
        def keep(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen.setdefault(f"{name}.weight", []).append(given[0].detach().flatten(0, -2).double())

        return keep

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        run()
    for handle in handles:
        handle.remove()
    inputs = {name: torch.cat(parts) for name, parts in seen.items()}
    return {name: x.T @ x / len(x) for name, x in inputs.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, rtol=1e-4, atol=1e-6)


def test_inputs_of_linear_layers_are_those_that_hooks_see() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 7, bias=False), nn.Linear(7, 1))
    batches = [torch.randn(3, 4, 5), torch.randn(2, 5), torch.randn(5, 6, 2).permute(1, 2, 0)]

    def run() -> None:
        for x in batches:
            model(x)

    with torch.no_grad(), LayerInputs(matrices(model)) as inputs:
        run()
    assert_same(inputs.means(), hooked(model, run))


@pytest.mark.parametrize("grad", [False, True])
def test_products_with_repeated_matrices_are_seen(grad: bool) -> None:
    # Without bias and with inputs in an odd order, torch multiplies a batch by as many copies.
    torch.manual_seed(0)
    model = nn.Linear(5, 5, bias=False).requires_grad_(grad)
    x = torch.randn(5, 6, 2).permute(2, 1, 0)
    with LayerInputs(matrices(model)) as inputs:
        model(x)
    flat = x.reshape(-1, 5).double()
    assert_same(inputs.means(), {"weight": flat.T @ flat / len(flat)})


def test_inputs_of_attention_by_hand() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(6, 2, batch_first=True).eval()
    x = torch.randn(3, 4, 6)
    with torch.no_grad(), LayerInputs(matrices(attention)) as inputs:
        attention(x, x, x, need_weights=False)
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        projected = x @ attention.in_proj_weight.T + attention.in_proj_bias
        q, k, v = (part.view(3, 4, 2, 3).transpose(1, 2) for part in projected.split(6, dim=2))
        weights = (q @ k.mT / 3**0.5).softmax(dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(-1, 6).double()
    flat = x.reshape(-1, 6).double()
    expected = {"in_proj_weight": flat.T @ flat / 12, "out_proj.weight": mixed.T @ mixed / 12}
    assert_same(inputs.means(), expected)


def test_the_fast_way_of_attention_is_kept_off_where_it_was_off() -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with LayerInputs({}):
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_tied_matrices_have_the_inputs_of_both_places() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    x = torch.randn(6, 4)
    with torch.no_grad(), LayerInputs(matrices(model)) as inputs:
        model(x)
        both = torch.cat([x, model[0](x).tanh()]).double()
    found = inputs.means()
    assert torch.equal(found["0.weight"], found["2.weight"])
    # The line above saw the first place once more.
    both = torch.cat([both, x.double()])
    torch.testing.assert_close(found["0.weight"].double(), both.T @ both / 18, rtol=1e-5, atol=1e-6)


def test_matrices_in_parts_turned_or_unused_are_refused() -> None:
    attention = nn.MultiheadAttention(6, 2)
    x, other = torch.randn(4, 1, 6), torch.randn(3, 1, 6)
    rule = "must be used whole and as x Wᵀ"
    wrong = pytest.raises(InputError, match=f"{rule} .* in_proj_weight is not")
    with wrong, LayerInputs(matrices(attention)):
        attention(x, other, other)
    assert torch.backends.mha.get_fastpath_enabled()
    square = nn.Linear(6, 6)
    with pytest.raises(InputError, match=rule), LayerInputs(matrices(square)):
        x.flatten(1) @ square.weight
    with LayerInputs(matrices(square)) as inputs:
        pass
    with pytest.raises(InputError, match="must get inputs .* but weight got none"):
        inputs.means()


def test_inner_products_do_not_depend_on_batches_or_padding() -> None:
    model = TEXT.build_model()
    model.load_state_dict(load_weights(TEXT.base_path(), "base"))
    model.eval()
    task = TEXT.tasks[0]
    head, examples = TEXT.head(model, task), TEXT.examples(task.name, Split.TRAIN)
    rows = np.array([4, 0, 17])
    merged = {n: p for n, p in model.state_dict(keep_vars=True).items() if TEXT.is_merged(n, p)}
    found = inner_products(model, head, examples, rows, merged)
    expected = hooked(
        model, lambda: [head.loss(model, examples, rows[k : k + 1]) for k in range(3)]
    )
    assert_same(found, {name: expected[name] for name in merged})


def by_definition(
    model: nn.Module, head: Any, examples: Any, rows: np.ndarray, names: list[str]
) -> dict[str, Tensor]:
    """Σ over examples and classes of p (∇ log p)², one gradient after another."""
    parameters = dict(model.named_parameters())
    sums = {name: torch.zeros_like(parameters[name], dtype=torch.float64) for name in names}
    for row in rows:
        logs = head.logits(model, examples.images[[row]]).log_softmax(dim=1)[0]
        for log in logs:
            gradients = torch.autograd.grad(log, [parameters[n] for n in names], retain_graph=True)
            for name, gradient in zip(names, gradients, strict=True):
                sums[name] += float(log.detach().exp()) * gradient.double() ** 2
    return {name: total / len(rows) for name, total in sums.items()}


def test_fisher_information_by_definition() -> None:
    torch.manual_seed(0)
    model, examples, rows = Network().eval(), images(0, 27), np.array([3, 8, 1, 30])
    head = LinearHead(torch.randn(5, 6))
    names = ["first.weight", "second.weight"]
    parameters = dict(model.named_parameters())
    expected = by_definition(model, head, examples, rows, names)
    chosen = {name: parameters[name] for name in names}
    found = fisher_information(model, head, examples, rows, chosen, StatisticSettings())
    assert_same(found, expected)


def test_fisher_information_of_logistic_regression() -> None:
    torch.manual_seed(0)
    model, head = Linears({"w": torch.randn(4, 6)}), LinearsHead(0)
    examples, rows = images(0, 6), np.arange(20)
    found = fisher_information(model, head, examples, rows, matrices(model), StatisticSettings())
    x = torch.from_numpy(examples.images[rows]).double().flatten(1) / 255
    p = (x @ model.w.detach().double().T).softmax(dim=1)
    # ∂ log p_y / ∂w_c = (1[y = c] − p_c) x, whose square is p_c (1 − p_c) x² in expectation.
    assert_same(found, {"w": (p * (1 - p)).T @ x.square() / len(rows)})


def test_random_combinations_estimate_the_information_without_bias() -> None:
    torch.manual_seed(0)
    model, head = Linears({"w": torch.randn(5, 6)}), LinearsHead(0)
    examples, rows = images(0, 6), np.arange(40)

    def found(probes: int, seed: int) -> Tensor:
        settings = StatisticSettings(probes=probes, seed=seed)
        return fisher_information(model, head, examples, rows, matrices(model), settings)["w"]

    exact = found(5, 0)
    assert torch.equal(exact, found(16, 1))  # no chance in it
    assert torch.equal(found(2, 3), found(2, 3))
    single = found(2, 0)
    several = torch.stack([found(2, seed) for seed in range(40)]).mean(dim=0)
    # Of 40 examples with 2 probes each, one estimate is off by about √(1/40) = 16 %, 40 by 2.5 %.
    assert (single - exact).norm() > 0.08 * exact.norm()
    assert (several - exact).norm() < 0.05 * exact.norm()


def test_information_of_an_example_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    model, head, examples = Linears({"w": torch.randn(5, 6)}), LinearsHead(0), images(0, 6)
    settings = StatisticSettings(probes=2)

    def found(*rows: int) -> Tensor:
        chosen = np.array(rows)
        return fisher_information(model, head, examples, chosen, matrices(model), settings)["w"]

    torch.testing.assert_close(found(3, 7), (found(7) + found(3)) / 2)


def test_a_matrix_without_part_in_predictions_has_no_information() -> None:
    torch.manual_seed(0)
    model = Network().eval()
    model.spare = nn.Linear(2, 2)
    with pytest.raises(InputError, match="must take part in predictions .* spare.weight does not"):
        fisher_information(
            model, LinearHead(torch.randn(5, 6)), images(0, 27), np.array([0]),
            matrices(model), StatisticSettings(),
        )  # fmt: skip


@pytest.mark.parametrize("suite", [VISION, TEXT], ids=lambda suite: str(suite.name))
def test_log_likelihoods_belong_to_the_loss(suite: Any) -> None:
    model = suite.build_model()
    model.load_state_dict(load_weights(suite.base_path(), "base"))
    model.eval()
    task = suite.tasks[1]
    head, examples = suite.head(model, task), suite.examples(task.name, Split.TRAIN)
    with torch.no_grad():
        logs = head.log_likelihoods(model, examples, 5)
        loss = head.loss(model, examples, np.array([5]))
    torch.testing.assert_close(logs.exp().sum(dim=1), torch.ones(len(logs)))
    if suite is VISION:
        labels = torch.from_numpy(examples.labels[[5]])
    else:
        labels = torch.tensor(suite.tokenizer([examples.targets[5]])["input_ids"][0])
    torch.testing.assert_close(-logs.gather(1, labels[:, None]).mean(), loss)


@pytest.mark.parametrize("need", [Need.FISHER, Need.GRAM])
@pytest.mark.parametrize("suite", [VISION, TEXT], ids=lambda suite: str(suite.name))
def test_every_merged_matrix_has_its_statistic(suite: Any, need: Need) -> None:
    task = suite.tasks[0].name
    done: list[tuple[int, int]] = []
    found = collect(
        need, suite, task, suite.base_path(), FEW, report=lambda k, all_: done.append((k, all_))
    )
    assert done == [(1, 3), (2, 3), (3, 3)]
    state = load_weights(suite.base_path(), "base")
    assert found.keys() == {n for n, t in state.items() if suite.is_merged(n, t)}
    for name, tensor in found.items():
        m, n = state[name].shape
        assert tensor.shape == ((m, n) if need is Need.FISHER else (n, n))
        assert tensor.dtype == torch.float32
        assert torch.isfinite(tensor).all()
        if need is Need.FISHER:
            assert tensor.min() >= 0
        else:
            torch.testing.assert_close(tensor, tensor.T, rtol=1e-4, atol=1e-6)
        assert tensor.max() > 0
    again = collect(need, suite, task, state, FEW)
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_other_weights_than_the_suites_are_refused() -> None:
    state = load_weights(VISION.base_path(), "base")
    state["visual.proj"] = state["visual.proj"][:5]
    with pytest.raises(InputError, match="experts must have the parameters of suite mini_vision"):
        collect(Need.GRAM, VISION, "signs", state, FEW)


def test_only_statistics_are_collected() -> None:
    with pytest.raises(InputError, match="a statistic must be one of .*, but got unlabelled"):
        collect(Need.INPUTS, VISION, "signs", VISION.base_path(), FEW)


def test_the_choice_of_examples_is_pinned() -> None:
    rows = chosen_rows(5000, StatisticSettings())
    assert len(set(rows)) == 256
    assert rows[:4].tolist() == PINNED_ROWS
    assert sorted(chosen_rows(5, StatisticSettings())) == [0, 1, 2, 3, 4]
    assert chosen_rows(5000, StatisticSettings(seed=1))[:4].tolist() != PINNED_ROWS


@pytest.mark.parametrize(("name", "value"), [("examples", 0), ("probes", 0), ("seed", -1)])
def test_settings_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{name} of statistics must lie in .*, but got {value}"):
        StatisticSettings(**{name: value})


@pytest.fixture
def spec() -> StatisticSpec:
    data = VISION.examples("signs", Split.TRAIN).sha256
    return statistic_spec(Need.GRAM, VISION, "signs", "0" * 64, data, FEW)


def test_statistics_are_computed_once(tmp_path: Path, spec: StatisticSpec) -> None:
    assert statistics_file(spec, tmp_path) is None
    done: list[int] = []
    path = collect_to(
        tmp_path, spec, VISION, VISION.base_path(), report=lambda k, _all: done.append(k)
    )
    assert done == [1, 2, 3]
    assert statistics_file(spec, tmp_path) == path
    assert read_metadata(path)["need"] == "GRAM"
    again = collect_to(
        tmp_path, spec, VISION, VISION.base_path(), report=lambda k, _all: done.append(k)
    )
    assert again == path
    assert done == [1, 2, 3]
    kept, direct = (
        load_weights(path, "kept"),
        collect(Need.GRAM, VISION, "signs", VISION.base_path(), FEW),
    )
    assert all(torch.equal(kept[name], direct[name]) for name in direct)


def test_nobody_waits_for_one_that_hangs_over_the_same(tmp_path: Path, spec: StatisticSpec) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(_done: int, _all: int) -> None:
        hangs.set()
        goes_on.wait(500)

    def collect_here(report: Report | None = None) -> threading.Thread:
        arguments = (tmp_path, spec, VISION, VISION.base_path())
        thread = threading.Thread(
            target=collect_to, args=arguments, kwargs={"report": report}, daemon=True
        )
        thread.start()
        return thread

    first = collect_here(hang)
    assert hangs.wait(200)
    second = collect_here()
    second.join(200)
    assert not second.is_alive()
    path = statistics_file(spec, tmp_path)
    assert path is not None
    written = path.read_bytes()
    goes_on.set()
    first.join(200)
    assert not first.is_alive()
    assert path.read_bytes() == written


def test_damaged_statistics_are_put_aside_and_computed_again(
    tmp_path: Path, spec: StatisticSpec
) -> None:
    path = collect_to(tmp_path, spec, VISION, VISION.base_path())
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    said: list[str] = []
    assert statistics_file(spec, tmp_path, said.append) is None
    (line,) = said
    assert line.startswith("the training statistic GRAM of signs")
    assert line.endswith(f"it was put aside as {path.name}.damaged and is computed again")
    assert collect_to(tmp_path, spec, VISION, VISION.base_path()) == path
    assert path.read_bytes() == whole


def test_what_defines_statistics_decides_their_file(tmp_path: Path, spec: StatisticSpec) -> None:
    changed = [
        dataclasses.replace(spec, need=Need.FISHER),
        dataclasses.replace(spec, expert_sha256="1" * 64),
        dataclasses.replace(spec, data_sha256="1" * 64),
        dataclasses.replace(spec, base_sha256="1" * 64),
        dataclasses.replace(spec, settings=StatisticSettings(examples=4)),
        dataclasses.replace(spec, code="other"),
    ]
    assert len({s.path(tmp_path) for s in (spec, *changed)}) == 7

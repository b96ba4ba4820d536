"""One contract that every registered method keeps, whatever it needs."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from apgd import InputError, Merged, TaskVectors, merge, merge_files
from apgd.checkpoints import load_weights, save_weights
from apgd.evidence import Need
from apgd.methods import SUFFIX, Limit, Method, methods
from apgd.task_vectors import Select
from tests.conftest import State, same_bits
from tests.evidence import evidence_for

Make = Callable[..., tuple[State, dict[str, State]]]
# APGD before a method is one piece of code: a method of every kind is enough to show it.
PLUGGED = ["weight_averaging", "ties", "tsv_m", "adamerging_task_wise"]
EVERY = [*methods, *(name + SUFFIX for name in PLUGGED)]


@pytest.fixture(params=EVERY)
def method(request: pytest.FixtureRequest) -> Method:
    return methods[request.param]


def merged_by(
    method: Method, base: State, experts: Mapping[str, State], select: Select | None = None
) -> Merged:
    evidence = evidence_for(method, base, experts)
    return merge(method.name, base, experts, select=select, evidence=evidence, **method.quick)


def test_is_pure_and_deterministic(method: Method, model: Make) -> None:
    base, experts = model()
    kept = {n: t.clone() for n, t in base.items()}
    kept_experts = {e: {n: t.clone() for n, t in s.items()} for e, s in experts.items()}
    evidence = evidence_for(method, base, experts)
    again = evidence_for(method, base, experts)
    first, second = (
        merge(method.name, base, experts, evidence=evidence, **method.quick) for _ in range(2)
    )
    for parameter in base:
        assert same_bits(first[parameter], second[parameter])
        assert same_bits(base[parameter], kept[parameter])
        for expert in experts:
            assert same_bits(experts[expert][parameter], kept_experts[expert][parameter])
    for expert, tensors in evidence.statistics.items():
        for name, tensor in again.statistics[expert].items():  # type: ignore[union-attr]
            assert same_bits(tensors[name], tensor)  # type: ignore[index]
    if evidence.inputs is not None and again.inputs is not None:
        left, untouched = evidence.inputs.model, again.inputs.model
        for name, tensor in untouched.state_dict().items():
            assert same_bits(left.state_dict()[name], tensor)
        assert all(p.grad is None and p.requires_grad for p in left.parameters())


def test_keeps_keys_dtypes_and_unselected_tensors(method: Method, model: Make) -> None:
    base, experts = model()
    half = {n: t.half() for n, t in base.items()}
    merged = merged_by(method, half, experts, select=lambda n, _t: n == "tall")
    assert list(merged) == sorted(half)
    assert all(merged[n].dtype == torch.float16 for n in half)
    assert all(same_bits(merged[n], half[n]) for n in half if n != "tall")
    assert not torch.equal(merged["tall"], half["tall"])
    assert all(torch.isfinite(t).all() for t in merged.values())


def test_order_of_experts_does_not_matter(method: Method, model: Make) -> None:
    base, experts = model(5)
    merged = merged_by(method, base, experts)
    turned = merged_by(method, base, dict(reversed(experts.items())))
    for parameter in base:
        torch.testing.assert_close(merged[parameter], turned[parameter], rtol=1e-4, atol=2e-6)


def test_streams_to_the_same_bits(method: Method, model: Make, tmp_path: Path) -> None:
    base, experts = model()
    evidence = evidence_for(method, base, experts)
    paths = {}
    for name, state in {"base": base, **experts}.items():
        paths[name] = tmp_path / f"{name}.safetensors"
        save_weights(paths[name], state)
    in_memory = merge(method.name, base, experts, evidence=evidence, **method.quick)
    foundation = paths.pop("base")
    merge_files(
        method.name, foundation, paths, tmp_path / "out",
        evidence=evidence, shard_bytes=300, **method.quick,
    )  # fmt: skip
    streamed = load_weights(tmp_path / "out", "the merged model")
    assert len(list((tmp_path / "out").glob("model-*"))) > 1
    assert all(same_bits(streamed[name], in_memory[name]) for name in base)


def test_kept_and_reread_task_vectors_agree(method: Method, model: Make) -> None:
    base, experts = model()
    kept = TaskVectors(base, experts, keep=True)
    reread = TaskVectors(base, experts, keep=False)
    params, evidence = method.parse(method.quick), evidence_for(method, base, experts)
    ours, theirs = (method.merge(v, params, evidence) for v in (kept, reread))
    again = method.merge(kept, params, evidence)  # what is kept was not changed
    for name in kept.names:
        assert same_bits(ours[name], theirs[name])
        assert same_bits(ours[name], again[name])


def test_experts_equal_to_the_base_change_nothing(method: Method, model: Make) -> None:
    base, _ = model()
    merged = merged_by(method, base, {"a": base, "b": base})
    for parameter in base:
        torch.testing.assert_close(merged[parameter], base[parameter], rtol=0, atol=1e-7)


def test_one_expert_merges(method: Method, model: Make) -> None:
    base, experts = model(1)
    merged = merged_by(method, base, experts)
    assert all(torch.isfinite(t).all() for t in merged.values())


def test_an_expert_that_changed_nothing_is_no_obstacle(method: Method, model: Make) -> None:
    base, experts = model(2)
    merged = merged_by(method, base, {**experts, "same": base})
    assert all(torch.isfinite(t).all() for t in merged.values())


def test_half_precision_experts_are_merged_in_float32(method: Method, model: Make) -> None:
    base, experts = model()
    halves = {e: {n: t.bfloat16() for n, t in s.items()} for e, s in experts.items()}
    wide = {e: {n: t.float() for n, t in s.items()} for e, s in halves.items()}
    ours, theirs = merged_by(method, base, halves), merged_by(method, base, wide)
    assert all(same_bits(ours[name], theirs[name]) for name in base)


def test_is_documented(method: Method) -> None:
    assert method.title
    assert "arXiv" in method.source
    for declared in method.params.declared():
        assert declared.meaning
        declared.check(declared.default)
        if declared.search is not None:
            low, high = declared.search
            declared.check(declared.kind(low))
            if isinstance(high, Limit):
                assert declared.high is high
            else:
                assert low < high
                declared.check(declared.kind(high))
            assert not declared.log or low > 0


def test_its_work_and_memory_are_declared(method: Method) -> None:
    params = method.parse({})
    small, large = (method.cost((8 * k, 8 * k), 3, params) for k in (1, 4))
    assert large.bytes > small.bytes > 0
    assert method.holds((8, 8), 3) >= 4 * 8 * 8 * 4
    assert method.passes >= 1


def test_unknown_parameter_is_refused(method: Method, model: Make) -> None:
    base, experts = model()
    with pytest.raises(InputError, match=f"unknown parameter 'shape' of method {method.name[:4]}"):
        merge(method.name, base, experts, shape=1)


@pytest.mark.parametrize("name", [n for n in methods if methods[n].needs is not Need.NOTHING])
def test_what_is_needed_and_missing_is_named(name: str, model: Make) -> None:
    with pytest.raises(
        InputError, match=f"method {name} needs {methods[name].needs}, but got none"
    ):
        merge(name, *model())


METHOD_FILE = '''
from dataclasses import dataclass
from apgd.methods import Method, MethodParams, parameter

@dataclass(frozen=True, kw_only=True)
class Params(MethodParams):
    """Of a method that a user wrote."""

    coefficient: float = parameter(0.5, "weight of the largest change", low=0, search=(0.1, 2.0))

def combine(tau, params, prepared):
    """The entry of largest magnitude among the task vectors."""
    return params.coefficient * tau.gather(0, tau.abs().argmax(dim=0, keepdim=True))[0]

largest = Method(name="largest", title="Largest change", source="the test (arXiv 0)",
                 params=Params, combine=combine)
'''


@pytest.mark.parametrize("broken", [False, True])
def test_a_method_is_one_file_under_the_contract(tmp_path: Path, broken: bool) -> None:
    """The file is dropped into a folder on the methods' path, and this file's tests run on it."""
    text = METHOD_FILE.replace("return params", "tau.mul_(1.1)\n    return params")
    (tmp_path / "largest.py").write_text(text if broken else METHOD_FILE)
    result = tmp_path / "result.xml"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--junitxml={result}",
         "-k", "largest and not one_file", __file__],
        env={**os.environ, "APGD_METHODS": str(tmp_path)},
        cwd=Path(__file__).parents[1],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    cases = ElementTree.parse(result).getroot().findall(".//testcase")  # noqa: S314 - our own file
    failed = {case.get("name") for case in cases if case.find("failure") is not None}
    assert "test_is_documented[largest]" in {case.get("name") for case in cases}
    if broken:  # it changes the task vectors that others will read
        assert "test_kept_and_reread_task_vectors_agree[largest]" in failed
    else:
        assert done.returncode == 0, done.stdout
        assert not failed

"""Flan-T5 on GLUE without a hub: from the hub's cache to the answers of a merged model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apgd import InputError, numerics
from apgd.checkpoints import load_weights
from apgd.data import Metric, Split
from apgd.data.prompts import GLUE, Prompt, read_prompts
from apgd.external import ForeignExperts
from apgd.finetune import Expert, expert_spec, finetune
from apgd.heads import judge
from apgd.lora import is_adapter
from apgd.methods import methods
from apgd.suites import suites
from apgd.suites.facts import glue_datasets
from apgd.suites.flan_t5 import BASE, LARGE, FlanT5Suite
from apgd.task_vectors import TaskVectors
from tests.glue_hub import TEST_ROWS, TRAIN_ROWS, VOCABULARY, fill, put_model, tiny_suite
from tests.hub_cache import HubCache, offline_cache
from tests.suites.whole_path import run_whole_path
from tests.tiny_t5 import tiny_t5

TASKS = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> HubCache:
    cache = HubCache(tmp_path_factory.mktemp("hub"))
    fill(cache)
    return cache


@pytest.fixture
def cache(
    filled: HubCache, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> HubCache:
    numerics.configure(1)
    monkeypatch.setenv("APGD_CACHE", str(tmp_path_factory.getbasetemp() / "flan_t5_cache"))
    return offline_cache(filled.root, monkeypatch)


def trained(suite: FlanT5Suite, task: str, root: Path, seed: int = 0) -> Expert:
    settings = replace(suite.finetune, steps=2, batch_size=4, learning_rate=1e-3)
    data = suite.examples(task, Split.TRAIN).sha256
    return finetune(suite, expert_spec(suite, task, seed, settings, data), root)


@pytest.mark.parametrize("lora", [False, True])
def test_from_the_hubs_cache_to_merged_answers(cache: HubCache, tmp_path: Path, lora: bool) -> None:
    suite = tiny_suite(lora=lora)
    experts = {task: trained(suite, task, tmp_path).weights for task in TASKS}
    assert all(is_adapter(path) == lora for path in experts.values())
    vectors = TaskVectors(suite.base_path(), experts, suite.is_merged)
    assert len(vectors.names) == (12 if lora else 12 + 24)
    method = methods["doge_ta"]
    params = {**suite.published["doge_ta"], "iterations": 5}
    merged = vectors.apply(method.merge(vectors, method.parse(params)))
    model = suite.build_model()
    model.load_state_dict(merged)
    base = load_weights(suite.base_path(), "base")
    assert {n for n in base if not torch.equal(base[n], merged[n])} == set(vectors.names)
    for task in suite.tasks:
        examples = suite.examples(task.name, Split.TEST)
        answers = judge(model, suite.head(model, task), examples)
        assert answers.shape == (TEST_ROWS,)
        assert np.isfinite(answers).all()
        assert (answers.dtype == bool) == (task.metric is Metric.ACCURACY)


@pytest.mark.parametrize("lora", [False, True])
def test_the_whole_path_with_own_and_with_published_experts(
    cache: HubCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool
) -> None:
    suite = tiny_suite(lora=lora, tasks=("rte", "stsb"))
    finetune_settings = replace(suite.finetune, steps=2, batch_size=4, learning_rate=1e-3)
    monkeypatch.setattr(suite, "finetune", finetune_settings)
    asked = ("pretrained", "experts", "multi_task", "ensemble")
    _, rows = run_whole_path(
        suite, tmp_path / "own", monkeypatch, method="doge_ta", references=asked
    )
    assert {row.method for row in rows} >= {*asked, "doge_ta"}
    searched = next(row for row in rows if row.method == "doge_ta" and row.params)
    assert set(searched.scores) == {"test/rte", "test/stsb"}
    for task in suite.tasks:  # what was trained is now what others published
        made = trained(suite, task.name, tmp_path / "own" / "experts", seed=7).weights
        folder = cache.snapshot(suite.published_experts[task.name])
        for file in made.iterdir() if lora else [made]:
            shutil.copyfile(file, folder / (file.name if lora else "model.safetensors"))
    _, rows = run_whole_path(
        suite, tmp_path / "published", monkeypatch, method="doge_ta", experts="published"
    )
    assert {row.method for row in rows} >= {"pretrained", "experts", "doge_ta"}


def test_splits_are_disjoint_and_written_as_prompts(cache: HubCache) -> None:
    suite = tiny_suite(lora=False)
    for task in TASKS:
        train = suite.examples(task, Split.TRAIN)
        validation = suite.examples(task, Split.VALIDATION)
        test = suite.examples(task, Split.TEST)
        assert (len(train), len(validation), len(test)) == (
            TRAIN_ROWS - TRAIN_ROWS // 10, TRAIN_ROWS // 10, TEST_ROWS,
        )  # fmt: skip
        assert not set(train.inputs) & set(validation.inputs)
        answers = suite.task(task).class_names
        assert set(train.targets) <= (set(answers) or set(train.targets))
        assert suite.has_examples(task, Split.TEST)
    assert set(suite.examples("stsb", Split.TEST).targets) == {f"{5 * i / 6:.1f}" for i in range(6)}


def test_row_and_prompt_of_one_pinned_example(cache: HubCache) -> None:
    found = tiny_suite(lora=False).examples("qnli", Split.TEST)
    row = next(i for i, text in enumerate(found.inputs) if " 0.\n" in text)
    passage, question, asked = found.inputs[row].split("\n")
    assert passage.startswith("Passage: ")
    assert question.startswith("Question: ")
    assert asked == "Can the question be answered from the passage alone? Reply yes or no."
    assert found.targets[row] == "yes"


def test_lora_trains_nothing_else_and_resumes_with_the_same_bits(
    cache: HubCache, tmp_path: Path
) -> None:
    suite = tiny_suite(lora=True)
    settings = replace(suite.finetune, steps=6, batch_size=4, checkpoint_every=2)
    data = suite.examples("rte", Split.TRAIN).sha256
    spec = expert_spec(suite, "rte", 0, settings, data)
    whole = finetune(suite, spec, tmp_path / "whole")

    class KilledError(Exception):
        pass

    def kill(done: int, _total: int) -> None:
        if done == 5:
            raise KilledError

    with pytest.raises(KilledError):
        finetune(suite, spec, tmp_path / "killed", report=kill)
    kept = load_weights(spec.folder(tmp_path / "killed") / "training.safetensors", "checkpoint")
    assert {name.split(".")[-3] for name in kept if name.startswith("model/")} == {
        "lora_A", "lora_B",
    }  # fmt: skip
    resumed = finetune(suite, spec, tmp_path / "killed")
    assert resumed.manifest["resumed_at_step"] == 4
    assert resumed.sha256 == whole.sha256
    again = finetune(suite, spec, tmp_path / "killed")
    assert again.sha256 == whole.sha256
    base = load_weights(suite.base_path(), "base")
    tuned = load_weights(whole.weights, "expert", base)
    assert all(
        torch.equal(base[name], tuned[name]) != name.endswith((".q.weight", ".v.weight"))
        for name in base
    )
    size = sum(path.stat().st_size for path in whole.weights.iterdir())
    assert size < 100_000
    assert whole.manifest["tau_norm_ratio"] > 0
    other = finetune(suite, replace(spec, seed=1), tmp_path / "whole")
    assert other.sha256 != whole.sha256


def test_a_damaged_adapter_is_made_again(cache: HubCache, tmp_path: Path) -> None:
    suite = tiny_suite(lora=True)
    expert = trained(suite, "rte", tmp_path)
    file = expert.weights / "adapter_config.json"
    file.write_text(file.read_text().replace("32", "33"))
    again = trained(suite, "rte", tmp_path)
    assert again.sha256 == expert.sha256
    assert "the weights of expert rte must have the hash" in again.manifest["events"][0]
    assert len(list(tmp_path.rglob("*.damaged"))) == 1


def test_full_training_with_dropout_resumes_with_the_same_bits(
    cache: HubCache, tmp_path: Path
) -> None:
    suite = tiny_suite(lora=False)
    assert suite.config.dropout_rate > 0
    settings = replace(suite.finetune, steps=4, batch_size=4, checkpoint_every=2)
    spec = expert_spec(suite, "cola", 0, settings, suite.examples("cola", Split.TRAIN).sha256)
    whole = finetune(suite, spec, tmp_path / "whole")

    def kill(done: int, _total: int) -> None:
        if done == 3:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        finetune(suite, spec, tmp_path / "killed", report=kill)
    torch.manual_seed(1234)
    assert finetune(suite, spec, tmp_path / "killed").sha256 == whole.sha256


@pytest.mark.parametrize("lora", [False, True])
def test_recomputed_activations_change_nothing(cache: HubCache, tmp_path: Path, lora: bool) -> None:
    suite = tiny_suite(lora=lora)
    data = suite.examples("cola", Split.TRAIN).sha256
    base = load_weights(suite.base_path(), "base")
    found = []
    for recomputed in (False, True):
        settings = replace(suite.finetune, steps=3, batch_size=4, gradient_checkpointing=recomputed)
        expert = finetune(suite, expert_spec(suite, "cola", 0, settings, data), tmp_path)
        found.append(load_weights(expert.weights, "expert", base))
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=1e-5, atol=1e-6)
    assert not all(torch.equal(base[name], tensor) for name, tensor in found[0].items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_published_full_experts_come_in_any_names(
    cache: HubCache, tmp_path: Path, dtype: torch.dtype
) -> None:
    suite = tiny_suite(lora=False)
    for number, task in enumerate(TASKS):
        state = dict(tiny_t5(number + 1, VOCABULARY).state_dict())
        canonical = {n: t.to(dtype) for n, t in state.items()}
        stored = dict(canonical)
        if number % 3 == 1:  # as other versions of transformers write it
            stored["decoder.embed_tokens.weight"] = stored["shared.weight"]
            stored["encoder.embed_tokens.weight"] = stored.pop("shared.weight")
        if number % 3 == 2:
            stored["decoder.embed_tokens.weight"] = stored["shared.weight"]
            stored["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = (
                torch.zeros(32, 4, dtype=dtype)
            )
        folder = put_model(cache, suite.published_experts[task], stored)
        if number % 4 == 3:  # an old repository, with all names of tied memory
            (folder / "model.safetensors").unlink()
            names = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
            whole = canonical | dict.fromkeys(names, canonical["shared.weight"])
            torch.save(whole, folder / "pytorch_model.bin")
        expert = ForeignExperts(suite, "published").fetch(task, tmp_path)
        found = load_weights(expert.weights, "expert")
        assert found.keys() == canonical.keys()
        assert all(torch.equal(found[name], canonical[name]) for name in canonical)
    TaskVectors(suite.base_path(), {"a": expert.weights}, suite.is_merged)


def test_published_adapters_stay_adapters(cache: HubCache, tmp_path: Path) -> None:
    suite = tiny_suite(lora=True)
    made = trained(suite, "rte", tmp_path).weights
    folder = cache.snapshot(suite.published_experts["rte"])
    for file in made.iterdir():
        shutil.copyfile(file, folder / file.name)
    (folder / "README.md").write_text("a card")
    expert = ForeignExperts(suite, "published").fetch("rte", tmp_path)
    assert sorted(path.name for path in expert.weights.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    vectors = TaskVectors(suite.base_path(), {"ours": made, "theirs": expert.weights})
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    assert torch.equal(*vectors[name])
    assert vectors[name].any()
    config = json.loads((folder / "adapter_config.json").read_text()) | {"use_dora": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="sets use_dora"):
        ForeignExperts(suite, "published").fetch("rte", tmp_path)


def test_a_base_that_is_no_flan_t5_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = offline_cache(tmp_path / "hub", monkeypatch)
    monkeypatch.setenv("APGD_CACHE", str(tmp_path / "cache"))
    suite = tiny_suite(lora=False)
    with pytest.raises(InputError, match="hf download google/flan-t5-base model.safetensors"):
        suite.base_path()
    state = dict(tiny_t5(vocab_size=VOCABULARY).state_dict())
    tied = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    put_model(cache, "google/flan-t5-base", tied)
    with pytest.raises(InputError, match="must hold lm_head.weight, as every Flan-T5 does"):
        suite.base_path()
    put_model(cache, "google/flan-t5-base", {"visual.conv1": torch.ones(2)})
    with pytest.raises(InputError, match="must be a T5"):
        suite.base_path()
    put_model(
        cache, "google/flan-t5-base",
        state | {"encoder.embed_tokens.weight": state["shared.weight"] + 1},
    )  # fmt: skip
    with pytest.raises(
        InputError, match="must be the one embedding that encoder and decoder share"
    ):
        suite.base_path()


def test_the_base_keeps_embedding_and_logits_apart(cache: HubCache) -> None:
    suite = tiny_suite(lora=False)
    base = load_weights(suite.base_path(), "base")
    assert not torch.equal(base["shared.weight"], base["lm_head.weight"])
    model = suite.build_model()
    model.load_state_dict(base)
    again = model.state_dict()
    assert all(torch.equal(again[name], base[name]) for name in base)
    assert model.get_parameter("lm_head.weight") is not model.get_parameter("shared.weight")
    assert torch.equal(
        model.get_submodule("encoder").get_parameter("embed_tokens.weight"), base["shared.weight"]
    )


@pytest.mark.parametrize(
    ("config", "count"), [(BASE, 247_577_856), (LARGE, 783_150_080)], ids=["base", "large"]
)
def test_sizes_are_those_of_the_real_models(config: object, count: int) -> None:
    lora = config is LARGE
    suite = suites["flan_t5_large_glue_lora" if lora else "flan_t5_base_glue"]
    with torch.device("meta"):
        model = suite.build_model()
    state = model.state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == count
    merged = [name for name, tensor in state.items() if suite.is_merged(name, tensor)]
    assert len(merged) == (24 * 6 if lora else 12 * 7 + 12 * 11)
    assert ("encoder.block.3.layer.1.DenseReluDense.wo.weight" in merged) == (not lora)
    assert not any("relative_attention_bias" in name for name in merged)
    assert "lm_head.weight" not in merged


def test_published_experts_have_their_names() -> None:
    assert (
        suites["flan_t5_base_glue"].published_experts["cola"] == "tanganke/flan-t5-base_glue-cola"
    )
    lora = suites["flan_t5_large_glue_lora"].published_experts
    assert lora["stsb"] == "tanganke/flan-t5-large_glue-stsb_lora-16"
    large = suites["flan_t5_large_glue"]
    assert not large.published_experts
    with pytest.raises(InputError, match="has no published experts, but cola was asked for"):
        large.published_expert("cola")


COLUMNS = {task: found.text_columns for task, found in glue_datasets().items()}


class TestPrompts:
    def test_ours_show_every_column_and_name_every_answer(self) -> None:
        found = read_prompts(GLUE, COLUMNS)
        assert tuple(found) == TASKS
        for task, prompt in found.items():
            row = {column: f"<{column}>" for column in COLUMNS[task]}
            asked = prompt.question(row)
            assert all(asked.count(text) == 1 for text in row.values())
            assert all(answer in asked for answer in prompt.answers)
        assert found["stsb"].answer(3.75) == "3.8"
        assert found["stsb"].answer(0) == "0.0"
        assert found["mrpc"].answer(1) == "yes"
        assert found["qnli"].answer(1) == "no"

    def test_columns_in_the_order_of_the_reference(self) -> None:
        assert read_prompts(GLUE, COLUMNS)["qnli"].columns == ("sentence", "question")

    def refused(self, path: Path, content: object, message: str) -> None:
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match=message):
            read_prompts(path, {"rte": ("sentence1", "sentence2")})

    def test_what_is_wrong_with_a_table_is_said(self, tmp_path: Path) -> None:
        path = tmp_path / "prompts.json"
        with pytest.raises(InputError, match="must be a JSON file with prompts"):
            read_prompts(path, COLUMNS)
        both = "{sentence1} {sentence2}"
        self.refused(path, {}, "must have a prompt for rte, but has none")
        self.refused(path, [], "must have a prompt for rte, but has none")
        self.refused(path, {"rte": {"prompt": both}}, "must have either answers or decimals")
        self.refused(path, {"rte": {"prompt": both, "answers": ["a", "a"]}}, "answers must differ")
        self.refused(path, {"rte": {"prompt": "{sentence1}", "decimals": 1}},
                     "must show sentence1 and sentence2 once each, but shows")  # fmt: skip
        self.refused(path, {"rte": {"prompt": both + "{", "decimals": 1}}, "the entry of rte in")
        self.refused(path, {"rte": {"text": both}}, "the entry of rte in")

    def test_another_table_makes_other_examples(self, cache: HubCache) -> None:
        suite = tiny_suite(lora=False)
        ours = suite.examples("cola", Split.TEST)
        suite.prompts = {**suite.prompts, "cola": Prompt(prompt="{sentence} ?", answers=("n", "y"))}
        theirs = suite.examples("cola", Split.TEST)
        assert theirs.sha256 != ours.sha256
        assert set(theirs.targets) == {"n", "y"}

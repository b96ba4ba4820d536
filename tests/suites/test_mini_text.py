from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from apgd import merge
from apgd.data import Metric, Split, Task
from apgd.errors import InputError
from apgd.finetune import Expert, expert_spec, finetune
from apgd.heads import judge
from apgd.suites import suites
from apgd.suites.mini_text import MINI_TEXT, MINI_TEXT_LORA, PINNED, MiniText

ZERO_SHOT: dict[str, float] = {
    "acceptability": 53.25,
    "entailment": 55.25,
    "paraphrase": 70.25,
    "answer": 56.0,
    "questions": 56.75,
    "roles": 68.75,
    "sentiment": 51.25,
    "similarity": 72.59,
}
"""Validation scores of the base, in percent, as they came out when it was made."""


@pytest.fixture(scope="module")
def base() -> nn.Module:
    model = MINI_TEXT.build_model()
    model.load_state_dict(load_file(MINI_TEXT.base_path()), strict=True)
    return model.eval()


def test_found_by_being_there() -> None:
    assert suites["mini_text"] is MINI_TEXT
    assert suites["mini_text_lora"] is MINI_TEXT_LORA


def test_tasks_stand_for_glue_in_its_order() -> None:
    assert [task.stands_for for task in MINI_TEXT.tasks] == [
        "cola",
        "mnli",
        "mrpc",
        "qnli",
        "qqp",
        "rte",
        "sst2",
        "stsb",
    ]
    by_order = [task.name for task in MINI_TEXT.tasks if task.metric is Metric.SPEARMAN]
    assert by_order == ["similarity"]


def test_every_split_is_what_was_pinned() -> None:
    assert set(PINNED) == {(task.name, split) for task in MINI_TEXT.tasks for split in Split}
    sizes = {Split.TRAIN: 6000, Split.VALIDATION: 400, Split.TEST: 2400}
    for (task, split), pinned in PINNED.items():
        examples = MINI_TEXT.examples(task, split)  # refuses any other hash
        assert examples.sha256 == pinned
        assert len(examples) == sizes[split]
        assert MINI_TEXT.has_examples(task, split)


def test_no_text_is_in_two_splits() -> None:
    for task in MINI_TEXT.tasks:
        texts = [text for split in Split for text in MINI_TEXT.examples(task.name, split).inputs]
        assert len(set(texts)) == len(texts) == 8800


def test_other_texts_than_pinned_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**PINNED, ("roles", Split.TEST): "0" * 64}
    monkeypatch.setattr("apgd.suites.mini_text.PINNED", wrong)
    with pytest.raises(InputError, match=r"task roles, split test .*000000000000.*numpy"):
        MINI_TEXT.examples("roles", Split.TEST)


def test_unknown_task() -> None:
    with pytest.raises(InputError, match=r"'cats'.*acceptability"):
        MINI_TEXT.examples("cats", Split.TEST)


def test_each_label_is_one_token_of_its_own() -> None:
    labels = [label for task in MINI_TEXT.tasks for label in task.class_names]
    tokens = [MINI_TEXT.tokenizer(label).input_ids for label in labels]
    end = MINI_TEXT.tokenizer.eos_token_id
    assert all(len(numbers) == 2 and numbers[1] == end for numbers in tokens)
    assert len({numbers[0] for numbers in tokens}) == len(labels)


def test_no_prompt_is_cut_off_or_unknown() -> None:
    for task in MINI_TEXT.tasks:
        texts = list(MINI_TEXT.examples(task.name, Split.TEST).inputs)
        numbers = MINI_TEXT.tokenizer(texts).input_ids
        assert max(map(len, numbers)) <= 64
        assert MINI_TEXT.tokenizer.unk_token_id not in {n for line in numbers for n in line}
        assert (
            MINI_TEXT.tokenizer.batch_decode(numbers[:50], skip_special_tokens=True) == texts[:50]
        )


def test_assets_are_small_and_in_single_precision() -> None:
    weights = MINI_TEXT.base_path()
    tokenizer = weights.with_name("mini_text_tokenizer.json")
    assert weights.stat().st_size + tokenizer.stat().st_size <= 4 * 10**6
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float32}


def test_logits_are_not_tied_to_the_embedding(base: nn.Module) -> None:
    shared, logits = base.get_parameter("shared.weight"), base.get_parameter("lm_head.weight")
    assert shared.data_ptr() != logits.data_ptr()
    assert not torch.allclose(shared, logits, atol=0.1)
    stored = load_file(MINI_TEXT.base_path())
    assert torch.equal(shared, stored["shared.weight"])
    assert torch.equal(logits, stored["lm_head.weight"])
    for stack in ("encoder", "decoder"):
        assert base.get_parameter(f"{stack}.embed_tokens.weight") is shared


def test_state_dict_has_every_parameter_once(base: nn.Module) -> None:
    state = base.state_dict()
    assert not any("embed_tokens" in name for name in state)
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)
    assert sum(tensor.numel() for tensor in state.values()) < 900_000


def test_merged_are_the_linear_matrices_of_all_blocks(base: nn.Module) -> None:
    merged = [name for name, p in base.state_dict().items() if MINI_TEXT.is_merged(name, p)]
    assert len(merged) == 3 * (4 + 3) + (4 + 4 + 3)
    linear = {
        f"{name}.weight"
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and name != "lm_head"
    }
    assert set(merged) == linear
    assert all(MINI_TEXT.is_trained(name) for name in merged)
    assert not MINI_TEXT.is_trained("shared.weight")
    assert not MINI_TEXT.is_trained("lm_head.weight")


@pytest.mark.parametrize("task", MINI_TEXT.tasks, ids=lambda task: task.name)
def test_base_is_as_good_as_when_it_was_made(base: nn.Module, task: Task) -> None:
    examples = MINI_TEXT.examples(task.name, Split.VALIDATION)
    score = 100 * judge(base, MINI_TEXT.head(base, task), examples).mean()
    assert score == pytest.approx(ZERO_SHOT[task.name], abs=0.6)


def test_base_is_between_chance_and_experts() -> None:
    assert set(ZERO_SHOT) == {task.name for task in MINI_TEXT.tasks}
    assert 45 <= np.mean(list(ZERO_SHOT.values())) <= 65


def test_greedy_answers_are_the_likeliest_first_tokens(base: nn.Module) -> None:
    for task in MINI_TEXT.tasks:
        examples = MINI_TEXT.examples(task.name, Split.VALIDATION).first(60)
        read = MINI_TEXT.tokenizer(list(examples.inputs), padding=True, return_tensors="pt")
        start = torch.zeros(60, 1, dtype=torch.long)
        with torch.inference_mode():
            scores = base(
                input_ids=read.input_ids,
                attention_mask=read.attention_mask,
                decoder_input_ids=start,
            ).logits[:, 0]
            said = MINI_TEXT.head(base, task).decoded(base, examples)
        likeliest = MINI_TEXT.tokenizer.batch_decode(scores.argmax(dim=1)[:, None])
        for first, whole in zip(map(str.strip, likeliest), said, strict=True):
            assert whole.split()[0] == first
            # A label is followed by the end at once, so that one decoder step tells all.
            assert whole == first or first not in task.class_names


def two_steps(suite: MiniText, root: Path) -> Expert:
    settings = replace(suite.finetune, steps=2)
    data = suite.examples("roles", Split.TRAIN).sha256
    return finetune(suite, expert_spec(suite, "roles", 0, settings, data), root)


def test_an_expert_changes_the_blocks_alone(tmp_path: Path) -> None:
    expert = two_steps(MINI_TEXT, tmp_path)
    before, after = load_file(MINI_TEXT.base_path()), load_file(expert.weights)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    merged = {name for name, tensor in before.items() if MINI_TEXT.is_merged(name, tensor)}
    assert merged <= changed
    assert all(MINI_TEXT.is_trained(name) for name in changed)


def test_a_lora_expert_has_factors_for_every_merged_matrix(tmp_path: Path) -> None:
    expert = two_steps(MINI_TEXT_LORA, tmp_path)
    base = load_file(MINI_TEXT_LORA.base_path())
    with_expert = merge(
        "task_arithmetic",
        MINI_TEXT_LORA.base_path(),
        {"roles": expert.weights},
        select=MINI_TEXT_LORA.is_merged,
        coefficient=1.0,
    )
    changed = {name for name in base if not torch.equal(base[name], with_expert[name])}
    assert changed == {name for name, p in base.items() if MINI_TEXT_LORA.is_merged(name, p)}
    for name in changed:
        assert torch.linalg.matrix_rank(with_expert[name] - base[name], atol=1e-6) <= 16

"""A tiny Flan-T5 and a few rows of GLUE in the hub's cache, as its clients would leave them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import datasets
import torch
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

from apgd.checkpoints import save_weights
from apgd.data.hub import HubDataset
from apgd.suites.facts import glue_datasets
from apgd.suites.flan_t5 import FlanT5Suite
from tests.hub_cache import HubCache
from tests.tiny_t5 import tiny_config, tiny_t5

TRAIN_ROWS, TEST_ROWS = 40, 6
VOCABULARY = 320
_TEXT = "the cat saw a small red ball under old trees while two birds sang and it rained"
_WORDS = _TEXT.split()


def tiny_suite(*, lora: bool, tasks: tuple[str, ...] = ()) -> FlanT5Suite:
    """The suite as it is, with a small model, and data sets whose numbers of rows are not known."""
    found = {name: replace(dataset, rows={}) for name, dataset in glue_datasets().items()}
    return FlanT5Suite(
        "tiny_glue_lora" if lora else "tiny_glue",
        "base",
        tiny_config(VOCABULARY),
        lora=lora,
        datasets={name: found[name] for name in tasks or found},
    )


def fill(cache: HubCache) -> None:
    """Base, tokenizer and all eight data sets."""
    put_model(cache, "google/flan-t5-base", tiny_t5(vocab_size=VOCABULARY).state_dict())
    tokenizer().save(str(cache.snapshot("google/flan-t5-base") / "tokenizer.json"))
    folder = cache.snapshot("nyu-mll/glue", "dataset")
    configs = []
    for task, found in glue_datasets().items():
        places = []
        for number, (split, rows) in enumerate(
            zip(found.splits.values(), (TRAIN_ROWS, TEST_ROWS), strict=True)
        ):
            path = f"{task}/{split}-00000-of-00001.parquet"
            (folder / task).mkdir(exist_ok=True)
            glue_rows(found, rows, number).to_parquet(folder / path)
            places.append(f"  - split: {split}\n    path: {task}/{split}-*\n")
        configs.append(f"- config_name: {task}\n  data_files:\n{''.join(places)}")
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(configs)}---\n# GLUE\n")


def put_model(cache: HubCache, repo: str, state: Mapping[str, Tensor]) -> Path:
    """Weights and configuration as transformers saves them."""
    folder = cache.snapshot(repo)
    save_weights(folder / "model.safetensors", state, for_transformers=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    return folder


def glue_rows(dataset: HubDataset, rows: int, seed: int) -> Dataset:
    """Rows with GLUE's columns and types; one label after the other."""
    generator = torch.Generator().manual_seed(seed)
    table: dict[str, list[object]] = {"idx": list(range(rows))}
    for column in dataset.text_columns:
        picked = torch.randint(len(_WORDS), (rows, 6), generator=generator)
        table[column] = [
            " ".join(_WORDS[w] for w in row) + f" {i}." for i, row in enumerate(picked)
        ]
    types: dict[str, object] = {c: Value("string") for c in dataset.text_columns}
    if dataset.class_names is None:
        table["label"] = [round(5 * i / rows, 3) for i in range(rows)]
        types["label"] = Value("float32")
    else:
        table["label"] = [i % len(dataset.class_names) for i in range(rows)]
        types["label"] = ClassLabel(names=list(dataset.class_names))
    features = Features({**types, "idx": Value("int32")})
    datasets.disable_progress_bars()
    return Dataset.from_dict({name: table[name] for name in features}, features=features)


def tokenizer() -> Tokenizer:
    """One with T5's special tokens, that ends every text with `</s>`."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106 - no password
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=[chr(c) for c in range(33, 127)],
        show_progress=False,
    )
    prompts = [p.prompt for p in tiny_suite(lora=False).prompts.values()]
    made.train_from_iterator([_TEXT, *prompts], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return made

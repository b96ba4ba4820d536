"""The embedded suite of texts: T5 at toy size on eight tasks in a controlled English.

The tasks have the shapes of GLUE's eight text-to-text tasks; their texts are generated
(apgd.data.language), nothing is downloaded. Base model and tokenizer were made by
experiments/pretrain_mini_text.py. There are two suites: experts fine-tuned in full, and with LoRA.
"""

import hashlib
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from apgd.data import Metric, Split, Task, TextExamples
from apgd.data.language import FAMILIES, draw
from apgd.errors import InputError
from apgd.flops import t5_flops
from apgd.models.mini_t5 import mini_t5, mini_t5_config
from apgd.models.t5 import t5_tokenizer
from apgd.models.text_to_text import TextToTextHead
from apgd.suites._assets import asset
from apgd.suites._settings import LANGUAGE, SHORT_ADAPTATION
from apgd.suites._suite import FinetuneSettings, LoraSettings, Suite

_SEED = 20250504
_SIZES = {Split.TRAIN: 6000, Split.VALIDATION: 400, Split.TEST: 2400}
_LONGEST_PROMPT = 64  # none is cut off
_LONGEST_ANSWER = 2  # a word and the end token
_FAMILIES = {family.name: family for family in FAMILIES}


def _task(name: str, title: str, stands_for: str, metric: Metric = Metric.ACCURACY) -> Task:
    labels = _FAMILIES[name].labels
    return Task(name=name, title=title, stands_for=stands_for, class_names=labels, metric=metric)


_TASKS = (
    _task("acceptability", "Acceptability", "cola"),
    _task("entailment", "Entailment", "mnli"),
    _task("paraphrase", "Paraphrase", "mrpc"),
    _task("answer", "Answerability", "qnli"),
    _task("questions", "Same question", "qqp"),
    _task("roles", "Who did it", "rte"),
    _task("sentiment", "Sentiment", "sst2"),
    _task("similarity", "Similarity", "stsb", Metric.SPEARMAN),
)

PINNED: Mapping[tuple[str, Split], str] = MappingProxyType(
    {
        ("acceptability", Split.TRAIN): (
            "dd0717977221dd8456e396e33c288902e4498c47b1d6a963be4bbb9e20de727e"
        ),
        ("acceptability", Split.VALIDATION): (
            "80fb4212610d63973d1e21f4086f8dc1388e90e1f9d78f0776d706bb79418e23"
        ),
        ("acceptability", Split.TEST): (
            "fb09c196b6960080f4efd024a929d6e193ccb1495cbb31ff28e6c4a9713ac402"
        ),
        ("entailment", Split.TRAIN): (
            "d686ee199fdc33f559ad2c6275cdbd0d2f54768521927b995abeaaf6ee63472a"
        ),
        ("entailment", Split.VALIDATION): (
            "7fe8afba6abf93eab81239290283a453b296cb2875134db0b685923725301a45"
        ),
        ("entailment", Split.TEST): (
            "7a6c4699366d8cccff9935ea9ee4419c5717ada13fe7f91a0c7da285bc63a7ed"
        ),
        ("paraphrase", Split.TRAIN): (
            "33c4762797e1c41b5042118030fb281ccd05989b1be47cda607964631a34f66a"
        ),
        ("paraphrase", Split.VALIDATION): (
            "40ae80dc1eea680a25dcac1c16f8e5400a7c2d5e944d3a78c38ad149a692980b"
        ),
        ("paraphrase", Split.TEST): (
            "847cfc2c49c4b045a3669354ee74aa9af3b931df51190da2afb4629ac61bf763"
        ),
        ("answer", Split.TRAIN): (
            "6c71969df7603a37e80d0e2ee78137e32acfeb205e360d47221cc2b8f6e70f6a"
        ),
        ("answer", Split.VALIDATION): (
            "b421d233bef02b0d9206a08d18c00272ff2e8c215911ff8855e8565b2d352a83"
        ),
        ("answer", Split.TEST): (
            "552e2925dc52c914b9e03d2b32e84af062576e206a5f565025da499a60fccd30"
        ),
        ("questions", Split.TRAIN): (
            "3670709a052e1e0b6861944a78d44354a5d9bcec7e989b7728e59f50c296d370"
        ),
        ("questions", Split.VALIDATION): (
            "a4bec74ca00229b957f2d4aab91cf53df3dd32341c4f4c966f9ea855cfa46eff"
        ),
        ("questions", Split.TEST): (
            "f9f7e49372a64439eedc4ab05aa459d5c0df883183fc5bfd227e685c97aa5807"
        ),
        ("roles", Split.TRAIN): (
            "40708c64473637bca5dab7ee934ab7bf338460360e772166766374fccf58fc88"
        ),
        ("roles", Split.VALIDATION): (
            "306643b260174ee5ddfcf7d9bb1e06b583c964e57917920247a059607b16b1fc"
        ),
        ("roles", Split.TEST): ("45cb7401eaa74251d5853555c121962130d1a336a531a971b0d91400aa0d9a61"),
        ("sentiment", Split.TRAIN): (
            "475ccac84b716b98761589aa30d0fdd5611938767d4372663126b185b6189db8"
        ),
        ("sentiment", Split.VALIDATION): (
            "87423861dc408767994797516e29b83ae2216638a99ea6287fcc8ce5a68afb84"
        ),
        ("sentiment", Split.TEST): (
            "6a8af69e96ae088c603a429bfffa90410659a8c3973e98fec3e82bfe0aecd210"
        ),
        ("similarity", Split.TRAIN): (
            "9712f8ecd064d4e28b8ef77364165bbdae7b851b8b7a5439c59cbae8c3c8d72c"
        ),
        ("similarity", Split.VALIDATION): (
            "5b040983e997606696a36dc452943d2be5aa8ba5807669cfa2e575f38dbed6d1"
        ),
        ("similarity", Split.TEST): (
            "794b869bddb5efb1872fa76493db947b92b868efc0073c906d9fa6ebb627767f"
        ),
    }
)
"""`TextExamples.sha256` of every split, by task and split."""


@cache
def generate(task: str, split: Split) -> TextExamples:
    """The examples of a task's split as they are drawn now, whatever is pinned (under a second)."""
    key = hashlib.sha256(f"{task}/{split}".encode()).digest()
    rng = np.random.default_rng([_SEED, int.from_bytes(key[:8], "big")])
    return draw(_FAMILIES[task], split, _SIZES[split], rng)


class MiniText(Suite):
    """See the module.

    Args:
        name: identifier on the command line.
        title: one line for people.
        published_suite: the paper's suite for which this one stands.
        finetune: how experts are fine-tuned.
    """

    tasks = _TASKS

    def __init__(
        self, name: str, title: str, published_suite: str, finetune: FinetuneSettings
    ) -> None:
        self.name = name
        self.title = title
        self.published_suite = published_suite
        self.published = LANGUAGE
        self.shortened = SHORT_ADAPTATION
        self.finetune = finetune

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Texts to token numbers and back."""
        return t5_tokenizer(asset("mini_text_tokenizer.json"))

    def base_path(self) -> Path:
        """The base model's weights, in float32."""
        return asset("mini_text.safetensors")

    def build_model(self) -> nn.Module:
        """A fresh T5 with random weights."""
        model: nn.Module = mini_t5(len(self.tokenizer))
        return model

    def head(self, model: nn.Module, task: Task) -> TextToTextHead:  # noqa: ARG002 - no weights
        """A task's prompts and answers; nothing of it is made from the model."""
        return TextToTextHead(
            self.tokenizer,
            task.metric,
            longest_prompt=_LONGEST_PROMPT,
            longest_answer=_LONGEST_ANSWER,
        )

    def is_trained(self, name: str) -> bool:
        """Encoder and decoder learn; the embedding and the logits' matrix stay as they are."""
        return name.startswith(("encoder.", "decoder.")) and "embed_tokens" not in name

    def is_merged(self, name: str, tensor: Tensor) -> bool:
        """Whether a parameter is a linear layer's matrix in the blocks; with LoRA, a target."""
        linear = ".block." in name and tensor.ndim == 2 and "relative_attention_bias" not in name
        lora = self.finetune.lora
        return linear and (lora is None or name.split(".")[-2] in lora.targets)

    def examples(self, task: str, split: Split) -> TextExamples:
        """The examples of a task's split.

        Raises:
            InputError: for an unknown task, or where other texts are drawn than were pinned.
        """
        pinned = PINNED[self.task(task).name, split]
        examples = generate(task, split)
        if examples.sha256 != pinned:
            raise InputError(
                f"the texts of task {task}, split {split} must have the hash {pinned[:12]} that is "
                f"pinned, but got {examples.sha256[:12]}; they depend on the installed "
                f"numpy {np.__version__}"
            )
        return examples

    def example_count(self, task: str, split: Split) -> int:  # noqa: ARG002 - all are alike
        """How many examples are drawn."""
        return _SIZES[split]

    def forward_flops(self) -> float:
        """Of the longest prompt and answer."""
        config = mini_t5_config(len(self.tokenizer))
        return t5_flops(config, prompt_tokens=_LONGEST_PROMPT, answer_tokens=_LONGEST_ANSWER)

    def has_examples(self, task: str, split: Split) -> bool:  # noqa: ARG002 - all are alike
        """Always: texts are drawn in under a second."""
        return self.task(task) in self.tasks


_FULL = FinetuneSettings(steps=400, batch_size=32, learning_rate=5e-4, weight_decay=0.0)

MINI_TEXT = MiniText(
    "mini_text", "Toy T5 on eight tasks in a controlled English", "flan_t5_base_glue", _FULL
)
MINI_TEXT_LORA = MiniText(
    "mini_text_lora",
    "Toy T5 on eight tasks in a controlled English, LoRA experts of rank 16",
    "flan_t5_base_glue_lora",
    FinetuneSettings(
        steps=400,
        batch_size=32,
        learning_rate=1e-3,
        weight_decay=0.0,
        lora=LoraSettings(rank=16, alpha=32.0, targets=("q", "k", "v", "o", "wi_0", "wi_1", "wo")),
    ),
)

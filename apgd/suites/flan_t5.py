"""Flan-T5 on eight GLUE tasks as text to text: fine-tuned in full, or with LoRA of rank 16.

As the literature does, GLUE's public validation split is our TEST, and a part of its train split
our VALIDATION. Hyper-parameters are the paper's (constant learning rate 4e-5, batches of 16, 2,000
steps); it states neither weight decay nor LoRA's alpha, for which common values stand here.

Full experts are trained in all parameters, and merged in all matrices of linear layers in the
blocks of encoder and decoder; embedding, logits, norms and position biases stay the base's. LoRA
experts change the projections to queries and values alone, and these are merged.

Prompts are ours (see apgd.data.prompts), so zero-shot figures may differ from published ones, and
published experts were trained on another wording. A suite with that wording is one more file here:
a `FlanT5Suite` with a name of its own and `prompts=read_prompts(...)`.
"""

import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config

from apgd.checkpoints import load_weights, open_weights, save_weights
from apgd.data import Metric, Split, Task, TextExamples
from apgd.data.examples import text_examples
from apgd.data.hub import HubDataset
from apgd.data.prepared import is_prepared, prepare
from apgd.data.prompts import GLUE, Prompt, read_prompts
from apgd.flops import t5_flops
from apgd.hub import cached_weights, hub_file, hub_weights
from apgd.lora import ADAPTER_FILES, is_adapter
from apgd.models.activations import t5_activations
from apgd.models.t5 import build_t5, canonical_t5, t5_config, t5_tokenizer
from apgd.models.text_to_text import TextToTextHead
from apgd.published import Family, task_title
from apgd.suites._settings import LANGUAGE
from apgd.suites._suite import FinetuneSettings, LoraSettings, Suite
from apgd.suites.facts import glue_datasets

_TOKENIZER = ("google/flan-t5-base", "tokenizer.json")  # of all sizes
_BLOCKS = ("encoder.block.", "decoder.block.")
_BIAS = "relative_attention_bias"
_LORA = LoraSettings(rank=16, alpha=32, targets=("q", "v"))
_LONGEST_PROMPT = 512
_LONGEST_ANSWER = 10
_VALIDATION = 1000
_DATA_BYTES = 120_000_000


BASE = t5_config(vocab_size=32128, width=768, mlp_width=2048, layers=12, heads=12, head_width=64)
LARGE = t5_config(vocab_size=32128, width=1024, mlp_width=2816, layers=24, heads=16, head_width=64)


class FlanT5Suite(Suite):
    """Eight GLUE tasks, answered in words.

    Args:
        name: identifier.
        size: `base` or `large`, as in the names of repositories on the hub.
        config: its architecture.
        lora: fine-tune adapters, instead of all parameters.
        prompts: how rows become questions and answers, by task; ours where None.
        datasets: where the rows of every task come from.
    """

    published = LANGUAGE

    def __init__(
        self,
        name: str,
        size: str,
        config: T5Config,
        *,
        lora: bool,
        prompts: Mapping[str, Prompt] | None = None,
        datasets: Mapping[str, HubDataset] = glue_datasets(),
    ) -> None:
        self.name = name
        self.title = f"Flan-T5-{size} on 8 GLUE tasks, " + ("LoRA of rank 16" if lora else "full")
        columns = {task: dataset.text_columns for task, dataset in datasets.items()}
        self.prompts = prompts or read_prompts(GLUE, columns)
        """How rows become questions and answers, by task."""
        self._datasets = datasets
        self.tasks = tuple(_task(task, self.prompts[task]) for task in datasets)
        self.config = config
        self.repository = f"google/flan-t5-{size}"
        large = size == "large"
        self.finetune = FinetuneSettings(
            steps=2000,
            batch_size=16,
            learning_rate=4e-5,
            weight_decay=0.01,
            schedule="constant",
            warmup=0.0,
            lora=_LORA if lora else None,
            gradient_checkpointing=large,
            checkpoint_every=100 if lora else 500,  # the states of full fine-tuning take gigabytes
        )
        self.published_suite = self.name
        # The only family there is; a comparison judges merges only where experts agree with it.
        self.family = Family.TRANSFORMERS
        ending = "_lora-16" if lora else ""
        self.published_experts = MappingProxyType(
            {}
            if large and not lora
            else {t.name: f"tanganke/flan-t5-{size}_glue-{t.name}{ending}" for t in self.tasks}
        )
        self.download_bytes = (3_133_000_000 if large else 990_000_000) + _DATA_BYTES

    def base_path(self) -> Path:
        """The pretrained weights, in float32."""
        return canonical_t5(hub_weights(self.repository), f"the base {self.repository}")

    def build_model(self) -> nn.Module:
        """A T5 with random weights, embedding and logits not tied."""
        model: nn.Module = build_t5(self.config)
        return model

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """T5's tokenizer, from the hub."""
        return t5_tokenizer(hub_file(*_TOKENIZER))

    def head(self, model: nn.Module, task: Task) -> TextToTextHead:  # noqa: ARG002 - one for all
        """Greedy answers of at most ten tokens, judged by the task's metric."""
        return TextToTextHead(
            self.tokenizer,
            task.metric,
            longest_prompt=_LONGEST_PROMPT,
            longest_answer=_LONGEST_ANSWER,
        )

    def is_trained(self, name: str) -> bool:  # noqa: ARG002 - all of them
        """Every parameter may change; LoRA changes only what its settings name."""
        return True

    def is_merged(self, name: str, tensor: Tensor) -> bool:
        """Whether a parameter is a linear layer's matrix in the blocks; with LoRA, a target."""
        linear = name.startswith(_BLOCKS) and tensor.ndim == 2 and _BIAS not in name
        lora = self.finetune.lora
        return linear and (lora is None or name.split(".")[-2] in lora.targets)

    def datasets(self) -> Mapping[str, HubDataset]:
        """The data set of every task, by the task's name."""
        return self._datasets

    def examples(self, task: str, split: Split) -> TextExamples:
        """Questions and answers of a task's split, downloaded where they are not there yet.

        VALIDATION is at most 1,000 rows of those that are held back from the train split.

        Raises:
            InputError: for an unknown task, or where the data cannot be had.
        """
        dataset = self._datasets[self.task(task).name]
        prepare(dataset)
        rows = text_examples(dataset, split)
        found = self.prompts[task].examples(rows, dataset.text_columns)
        return found.first(_VALIDATION) if split is Split.VALIDATION else found

    def has_examples(self, task: str, split: Split) -> bool:  # noqa: ARG002 - all at once
        """Whether the task's data set is on this machine."""
        return is_prepared(self._datasets[self.task(task).name])

    def activation_bytes(self, *, recomputed: bool) -> int:
        """What fine-tuning keeps of the longest prompt and answer."""
        return t5_activations(
            self.config,
            prompt_tokens=_LONGEST_PROMPT,
            answer_tokens=_LONGEST_ANSWER,
            recomputed=recomputed,
        )

    def forward_flops(self) -> float:
        """Of the longest prompt and answer."""
        return t5_flops(self.config, prompt_tokens=_LONGEST_PROMPT, answer_tokens=_LONGEST_ANSWER)

    def has_base(self) -> bool:
        """Whether the pretrained weights were fetched."""
        return cached_weights(self.repository) is not None

    def example_count(self, task: str, split: Split) -> int | None:
        """As far as known; of VALIDATION at most 1,000."""
        count = super().example_count(task, split)
        if count is None or split is not Split.VALIDATION:
            return count
        return min(count, _VALIDATION)

    def published_expert(self, task: str) -> Path:
        """The hub's expert of a task: a file of weights, or the folder of an adapter."""
        repository = self.published_experts.get(self.task(task).name)
        if repository is None:
            return super().published_expert(task)
        if self.finetune.lora is None:
            return hub_weights(repository)
        config, _factors = (hub_file(repository, name) for name in ADAPTER_FILES)
        return config.parent

    def import_expert(self, source: Path, folder: Path) -> Path:
        """A whole T5 under any of its names, or an adapter, which stays one.

        Raises:
            InputError: where it is not a T5 of this architecture, or no plain LoRA.
        """
        label = f"the expert {source}"
        base = open_weights(self.base_path(), "the base")
        if is_adapter(source):
            open_weights(source, label, base)  # which checks it
            made = folder / "adapter"
            made.mkdir(exist_ok=True)
            for name in ADAPTER_FILES:
                shutil.copyfile(source / name, made / name)
            return made
        state = load_weights(canonical_t5(source, label), label)
        made = folder / "weights.safetensors"
        save_weights(made, state, {"suite": self.stored_as})
        return made


def _task(name: str, prompt: Prompt) -> Task:
    return Task(
        name=name,
        title=task_title(name),
        stands_for=name,
        class_names=prompt.answers,
        metric=Metric.ACCURACY if prompt.answers else Metric.SPEARMAN,
    )


FLAN_T5_SUITES: tuple[FlanT5Suite, ...] = (
    FlanT5Suite("flan_t5_base_glue", "base", BASE, lora=False),
    FlanT5Suite("flan_t5_base_glue_lora", "base", BASE, lora=True),
    FlanT5Suite("flan_t5_large_glue", "large", LARGE, lora=False),
    FlanT5Suite("flan_t5_large_glue_lora", "large", LARGE, lora=True),
)

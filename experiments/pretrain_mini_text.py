"""Make the base checkpoint and the tokenizer of the suite `mini_text`, from scratch.

    python -m experiments.pretrain_mini_text --help

The base learns the easy texts of every task, with half of the words and without the rules that make
a task hard, and three things that teach it to read: to fill a blank, to tell what differs between
two sentences, and to say who did something to whom, and where. So it is clearly above chance and
clearly below an expert. Settings were chosen on the validation splits.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration

from apgd.checkpoints import save_weights
from apgd.data.language import FAMILIES, easy_text
from apgd.data.language.acceptability import ACCEPTABILITY, AGREEING, agreement
from apgd.data.language.grammar import (
    Event,
    active,
    draw_apart,
    draw_event,
    filled,
    retold,
    with_other,
)
from apgd.data.language.lexicon import WHOLE, chance, pick
from apgd.data.language.questions import ASKED, asked, asked_otherwise
from apgd.data.language.roles import ROLES
from apgd.errors import InputError
from apgd.files import atomic_path, sha256_file
from apgd.models.mini_t5 import mini_t5
from apgd.models.t5 import t5_tokenizer

Pair = tuple[str, str]
"""What the model reads, and what it must answer."""

_FAMILY_TEXTS, _BLANKS, _DIFFERENCES, _QUESTIONS = 5, 17, 8, 35  # of 110; the first for each family
_TOKENIZER_TEXTS = 20_000
_EMBEDDING = 0.3
_END, _UNKNOWN, _BLANK = "</s>", "<unk>", "<extra_id_0>"
_SPECIAL_TOKENS = ("<pad>", _END, _UNKNOWN, _BLANK)  # their numbers are their places


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How the base is trained."""

    out: Path
    """Where to write the checkpoint (safetensors)."""
    tokenizer_out: Path
    """Where to write the tokenizer (JSON)."""
    steps: int = 600
    """Optimizer steps."""
    batch_size: int = 110
    """Texts per step."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW; a cosine to zero follows the warm-up."""
    warmup: int = 30
    """Steps over which the learning rate rises."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay of matrices."""
    vocabulary: int = 672
    """Most tokens that the tokenizer may have; with some 600 every word is one."""
    seed: int = 7
    """Decides texts and weights."""
    threads: int = 1
    """Processor threads."""
    report_every: int = 50
    """Steps between reports of the loss."""

    def __post_init__(self) -> None:
        for field in ("steps", "batch_size", "learning_rate", "threads", "report_every"):
            if getattr(self, field) <= 0:
                raise InputError(f"{field} must be positive, but got {getattr(self, field)}")
        if not 0 <= self.warmup < self.steps:
            raise InputError(f"warmup must lie in [0, steps), but got {self.warmup}")


def main(pretraining: Pretraining) -> None:
    """Train tokenizer and base, write both."""
    torch.manual_seed(pretraining.seed)
    torch.set_num_threads(pretraining.threads)
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    rng = np.random.default_rng([pretraining.seed, 0])
    words = [" ".join(pair) for _, pair in zip(range(_TOKENIZER_TEXTS), pairs(rng), strict=False)]
    with atomic_path(pretraining.tokenizer_out) as path:
        train_tokenizer(words, pretraining.vocabulary).save(str(path))
    tokenizer = t5_tokenizer(pretraining.tokenizer_out)
    model = mini_t5(len(tokenizer))
    prepare_heads(model)

    def report(step: int, loss: float) -> None:
        seconds = time.perf_counter() - started
        print(f"step {step:5d}  {seconds:5.0f} s  loss {loss:.3f}", flush=True)

    train(model, tokenizer, pretraining, report)
    save_weights(pretraining.out, model.state_dict())
    size, sha256 = pretraining.out.stat().st_size, sha256_file(pretraining.out)
    print(f"wrote {pretraining.out}: {size / 2**20:.2f} MiB, SHA-256 {sha256}")


def train_tokenizer(texts: list[str], vocabulary: int) -> Tokenizer:
    """Byte pairs within words, learned from the texts; every encoded text gets an end token."""
    tokenizer = Tokenizer(models.BPE(unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=list(_SPECIAL_TOKENS), show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {_END}", special_tokens=[(_END, _SPECIAL_TOKENS.index(_END))]
    )
    return tokenizer


@torch.no_grad()
def prepare_heads(model: T5ForConditionalGeneration) -> None:
    """Start where learning to compare words is short.

    Of the encoder's four heads one starts out attending to the same word elsewhere: its keys are
    its queries, and its own position is far away. Where the word is nowhere else, it attends to the
    end token: the last coordinate, which all other tokens have in common, is large there. Two more
    heads start with the word before and the word after. What layers add starts small, so that words
    are not drowned before they are compared. From plain random weights nothing of the kind was
    learned in this time.
    """
    words = model.shared.weight.normal_(std=_EMBEDDING)
    words[:, -1] = _EMBEDDING
    end = _SPECIAL_TOKENS.index(_END)
    words[end] = 0.0
    words[end, -1] = 8 * _EMBEDDING
    width = model.config.d_kv
    for block in model.encoder.block:
        attention, feed_forward = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
        attention.o.weight.mul_(0.3)
        feed_forward.wo.weight.mul_(0.3)
        same = torch.randn(width, model.config.d_model) * 0.088
        same[:, -1] = 0.0
        same[-1] = 0.0
        same[-1, -1] = 1.38
        attention.q.weight[:width] = same
        attention.k.weight[:width] = same
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    to_the_right = model.config.relative_attention_num_buckets // 2
    bias[0, 0] = -25.0  # its own position
    bias[1, 1] = 4.0
    bias[to_the_right + 1, 2] = 4.0


def pairs(rng: np.random.Generator) -> Iterator[Pair]:
    """Texts to learn from, without end: all sources in turn."""
    while True:
        for family in FAMILIES:
            for _ in range(_FAMILY_TEXTS * (2 if family in (ACCEPTABILITY, ROLES) else 1)):
                label = pick(rng, family.labels)
                yield easy_text(family, label, rng), label
        for source, count in ((blank, _BLANKS), (difference, _DIFFERENCES), (question, _QUESTIONS)):
            for _ in range(count):
                yield source(rng)


def blank(rng: np.random.Generator) -> Pair:
    """A text with one word blanked, and that word."""
    tokens = _plain(rng).split()
    agreeing = [i for i, token in enumerate(tokens) if token in AGREEING]
    if agreeing and "near" in tokens and chance(rng, 0.6):
        at = agreeing[0]
    else:
        at = int(rng.integers(len(tokens)))
    answer, tokens[at] = tokens[at], _BLANK
    return f"fill : {' '.join(tokens)}", answer


def _plain(rng: np.random.Generator) -> str:
    """A right sentence, or a question, in any form and of any words."""
    event = draw_event(rng, WHOLE)
    kind = int(rng.integers(5))
    if kind == 0:
        return agreement(rng, WHOLE, right=True)
    if kind == 1:
        ask = asked if chance(rng, 0.5) else asked_otherwise
        return ask(event, pick(rng, ASKED))
    if kind == 2:
        opinion = pick(rng, WHOLE.praise + WHOLE.blame)
        return f"the {pick(rng, WHOLE.works)} was {opinion} {pick(rng, WHOLE.times)}"
    if kind == 3:
        quality = pick(rng, pick(rng, WHOLE.qualities))
        return active(event).replace("the", f"the {quality}", 1)
    return _told(rng, event)


def difference(rng: np.random.Generator) -> Pair:
    """Two sentences, and the word of each that the other does not have."""
    first = draw_event(rng, WHOLE)
    slot = pick(rng, [slot for slot in filled(first) if slot != "time"])
    second = with_other(rng, WHOLE, first, slot)
    return (
        f"differs : {active(first)} | {active(second)}",
        f"{getattr(first, slot)} {getattr(second, slot)}",
    )


def question(rng: np.random.Generator) -> Pair:
    """A question about one or two events told in any form, and its answer in a word."""
    meant = draw_event(rng, WHOLE, place=0.7)
    told = _told(rng, meant)
    if chance(rng, 0.3):
        other = draw_apart(rng, WHOLE, meant)
        told = " and ".join([told, _told(rng, other)][:: pick(rng, (1, -1))])
    slot = pick(rng, [slot for slot in ASKED if slot in filled(meant) and slot != "time"])
    bare = replace(meant, place=None, time=None)
    return f"ask : {asked(bare, slot)} | {told}", str(getattr(meant, slot))


def _told(rng: np.random.Generator, event: Event) -> str:
    return active(event) if chance(rng, 0.5) else retold(rng, event)


def train(
    model: T5ForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    pretraining: Pretraining,
    report: Callable[[int, float], None],
) -> None:
    """Teach the model in place to answer texts that are drawn as it goes."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": pretraining.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=pretraining.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate(step, pretraining.warmup, pretraining.steps)
    )
    source = pairs(np.random.default_rng([pretraining.seed, 1]))
    model.train()
    for step in range(1, pretraining.steps + 1):
        texts, answers = zip(*(next(source) for _ in range(pretraining.batch_size)), strict=True)
        loss = model(**batch(tokenizer, texts, answers)).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % pretraining.report_every == 0 or step == pretraining.steps:
            report(step, loss.item())
    model.eval()


def batch(
    tokenizer: PreTrainedTokenizerFast, texts: tuple[str, ...], answers: tuple[str, ...]
) -> dict[str, Tensor]:
    """Token numbers, (texts, longest): what is read, its mask, and the answers, -100 behind."""
    read = tokenizer(list(texts), padding=True, return_tensors="pt")
    answer = tokenizer(list(answers), padding=True, return_tensors="pt")
    labels = answer.input_ids.masked_fill(answer.attention_mask == 0, -100)
    return {
        "input_ids": read.input_ids,
        "attention_mask": read.attention_mask,
        "labels": labels,
    }


def _rate(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


if __name__ == "__main__":
    try:
        main(tyro.cli(Pretraining, description=__doc__))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

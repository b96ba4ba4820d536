"""The text-to-text head: prompts are answered in words (Raffel et al., 2020)."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from apgd.data import Metric, TextExamples, UnlabelledTexts
from apgd.heads import Head, Voice, mean_entropy
from apgd.metrics import spearman_parts

_CPU_BATCH = 128
_GPU_BATCH = 256
_TOKENS = 2**15  # of all prompts of a batch: attention over long ones takes gigabytes
_IGNORED = -100  # the label of padding, which no loss is taken of
_NUMBER = r"[+-]?\d+(?:\.\d+)?"


class TextToTextHead(Head):
    """One task of an encoder-decoder: prompt in, answer out, decoded greedily.

    Args:
        tokenizer: texts to token numbers and back.
        metric: how answers are judged: whether the decoded text is exactly the true one, or by the
            order of the numbers in it.
        longest_prompt: tokens after which a prompt is cut off.
        longest_answer: tokens of an answer, its end included.
        device: where the model is.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        metric: Metric,
        *,
        longest_prompt: int,
        longest_answer: int,
        device: str | torch.device = "cpu",
    ) -> None:
        self._tokenizer = tokenizer
        self._metric = metric
        self._longest_prompt = longest_prompt
        self._longest_answer = longest_answer
        self._device = torch.device(device)
        self._tokens: dict[str, list[list[int]]] = {}

    def to(self, device: str | torch.device) -> Self:
        """The same head for a model on another device."""
        return type(self)(
            self._tokenizer,
            self._metric,
            longest_prompt=self._longest_prompt,
            longest_answer=self._longest_answer,
            device=device,
        )

    def loss(self, model: nn.Module, examples: TextExamples, rows: np.ndarray) -> Tensor:
        """Cross entropy of the answers' tokens: a mean over each answer, then over examples."""
        scores, labels, told = self._scores(model, examples, rows)
        # Flat, because on a GPU the loss of more than two axes has no deterministic form.
        losses = nn.functional.cross_entropy(
            scores.float().flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none"
        ).view_as(labels)  # (batch, tokens)
        return (losses.sum(dim=1) / told.sum(dim=1)).mean()

    def log_likelihoods(self, model: nn.Module, examples: TextExamples, row: int) -> Tensor:
        """Log-probabilities of the vocabulary, (tokens of the true answer, vocabulary)."""
        scores, _labels, _told = self._scores(model, examples, np.array([row]))
        return scores[0].float().log_softmax(dim=1)

    def _scores(
        self, model: nn.Module, examples: TextExamples, rows: np.ndarray
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (batch, tokens, vocabulary) of the true answers, these as labels, their mask."""
        # Only these rows: a training sees a small part of the largest train splits.
        prompts, mask = self._batch(
            self._encoded([examples.inputs[row] for row in rows], self._longest_prompt)
        )
        answers, told = self._batch(
            self._encoded([examples.targets[row] for row in rows], self._longest_answer)
        )
        labels = answers.masked_fill(told == 0, _IGNORED)
        scores = model(
            input_ids=prompts, attention_mask=mask, labels=labels, use_cache=False
        ).logits
        return scores, labels, told

    def entropy(
        self, model: Any, examples: TextExamples | UnlabelledTexts, rows: np.ndarray
    ) -> Tensor:
        """Mean entropy of the first token of the answer, over the whole vocabulary."""
        prompts, mask = self._batch(
            self._encoded([examples.inputs[row] for row in rows], self._longest_prompt)
        )
        start = prompts.new_full((len(rows), 1), model.config.decoder_start_token_id)
        scores = model(
            input_ids=prompts, attention_mask=mask, decoder_input_ids=start, use_cache=False
        ).logits  # (batch, 1, vocabulary)
        return mean_entropy(scores[:, 0])

    def answers(self, model: nn.Module, examples: TextExamples) -> np.ndarray:
        """By metric: whether each answer is exactly right, or parts of the rank correlation."""
        return self._judged(self.decoded(model, examples), examples)

    def ensemble_answers(self, voices: Sequence[Voice], examples: TextExamples) -> np.ndarray:
        """As `answers`; every token is the one with the largest mean of the models' softmax.

        So an ensemble answers freely, as a single model does, whatever the metric.
        """

        def answer(prompts: Tensor, mask: Tensor) -> Tensor:
            return self._together(voices, prompts, mask)

        return self._judged(self._said(answer, examples), examples)

    def _judged(self, said: Sequence[str], examples: TextExamples) -> np.ndarray:
        if self._metric is Metric.SPEARMAN:
            return spearman_parts(
                np.array([_as_number(text) for text in said]),
                np.array([float(text) for text in examples.targets]),
            )
        return np.array([a == b.strip() for a, b in zip(said, examples.targets, strict=True)])

    def decoded(self, model: Any, examples: TextExamples) -> list[str]:
        """What the model answers to each prompt, without blanks around it."""

        def answer(prompts: Tensor, mask: Tensor) -> Tensor:
            tokens: Tensor = model.generate(
                input_ids=prompts,
                attention_mask=mask,
                max_new_tokens=self._longest_answer,
                do_sample=False,
                num_beams=1,
            )
            return tokens

        return self._said(answer, examples)

    def _said(
        self, answer: Callable[[Tensor, Tensor], Tensor], examples: TextExamples
    ) -> list[str]:
        """The texts that `answer` makes of all prompts, given as token numbers and mask."""
        numbers = self._prompts(examples)
        # Prompts of like length together: the least padding.
        order = sorted(range(len(examples)), key=lambda k: len(numbers[k]))
        most = _CPU_BATCH if self._device.type == "cpu" else _GPU_BATCH
        said = [""] * len(examples)
        for part in batches([len(numbers[row]) for row in order], most, _TOKENS):
            rows = [order[place] for place in part]
            prompts, mask = self._batch([numbers[row] for row in rows])
            texts = self._tokenizer.batch_decode(answer(prompts, mask), skip_special_tokens=True)
            for row, text in zip(rows, texts, strict=True):
                said[row] = text.strip()
        return said

    def _together(self, voices: Sequence[Voice], prompts: Tensor, mask: Tensor) -> Tensor:
        """Token numbers of an ensemble's answers, int64 (rows, tokens), decoded greedily."""
        # A prompt is read once by each model; answers are a few tokens, so they are cheap.
        read = [_encode(voice(), prompts, mask) for voice in voices]
        config: Any = voices[0]().config
        end = self._tokenizer.eos_token_id
        said = torch.full_like(prompts[:, :1], config.decoder_start_token_id)
        going = torch.ones_like(said[:, 0], dtype=torch.bool)
        for _ in range(self._longest_answer):
            chances = torch.stack(
                [
                    _next_scores(voice(), states, mask, said).double().softmax(dim=-1)
                    for voice, states in zip(voices, read, strict=True)
                ]
            ).mean(dim=0)
            token = chances.argmax(dim=-1).masked_fill(~going, self._tokenizer.pad_token_id)
            said = torch.cat([said, token[:, None]], dim=1)
            going &= token != end
            if not going.any():
                break
        return said

    def _prompts(self, examples: TextExamples) -> list[list[int]]:
        """Token numbers of all prompts, made once per set of examples."""
        key = examples.sha256
        if key not in self._tokens:
            self._tokens[key] = self._encoded(examples.inputs, self._longest_prompt)
        return self._tokens[key]

    def _encoded(self, texts: Sequence[str], longest: int) -> list[list[int]]:
        """Token numbers of texts."""
        made = self._tokenizer(list(texts), truncation=True, max_length=longest)
        numbers: list[list[int]] = made["input_ids"]
        return numbers

    def _batch(self, numbers: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Token numbers and mask, both int64 (rows, longest of them)."""
        width = max(map(len, numbers))
        padding = self._tokenizer.pad_token_id
        batch = torch.full((len(numbers), width), padding, dtype=torch.int64, device="cpu")
        mask = torch.zeros_like(batch)
        for k, line in enumerate(numbers):
            batch[k, : len(line)] = torch.tensor(line)
            mask[k, : len(line)] = 1
        return batch.to(self._device), mask.to(self._device)


def batches(lengths: Sequence[int], most: int, tokens: int) -> Iterator[range]:
    """Consecutive prompts that are answered together.

    Args:
        lengths: tokens of each prompt, in ascending order.
        most: prompts of a batch.
        tokens: of all prompts of a batch, padding included; a longer prompt is alone.
    """
    start = 0
    for end, length in enumerate(lengths):
        if end > start and (end - start == most or (end + 1 - start) * length > tokens):
            yield range(start, end)
            start = end
    if start < len(lengths):
        yield range(start, len(lengths))


def _encode(model: Any, prompts: Tensor, mask: Tensor) -> Tensor:
    """What the encoder makes of prompts, (rows, tokens, width)."""
    states: Tensor = model.get_encoder()(input_ids=prompts, attention_mask=mask).last_hidden_state
    return states


def _next_scores(model: Any, states: Tensor, mask: Tensor, said: Tensor) -> Tensor:
    """Logits of the token that follows what was said, (rows, vocabulary)."""
    scores: Tensor = model(
        encoder_outputs=BaseModelOutput(last_hidden_state=states),
        attention_mask=mask,
        decoder_input_ids=said,
        use_cache=False,
    ).logits[:, -1]
    return scores


def _as_number(text: str) -> float:
    """The number that an answer is; 0 where it is none, as the literature does."""
    return float(text) if re.fullmatch(_NUMBER, text) else 0.0

"""transformers' T5 with a matrix of its own for the logits, as in Flan-T5 and T5 1.1.

In the state dict of every model made here the embedding, which encoder and decoder share, has one
name, `shared.weight`. Files of the hub may also hold it under the names of its copies, and a bias
that no version of the model uses; `canonical_t5` brings them to one form.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from apgd.checkpoints import InFiles, InMemory, Weights, save_weights
from apgd.data.cache import cache_root
from apgd.errors import InputError
from apgd.files import content_key
from apgd.sandbox import load_pickled
from apgd.source import source_hash

EMBEDDING = "shared.weight"
LOGITS = "lm_head.weight"
_CODE = ("apgd.models.t5", "apgd.pickled")
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
"""Names under which other versions and libraries store the embedding as well."""
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_LOGITS_STD = 0.05
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"


def t5_config(
    *,
    vocab_size: int,
    width: int,
    mlp_width: int,
    layers: int,
    heads: int,
    head_width: int,
    decoder_layers: int | None = None,
    dropout: float = 0.1,
) -> T5Config:
    """A T5 with gated GELU and a matrix of its own for the logits, as in version 1.1.

    Args:
        vocab_size: number of tokens; the first two pad and end a text.
        width: of the residual stream.
        mlp_width: of the hidden layer.
        layers: of the encoder.
        heads: of every attention.
        head_width: of a head.
        decoder_layers: as many as the encoder's, where None.
        dropout: share of the activations that are dropped in training.
    """
    options: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": width,
        "d_kv": head_width,
        "d_ff": mlp_width,
        "num_layers": layers,
        "num_decoder_layers": decoder_layers,
        "num_heads": heads,
        "dropout_rate": dropout,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
        "tie_word_embeddings": False,
    }
    return T5Config(**options)


def build_t5(config: T5Config) -> T5ForConditionalGeneration:
    """A T5 with random weights, its logits' matrix not tied to the embedding.

    transformers 5 ties the two whatever the configuration says, and a strict load of untied weights
    then overwrites one with the other.

    Args:
        config: see `t5_config`.

    Raises:
        ValueError: for a configuration of tied embeddings.
    """
    if config.scale_decoder_outputs:
        raise ValueError("the configuration of an untied T5 must say tie_word_embeddings=False")
    model = T5ForConditionalGeneration(config)
    untied = torch.empty_like(model.shared.weight)
    model.lm_head.weight = nn.Parameter(untied.normal_(std=_LOGITS_STD))
    model.register_state_dict_post_hook(_without_copies)  # type: ignore[no-untyped-call]
    model.register_load_state_dict_pre_hook(_with_copies)  # type: ignore[no-untyped-call]
    return model


def _without_copies(
    _module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: Any
) -> None:
    for name in COPIES:
        del state[prefix + name]


def _with_copies(_module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    if prefix + EMBEDDING in state:
        state.update({prefix + name: state[prefix + EMBEDDING] for name in COPIES})


def t5_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a `tokenizer.json`, which itself ends every text with `</s>`."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(path), pad_token=_PAD, eos_token=_END, unk_token=_UNKNOWN
    )


def canonical_t5(path: Path, label: str) -> Path:
    """Weights of an untied T5 under the names of `build_t5`'s state dict.

    Args:
        path: a safetensors file, a folder of shards, or a file of PyTorch, which is read without
            running it.
        label: what messages call it.

    Returns:
        `path` itself where it is safetensors under those names, as it usually is; otherwise a file
        in the cache that was written once.

    Raises:
        InputError: where the weights are not those of an untied T5.
    """
    if path.is_file() and path.suffix not in (".safetensors", ".json"):
        status = path.stat()
        made = _place([str(path.resolve()), status.st_size, status.st_mtime_ns])
        if not made.exists():
            _write(InMemory(f"{label} ({path})", load_pickled(path)[0]), made)
        return made
    weights = InFiles(label, path)
    if EMBEDDING in weights.names() and not {*COPIES, _UNUSED} & set(weights.names()):
        _check_untied(weights)
        return path
    made = _place([weights.identity()])
    if not made.exists():
        _write(weights, made)
    return made


def _place(key: list[object]) -> Path:
    return (
        cache_root()
        / "weights"
        / f"t5-{content_key([*key, source_hash(*_CODE)])}"
        / "model.safetensors"
    )


def _write(weights: Weights, path: Path) -> None:
    """Write weights with one name for the embedding, and without what no model uses."""
    _check_untied(weights)
    names = set(weights.names())
    embedding = weights[min(names & {EMBEDDING, *COPIES})]
    for name in names & {EMBEDDING, *COPIES}:
        if not torch.equal(weights[name], embedding):
            raise InputError(
                f"{name} of {weights.label} must be the one embedding that encoder and decoder "
                f"share, but it is another one"
            )
    kept = {n: weights[n] for n in sorted(names - {EMBEDDING, *COPIES, _UNUSED})}
    save_weights(path, kept | {EMBEDDING: embedding}, for_transformers=True)


def _check_untied(weights: Weights) -> None:
    names = set(weights.names())
    if not names & {EMBEDDING, *COPIES}:
        raise InputError(f"{weights.label} must be a T5, but holds no {EMBEDDING}")
    if LOGITS not in names:
        raise InputError(
            f"{weights.label} must hold {LOGITS}, as every Flan-T5 does, but it does not: the "
            f"original T5 ties it to the embedding, and is another architecture"
        )

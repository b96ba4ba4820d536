"""transformers' T5 at toy size."""

from transformers import T5Config, T5ForConditionalGeneration

from apgd.models.t5 import build_t5, t5_config


def mini_t5_config(vocab_size: int) -> T5Config:
    """Three encoder layers and one decoder layer of width 128, 4 heads and a gated GELU.

    Args:
        vocab_size: number of tokens; the first two pad and end a text.
    """
    return t5_config(
        vocab_size=vocab_size,
        width=128,
        mlp_width=256,
        layers=3,
        decoder_layers=1,
        heads=4,
        head_width=32,
        dropout=0.0,
    )


def mini_t5(vocab_size: int) -> T5ForConditionalGeneration:
    """A T5 of 0.9 M parameters as `mini_t5_config` has it, with random weights.

    It has no dropout, and like Flan-T5 a matrix of its own for the logits.
    """
    return build_t5(mini_t5_config(vocab_size))

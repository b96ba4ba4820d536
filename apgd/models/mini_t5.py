"""transformers' T5 at toy size."""

from transformers import T5ForConditionalGeneration

from apgd.models.t5 import build_t5, t5_config


def mini_t5(vocab_size: int) -> T5ForConditionalGeneration:
    """A T5 of 0.9 M parameters, with random weights.

    Three encoder layers and one decoder layer of width 128 with 4 heads and a gated GELU, without
    dropout; like Flan-T5 it has a matrix of its own for the logits.

    Args:
        vocab_size: number of tokens; the first two pad and end a text.
    """
    return build_t5(
        t5_config(
            vocab_size=vocab_size,
            width=128,
            mlp_width=256,
            layers=3,
            decoder_layers=1,
            heads=4,
            head_width=32,
            dropout=0.0,
        )
    )

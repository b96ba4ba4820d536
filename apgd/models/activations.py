"""What transformers keep for the backward pass, in bytes, under bfloat16 autocast.

The numbers are upper bounds for the layers of the installed transformers library, in bytes per
token and unit of width; tests compare them with what autograd keeps of models of real size.
"""

from transformers import T5Config

_FLOAT = 4
_SCORE = 12


def vit_activations(
    *, layers: int, width: int, mlp_width: int, tokens: int, recomputed: bool
) -> int:
    """Bytes per image that a vision transformer keeps for the backward pass.

    Attention keeps no scores, whose memory grows with the square of the tokens: torch's fused
    kernels compute them again.

    Args:
        layers: blocks.
        width: of the residual stream.
        mlp_width: of the hidden layer.
        tokens: patches and class token.
        recomputed: only the blocks' inputs are kept, and one block's activations at a time.
    """
    layer = tokens * (26 * width + 7 * mlp_width + 24)
    return _stack([layer] * layers, _FLOAT * tokens * width, recomputed)


def t5_activations(
    config: T5Config, *, prompt_tokens: int, answer_tokens: int, recomputed: bool
) -> int:
    """Bytes per example that a T5 keeps for the backward pass.

    Its attention has a learned bias, for which scores are kept (12 bytes for each).

    Args:
        config: the architecture.
        prompt_tokens: of the longest prompt.
        answer_tokens: of the longest answer.
        recomputed: only the blocks' inputs are kept, and one block's activations at a time.
    """
    width, mlp, heads = config.d_model, config.d_ff, config.num_heads
    inner = heads * config.d_kv
    layers = config.num_decoder_layers or config.num_layers
    t, a = prompt_tokens, answer_tokens
    encoder = t * (36 * width + 17 * mlp + 24 * inner) + _SCORE * heads * t * t
    decoder = a * (56 * width + 17 * mlp + 44 * inner) + t * (4 * width + 24 * inner)
    decoder += _SCORE * heads * (a * a + a * t)
    ends = (_SCORE + _FLOAT) * a * config.vocab_size + 10 * (t + a) * width
    bias = 2 * _FLOAT * heads * t * t
    every = [encoder] * config.num_layers + [decoder] * layers
    return _stack(every, _FLOAT * t * width, recomputed) + ends + bias


def _stack(layers: list[int], block_input: int, recomputed: bool) -> int:
    """Activations of all layers, and gradients at work in one of them."""
    if recomputed:
        return len(layers) * block_input + 2 * max(layers)
    return sum(layers) + max(layers)

"""Floating-point operations of one example's forward pass, counted from the matrix products.

A product of (m, k) and (k, n) is 2 m k n. Everything else (norms, activations, softmax) is a few
per cent of it. A backward pass is twice a forward pass.
"""

from transformers import T5Config


def vit_flops(
    *, layers: int, width: int, mlp_width: int, tokens: int, patch: int, projection: int
) -> float:
    """Of a vision transformer with a class token.

    Args:
        layers: blocks.
        width: of the residual stream.
        mlp_width: of the hidden layer.
        tokens: patches and class token.
        patch: side of a patch in pixels, of three colours.
        projection: width of the embedding.
    """
    block = tokens * (8 * width**2 + 4 * width * mlp_width) + 4 * tokens**2 * width
    patches = 2 * (tokens - 1) * 3 * patch**2 * width
    return float(layers * block + patches + 2 * width * projection)


def t5_flops(config: T5Config, *, prompt_tokens: int, answer_tokens: int) -> float:
    """Of a T5 with a gated hidden layer that reads a prompt and says an answer.

    Args:
        config: the architecture.
        prompt_tokens: of the prompt.
        answer_tokens: of the answer.
    """
    width, mlp = config.d_model, config.d_ff
    inner = config.num_heads * config.d_kv
    t, a = prompt_tokens, answer_tokens
    attention, hidden = 8 * width * inner, 6 * width * mlp
    encoder = t * (attention + hidden) + 4 * t * t * inner
    crossed = (a + t) * 4 * width * inner + 4 * a * t * inner
    decoder = a * (attention + hidden) + 4 * a * a * inner + crossed
    layers = config.num_decoder_layers or config.num_layers
    return float(config.num_layers * encoder + layers * decoder + 2 * a * width * config.vocab_size)

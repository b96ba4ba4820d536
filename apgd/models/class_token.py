"""CLIP's image embeddings, computed without what they do not depend on.

An embedding is made of the last block's class token alone. So of that block only this token needs a
query, an attention output and the MLP, and then keys and values of the other tokens are not needed
as such either. With y_t the normed tokens (rows), q the class token's query in one head, W_k and
W_v that head's matrices (d, width):

    q·(W_k y_t + b_k) = (q W_k)·y_t + q·b_k       the last term is equal for all t: softmax drops it
    Σ_t a_t (W_v y_t + b_v) = W_v (Σ_t a_t y_t) + b_v                           because Σ_t a_t = 1

All other blocks are the model's own, and all weights are read from its parameters, so gradients go
through. What watches a layer's inputs sees fewer of them than in the model's own forward pass, or
none: use that one there.
"""

from typing import Any, NamedTuple

import torch
from open_clip.model import CLIP
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer


class _LastBlock(NamedTuple):
    """A pre-norm block: x + attention(norm(x)), and on that x + mlp(norm(x))."""

    attention_norm: nn.Module
    query: Tensor  # (width, width)
    query_bias: Tensor  # (width,)
    key: Tensor  # (width, width)
    value: Tensor  # (width, width)
    value_bias: Tensor  # (width,)
    out: nn.Module
    heads: int
    mlp_norm: nn.Module
    mlp: nn.Module


def open_clip_embeddings(
    model: nn.Module,
    pixels: Tensor,  # (n, 3, h, w)
) -> Tensor | None:  # (n, projection)
    """What `visual` of a CLIP of open_clip makes of preprocessed images, up to rounding.

    None for a model in training, and for one that pools otherwise, or whose last block is unusual.
    """
    tower = model.visual if isinstance(model, CLIP) and not model.training else None
    if not isinstance(tower, VisionTransformer) or not _pools_class_token(tower):
        return None
    blocks = tower.transformer.resblocks
    block = _open_clip_block(blocks[-1]) if len(blocks) > 1 else None
    if block is None:
        return None
    before = tower.forward_intermediates(
        pixels,
        indices=[len(blocks) - 2],
        stop_early=True,
        intermediates_only=True,
        output_fmt="NLC",
        output_extra_tokens=True,
    )
    parts = before["image_intermediates_prefix"][0], before["image_intermediates"][0]
    embedded: Tensor = tower.ln_post(_class_token(block, torch.cat(parts, dim=1))) @ tower.proj
    return embedded


def transformers_embeddings(
    model: nn.Module,
    pixels: Tensor,  # (n, 3, h, w)
) -> Tensor | None:  # (n, projection)
    """`image_embeds` of a CLIPVisionModelWithProjection for preprocessed images, up to rounding.

    None for a model in training, for another one, and where its last block is unusual.
    """
    if not isinstance(model, CLIPVisionModelWithProjection) or model.training:
        return None
    tower = model.vision_model
    block = _transformers_block(tower.encoder.layers[-1])
    if block is None:
        return None
    hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    embedded: Tensor = model.visual_projection(tower.post_layernorm(_class_token(block, hidden)))
    return embedded


def _class_token(
    block: _LastBlock,
    hidden: Tensor,  # (n, tokens, width)
) -> Tensor:  # (n, width)
    """The first token behind the block, by the equations above."""
    n, _, width = hidden.shape
    size = width // block.heads
    normed = block.attention_norm(hidden)
    query = nn.functional.linear(normed[:, 0], block.query, block.query_bias)
    query = query.view(n, block.heads, size).transpose(0, 1)  # (heads, n, size)
    key = block.key.view(block.heads, size, width)
    asked = torch.matmul(query * size**-0.5, key).transpose(0, 1)  # (n, heads, width)
    shares = torch.matmul(asked, normed.transpose(1, 2)).softmax(dim=-1)  # (n, heads, tokens)
    mixed = torch.matmul(shares, normed).transpose(0, 1)  # (heads, n, width)
    value = block.value.view(block.heads, size, width)
    answer = torch.matmul(mixed, value.transpose(1, 2)).transpose(0, 1)  # (n, heads, size)
    token = hidden[:, 0] + block.out(answer.reshape(n, width) + block.value_bias)
    through: Tensor = token + block.mlp(block.mlp_norm(token))
    return through


def _pools_class_token(tower: VisionTransformer) -> bool:
    return (
        tower.attn_pool is None
        and tower.pool_type == "tok"
        and not tower.output_tokens
        and tower.proj is not None
        and tower.transformer.batch_first
    )


def _open_clip_block(block: Any) -> _LastBlock | None:
    """The parts of open_clip's usual block; None for another, or a changed one."""
    if type(block) is not ResidualAttentionBlock or type(block.attn) is not nn.MultiheadAttention:
        return None
    attention = block.attn
    scales = type(block.ls_1) is not nn.Identity or type(block.ls_2) is not nn.Identity
    if scales or attention.in_proj_weight is None or attention.in_proj_bias is None:
        return None
    if attention.bias_k is not None or attention.add_zero_attn or not attention.batch_first:
        return None
    query, key, value = attention.in_proj_weight.chunk(3)
    query_bias, _, value_bias = attention.in_proj_bias.chunk(3)
    return _LastBlock(
        attention_norm=block.ln_1,
        query=query,
        query_bias=query_bias,
        key=key,
        value=value,
        value_bias=value_bias,
        out=attention.out_proj,
        heads=attention.num_heads,
        mlp_norm=block.ln_2,
        mlp=block.mlp,
    )


def _transformers_block(block: Any) -> _LastBlock | None:
    """The parts of transformers' usual block; None for another, or one with adapters."""
    if type(block) is not CLIPEncoderLayer or type(block.self_attn) is not CLIPAttention:
        return None
    attention = block.self_attn
    query, key, value = attention.q_proj, attention.k_proj, attention.v_proj
    if any(type(layer) is not nn.Linear for layer in (query, key, value)):
        return None
    return _LastBlock(
        attention_norm=block.layer_norm1,
        query=query.weight,
        query_bias=query.bias,
        key=key.weight,
        value=value.weight,
        value_bias=value.bias,
        out=attention.out_proj,
        heads=attention.num_heads,
        mlp_norm=block.layer_norm2,
        mlp=block.mlp,
    )

"""A T5 with Flan-T5's structure that is small enough to be made in a test."""

import torch
from torch import nn
from transformers import T5Config

from apgd.models.t5 import build_t5, t5_config


def tiny_config(vocab_size: int = 96, dropout: float = 0.1) -> T5Config:
    return t5_config(
        vocab_size=vocab_size,
        width=32,
        mlp_width=48,
        layers=2,
        heads=4,
        head_width=8,
        dropout=dropout,
    )


def tiny_t5(seed: int = 0, vocab_size: int = 96) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_t5(tiny_config(vocab_size))

"""A BERT-like encoder for measurements and tests: random weights, token ids and a mask in, logits out.

BERT's architecture (Devlin et al. 2019) with the sizes as parameters. The additive mask is computed once, with the
lowest float32 as usual, and read by every layer, so it crosses every cut.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward net, each with a residual connection and a layer norm behind it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
        mixed = (torch.softmax(scores, dim=-1) @ value).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(mixed))
        normed: Tensor = self.norm2(x + self.narrow(nn.functional.gelu(self.wide(x))))
        return normed

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class BertEncoder(nn.Module):
    """(B, S) int64 token ids and (B, S) int64 mask (1: a token, 0: padding) to (B, classes) logits."""

    def __init__(
        self, *, layers: int = 12, width: int = 768, heads: int = 12, tokens: int = 30522, length: int = 128,
        classes: int = 2,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens = nn.Embedding(tokens, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(EncoderLayer(width, heads) for _ in range(layers))
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        bias = (1 - mask.float())[:, None, None, :] * torch.finfo(torch.float32).min
        x = self.norm(self.tokens(ids) + self.places)
        for layer in self.layers:
            x = layer(x, bias)
        logits: Tensor = self.classifier(torch.tanh(self.pooler(x[:, 0])))
        return logits


def example_inputs(length: int) -> tuple[Tensor, Tensor]:
    """Returns token ids and mask of two rows, for ``export_torch``."""
    return torch.ones(2, length, dtype=torch.int64), torch.ones(2, length, dtype=torch.int64)

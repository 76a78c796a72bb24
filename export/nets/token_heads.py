"""Heads for token features: the first token of a text, or the mean of its tokens.

``mean``    the mean over the tokens that the mask keeps, then a linear layer.
``pooler``  the first token, a tanh layer as wide as the features, a linear layer: BERT's own, and the PAME paper's.

The mean needs the mask, which a cut carries beside the features: a head reads it as its second input. Networks keep it
in many forms (0 and 1, truth values, a large negative number added to attention scores); ``MaskTensor`` says how it is
read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.nets.table import TOKEN_HEAD_KINDS

MEAN, POOLER = TOKEN_HEAD_KINDS


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskTensor:
    """A tensor that tells the tokens of a row from what fills it up.

    Attributes:
        name: of the tensor, which the cut carries or a head's graph is given.
        row_shape: of one row; its last axis is that of the tokens, and of the others the first entry counts.
        dtype: the numpy name of its type.
        limit: a token counts where the value is above this, or with ``below`` where it is not.
        below: see ``limit``.
    """

    name: str
    row_shape: tuple[int, ...]
    dtype: str = "float32"
    limit: float = 0.5
    below: bool = False

    def read(self, values: Tensor) -> Tensor:
        """Returns (B, S) float32 for values (B, *row_shape): 1 at a token, 0 at what fills up."""
        rows = values.float()
        for _ in range(len(self.row_shape) - 1):
            rows = rows[:, 0]
        kept = (rows > self.limit).float()
        return 1 - kept if self.below else kept


class TokenHead(nn.Module):
    """A head for token features: (B, S, F) -> (B, classes) logits, from the first token."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(features, features)
        self.fc = nn.Linear(features, classes)

    def reduce(self, x: Tensor) -> Tensor:
        """Takes the first token."""
        return x[:, 0]

    def answer(self, reduced: Tensor) -> Tensor:
        """Returns the logits for what ``reduce`` returned."""
        answer: Tensor = self.fc(torch.tanh(self.pooler(reduced)))
        return answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.reduce(x))


class MeanHead(nn.Module):
    """A head for token features: (B, S, F) and the mask -> (B, classes) logits, from the mean of the tokens."""

    def __init__(self, features: int, classes: int, mask: MaskTensor) -> None:
        super().__init__()
        self.mask = mask
        self.fc = nn.Linear(features, classes)

    def reduce(self, x: Tensor, mask: Tensor) -> Tensor:
        """Takes the mean of the tokens that the mask keeps; 0 where it keeps none."""
        kept = self.mask.read(mask)
        total = (x * kept.unsqueeze(-1)).sum(dim=1)
        return total / kept.sum(dim=1, keepdim=True).clamp_min(1)

    def answer(self, reduced: Tensor) -> Tensor:
        """Returns the logits for what ``reduce`` returned."""
        answer: Tensor = self.fc(reduced)
        return answer

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.answer(self.reduce(x, mask))


def mask_example(mask: MaskTensor, rows: int) -> Tensor:
    """Returns a mask of so many rows that keeps a part of the tokens of each, another in every row."""
    size = mask.row_shape[-1]
    kept = torch.arange(size) < torch.arange(1, rows + 1).unsqueeze(1) * max(1, math.ceil(size / (rows + 1)))
    above, under = mask.limit + 1, mask.limit - 1
    values = torch.where(kept != mask.below, above, under)
    shaped = values.reshape(rows, *[1] * (len(mask.row_shape) - 1), size).expand(rows, *mask.row_shape)
    return (shaped > mask.limit) if mask.dtype == "bool" else shaped.to(getattr(torch, mask.dtype))

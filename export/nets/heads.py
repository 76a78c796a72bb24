"""Exit heads: the small nets that answer at a cut.

For feature maps (C, H, W) there are the two kinds of the PAME paper (ICS'22), and ``pooled``:

``pooled``   average pooling straight to the backbone's last resolution, a bottleneck that doubles the channels there
             and a stride-2 bottleneck that doubles them again, global average pooling and a linear layer. After the
             first block of a ResNet-32 it is right more often than a ``complex`` head and costs half its time
             (docs/measurements.md); the default.
``complex``  one stride-2 bottleneck per resolution stage that the backbone still has ahead, doubling the channels
             each time, then global average pooling and a linear layer: a cheap version of the rest of the backbone.
``simple``   one bottleneck at the given resolution, global average pooling, a linear layer.

Feature vectors (F,) get a linear layer, token features (S, F) a head of ``export.nets.token_heads``. The confidence is
added to the exported graph (``export.confidence``).

A head begins with what has no parameters (pooling, the choice of a token). Frozen training keeps what comes out of
that, which is small, and never the features themselves: ``reduce_features`` and ``answer_reduced`` are the two halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from artifacts import Cut, GraphError, unknown_name
from export.nets.table import HEAD_KINDS
from export.nets.token_heads import POOLER, MaskTensor, MeanHead, TokenHead

_NARROW = 64  # channels


class HeadBottleneck(nn.Module):
    """1x1, 3x3 (strided), 1x1 convolutions at a quarter of the output width (He et al. 2016), around a projection."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        width = max(out // 4, 1)
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)
        self.bn4 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.bn4(self.shortcut(x)))


class MapHead(nn.Module):
    """A head for feature maps: (B, C, H, W) -> (B, classes) logits.

    Args:
        channels: C.
        bottlenecks: (channels, stride) of each bottleneck.
        classes: number of classes.
        pool: each average of (pool, pool) pixels is one pixel of the first bottleneck's input.
    """

    def __init__(self, channels: int, bottlenecks: Sequence[tuple[int, int]], classes: int, *, pool: int = 1) -> None:
        super().__init__()
        self.pool = pool
        self.bottlenecks = nn.Sequential()
        for width, stride in bottlenecks:
            self.bottlenecks.append(HeadBottleneck(channels, width, stride))
            channels = width
        self.fc = nn.Linear(channels, classes)

    def reduce(self, x: Tensor) -> Tensor:
        """Pools features as far as that needs no parameters."""
        if len(self.bottlenecks) == 0:
            return nn.functional.adaptive_avg_pool2d(x, 1)
        return nn.functional.avg_pool2d(x, self.pool) if self.pool > 1 else x

    def answer(self, reduced: Tensor) -> Tensor:
        """Returns the logits for what ``reduce`` returned."""
        pooled = nn.functional.adaptive_avg_pool2d(self.bottlenecks(reduced), 1)
        answer: Tensor = self.fc(torch.flatten(pooled, 1))
        return answer

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.reduce(x))


class ChannelsFirst(nn.Module):
    """Turns feature maps (B, H, W, C) into (B, C, H, W), for networks that keep their channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class AnsweringHead(nn.Module):
    """Brings the answers of a head into the terms of the network's own: features (and mask) -> (B, K, ...) float32.

    The answer is the head's logits or, with ``probabilities``, their softmax.
    """

    def __init__(self, head: nn.Module, *, probabilities: bool = False) -> None:
        super().__init__()
        self.head = head
        self.probabilities = probabilities

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        read = (other.float() if other.dtype == torch.float16 else other for other in others)
        logits: Tensor = self.head(x.float(), *read).float()
        return torch.softmax(logits, dim=1) if self.probabilities else logits


def mask_of(head: nn.Module) -> MaskTensor | None:
    """Returns the mask that a head reads besides the features; ``None`` for most heads."""
    inner = head.head if isinstance(head, AnsweringHead) else head
    return inner.mask if isinstance(inner, MeanHead) else None


def features_read(head: nn.Module) -> tuple[str, ...]:
    """Returns the names of the tensors that a head reads besides the features at its cut: a mask, or features of
    finer strides."""
    inner = head.head if isinstance(head, AnsweringHead) else head
    return (inner.mask.name,) if isinstance(inner, MeanHead) else tuple(getattr(inner, "reads", ()))


def answer_features(head: nn.Module, features: Mapping[str, Tensor], name: str) -> Tensor:
    """Returns a head's answer for the features after a block, and for what else it reads among them."""
    answer: Tensor = head(features[name], *(features[other] for other in features_read(head)))
    return answer


def reduce_features(head: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
    """Returns what is left of features (B, ...) behind the beginning of a head that has no parameters.

    Heads of another make have no such beginning; the features are returned as they are. ``others`` are what
    ``features_read`` names; features of finer strides become one row with those at the cut.
    """
    if isinstance(head, nn.Sequential) and isinstance(head[0], ChannelsFirst):
        return reduce_features(head[1], head[0](x))
    if isinstance(head, MeanHead):
        if not others:
            raise GraphError(f"an exit head reads the mask '{head.mask.name}', and none was given")
        return head.reduce(x, others[0])
    if features_read(head):
        fused: Any = head
        packed: Tensor = fused.reduce(x, *others)
        return packed
    return head.reduce(x) if isinstance(head, MapHead | TokenHead) else x


def answer_reduced(head: nn.Module, reduced: Tensor) -> Tensor:
    """Returns a head's logits for what ``reduce_features`` returned."""
    if isinstance(head, nn.Sequential) and isinstance(head[0], ChannelsFirst):
        return answer_reduced(head[1], reduced)
    if isinstance(head, MapHead | TokenHead | MeanHead):
        return head.answer(reduced)
    own: Any = head
    answer: Tensor = own.answer(reduced) if features_read(head) else own(reduced)
    return answer


def build_ladder(
    cut: Cut, later: Sequence[Cut], *, classes: int, kind: str, mask: MaskTensor | None = None
) -> tuple[nn.Module, ...]:  # fmt: skip
    """Builds untrained exit heads for a cut, each cheaper than the one before it.

    The first is that of ``build_head``. For feature maps follow a single bottleneck behind the pooling to the
    backbone's last resolution, the same at half the width, a narrow one at half that resolution, and a linear layer
    over global averages. Features of other shapes have one head only.

    Args and errors: as ``build_head``.
    """
    richest = build_head(cut, later, classes=classes, kind=kind, mask=mask)
    shape = cut.main.row_shape
    if len(shape) != 3:
        return (richest,)
    maps = [other.main.row_shape for other in (cut, *later) if len(other.main.row_shape) == 3]
    channels, widest = shape[0], max(other[0] for other in maps)
    last = min((min(other[1:]) for other in maps if min(other[1:]) > 1), default=1)
    pool, coarse = (max(1, min(shape[1:]) // max(1, size)) for size in (last, last // 2))
    return (
        richest,
        MapHead(channels, [(min(2 * channels, widest), 2)], classes, pool=pool),
        MapHead(channels, [(channels, 2)], classes, pool=pool),
        MapHead(channels, [(min(channels, _NARROW), 1)], classes, pool=coarse),
        MapHead(channels, [], classes),
    )


def build_head(
    cut: Cut, later: Sequence[Cut], *, classes: int, kind: str, mask: MaskTensor | None = None
) -> nn.Module:  # fmt: skip
    """Builds an untrained exit head for a cut.

    Args:
        cut: where the head sits.
        later: the cuts behind it; from their resolutions follows how far the features are from the last ones.
        classes: number of classes.
        kind: one of ``HEAD_KINDS``; for token features anything but ``pooler`` is the mean of the tokens, where a mask
            tells which they are.
        mask: a tensor that the cut carries and that tells tokens from what fills a row up; ``None``: there is none.

    Raises:
        UsageError: no such kind.
        GraphError: there is no head for features of that shape.
    """
    if kind not in HEAD_KINDS:
        raise unknown_name("head kind", kind, HEAD_KINDS)
    shape = cut.main.row_shape
    if len(shape) == 1:
        return nn.Linear(shape[0], classes)
    if len(shape) == 2:
        return TokenHead(shape[1], classes) if kind == POOLER or mask is None else MeanHead(shape[1], classes, mask)
    if len(shape) != 3:
        raise GraphError(
            f"cut '{cut.name}' has rows of shape {shape}; there are exit heads for (F,), (S, F) and (C, H, W). "
            "Train your own head for it, or leave the cut out with --every"
        )
    channels = shape[0]
    if kind == "simple":
        return MapHead(channels, [(channels, 1)], classes)
    maps = [
        other.main.row_shape for other in later if len(other.main.row_shape) == 3 and min(other.main.row_shape[1:]) > 1
    ]
    widest = max([channels, *(other[0] for other in maps)])
    if kind == "pooled":
        pool = max(1, min(shape[1] // maps[-1][1], shape[2] // maps[-1][2])) if maps else 1
        return MapHead(channels, [(min(2 * channels, widest), 1), (min(4 * channels, widest), 2)], classes, pool=pool)
    resolutions = {other[1:] for other in maps} - {shape[1:]}
    widths = [min(channels * 2 ** (step + 1), widest) for step in range(len(resolutions))]
    return MapHead(channels, [(width, 2) for width in widths], classes)

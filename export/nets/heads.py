"""Exit heads: the small nets that answer at a cut.

For feature maps (C, H, W) there are the two kinds of the PAME paper (ICS'22), and ``pooled``:

``pooled``   average pooling straight to the backbone's last resolution, a bottleneck that doubles the channels there
             and a stride-2 bottleneck that doubles them again, global average pooling and a linear layer. After the
             first block of a ResNet-32 it is right more often than a ``complex`` head and costs half its time
             (docs/measurements.md); the default.
``complex``  one stride-2 bottleneck per resolution stage that the backbone still has ahead, doubling the channels
             each time, then global average pooling and a linear layer: a cheap version of the rest of the backbone.
``simple``   one bottleneck at the given resolution, global average pooling, a linear layer.

Feature vectors (F,) get a linear layer, token features (S, F) a tanh pooler over the first token and a linear layer
(BERT's own head). The confidence is added to the exported graph (``export.graphs.confidence``).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from artifacts import Cut, GraphError, unknown_name
from export.nets.table import HEADS

HEAD_KINDS = HEADS


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

    def forward(self, x: Tensor) -> Tensor:
        if self.pool > 1:
            x = nn.functional.avg_pool2d(x, self.pool)
        answer: Tensor = self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(self.bottlenecks(x), 1), 1))
        return answer


class ChannelsFirst(nn.Module):
    """Turns feature maps (B, H, W, C) into (B, C, H, W), for networks that keep their channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class TokenHead(nn.Module):
    """A head for token features: (B, S, F) -> (B, classes) logits, from the first token."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.pooler = nn.Linear(features, features)
        self.fc = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.fc(torch.tanh(self.pooler(x[:, 0])))
        return answer


class AnsweringHead(nn.Module):
    """Brings the answers of a head into the terms of the network's own: features -> answer (B, K) float32.

    The answer is the head's logits or, with ``probabilities``, their softmax.
    """

    def __init__(self, head: nn.Module, *, probabilities: bool = False) -> None:
        super().__init__()
        self.head = head
        self.probabilities = probabilities

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(x.float()).float()
        return torch.softmax(logits, dim=-1) if self.probabilities else logits


def build_head(cut: Cut, later: Sequence[Cut], *, classes: int, kind: str) -> nn.Module:
    """Builds an untrained exit head for a cut.

    Args:
        cut: where the head sits.
        later: the cuts behind it; from their resolutions follows how far the features are from the last ones.
        classes: number of classes.
        kind: ``pooled``, ``complex`` or ``simple``.

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
        return TokenHead(shape[1], classes)
    if len(shape) != 3:
        raise GraphError(
            f"cut '{cut.name}' has rows of shape {shape}; there are exit heads for (F,), (S, F) and (C, H, W). "
            "Train your own head for it, or leave the cut out with --every"
        )
    channels = shape[0]
    if kind == "simple":
        return MapHead(channels, [(channels, 1)], classes)
    maps = [other.main.row_shape for other in later if len(other.main.row_shape) == 3]
    widest = max([channels, *(other[0] for other in maps)])
    if kind == "pooled":
        pool = max(1, min(shape[1] // maps[-1][1], shape[2] // maps[-1][2])) if maps else 1
        return MapHead(channels, [(min(2 * channels, widest), 1), (min(4 * channels, widest), 2)], classes, pool=pool)
    resolutions = {other[1:] for other in maps} - {shape[1:]}
    widths = [min(channels * 2 ** (step + 1), widest) for step in range(len(resolutions))]
    return MapHead(channels, [(width, 2) for width in widths], classes)

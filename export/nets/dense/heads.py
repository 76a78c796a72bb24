"""Heads of dense networks: one answer per pixel, or one map per joint, from features of one or several strides.

``FusedHead``  brings features of several strides to the finest of them and adds them up, a light form of feature
               pyramids (Lin et al., CVPR 2017; Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019). What
               lies between its 1x1 convolutions is depthwise, so that an early exit costs little.
``MapsHead``   a bottleneck and transposed convolutions from the features of one stride up to that of the answer, as in
               PoseResNet (Xiao et al., "Simple Baselines for Human Pose Estimation and Tracking", ECCV 2018); the PAME
               paper's exits of dense networks are of this kind.

Either ends with one convolution for the answers, enlarged to the answer's size in the graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from artifacts import Cut, GraphError
from export.nets.heads import HeadBottleneck

_WIDTHS = (64, 32, 16)  # of the heads of imported networks


class SeparableConvolution(nn.Sequential):
    """A 3x3 depthwise and a 1x1 convolution, each with batch normalisation and ReLU."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, out, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        )


class FusedHead(nn.Module):
    """Features of several strides -> (B, answers, H, W).

    Args:
        shapes: (C, H, W) of the features at the cut, and of the others that are read.
        answers: how many there are per pixel.
        width: channels that everything is brought to.
        scale: by how much the finest features are smaller than the answer, along either side.
        reads: names of the other features.
        final: the head of the whole network: it also adds what the last features are on average, and mixes twice.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], *, answers: int, width: int, scale: int = 1,
        reads: tuple[str, ...] = (), final: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.reads = reads
        self.shapes = tuple(tuple(shape) for shape in shapes)
        finest = max(shape[1] for shape in self.shapes)
        self.factors = tuple(finest // shape[1] for shape in self.shapes)
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(shape[0], width, 1, bias=False), nn.BatchNorm2d(width)) for shape in self.shapes
        )
        self.context = nn.Conv2d(self.shapes[0][0], width, 1) if final else None
        self.mix = nn.Sequential(*(SeparableConvolution(width, width) for _ in range(2 if final else 1)))
        self.out = nn.Conv2d(width, answers, 1)
        self.scale = scale

    def forward(self, *features: Tensor) -> Tensor:
        parts = [
            _enlarge(lateral(x), factor)
            for lateral, x, factor in zip(self.laterals, features, self.factors, strict=True)
        ]
        y = parts[0]
        for part in parts[1:]:
            y = y + part
        if self.context is not None:
            y = y + self.context(nn.functional.adaptive_avg_pool2d(features[0], 1))
        answer: Tensor = self.out(self.mix(torch.relu(y)))
        return _enlarge(answer, self.scale)

    def reduce(self, *features: Tensor) -> Tensor:
        """Packs features into one row each, for frozen training."""
        return torch.cat([x.flatten(1) for x in features], dim=1)

    def answer(self, reduced: Tensor) -> Tensor:
        """Returns the answers for what ``reduce`` returned."""
        pieces = reduced.split([math.prod(shape) for shape in self.shapes], dim=1)
        answer: Tensor = self(*(piece.unflatten(1, shape) for piece, shape in zip(pieces, self.shapes, strict=True)))
        return answer


class MapsHead(nn.Module):
    """Features (B, C, H, W) -> (B, answers, H * 2^doublings * scale, W * 2^doublings * scale).

    Args:
        channels: C.
        answers: how many there are per pixel.
        width: channels inside.
        doublings: how many transposed convolutions double the resolution.
        scale: by how much the answer is enlarged in the end, along either side.
        size: (H, W) that it is enlarged to instead.
    """

    def __init__(
        self, channels: int, *, answers: int, width: int, doublings: int = 0, scale: int = 1,
        size: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.bottleneck = HeadBottleneck(channels, width, 1)
        self.up = nn.Sequential()
        for _ in range(doublings):
            self.up.extend([
                nn.ConvTranspose2d(width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
            ])  # fmt: skip
        self.out = nn.Conv2d(width, answers, 1)
        self.scale, self.size = scale, size

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.out(self.up(self.bottleneck(x)))
        if self.size is not None:
            return nn.functional.interpolate(answer, size=self.size, mode="bilinear")
        return _enlarge(answer, self.scale)


def build_maps_ladder(cut: Cut, answer: tuple[int, ...]) -> tuple[MapsHead, ...]:
    """Builds untrained heads for the cut of an imported network that answers every pixel, each cheaper than the last.

    Args:
        cut: with features (C, H, W) of any resolution.
        answer: (classes, height, width) of the network's own answer.

    Raises:
        GraphError: the features are no maps.
    """
    shape = cut.main.row_shape
    if len(shape) != 3:
        raise GraphError(
            f"cut '{cut.name}' has rows of shape {shape}; heads that answer every pixel need features (C, H, W). Leave "
            "the cut out with --every"
        )
    widths = [width for width in _WIDTHS if width <= max(shape[0], _WIDTHS[-1])]
    classes, height, width = answer
    return tuple(MapsHead(shape[0], answers=classes, width=inner, size=(height, width)) for inner in widths)


class ObjectContext(nn.Module):
    """Pixels described by the classes around them: OCRNet's head (Yuan, Chen, Wang, ECCV 2020) -> (B, classes, h, w).

    A first guess says which pixels belong to each class; their mean features describe the class; each pixel adds what
    the classes that it resembles are like.
    """

    def __init__(self, channels: int, *, classes: int, width: int, key: int) -> None:
        super().__init__()
        self.guess = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, classes, 1)
        )
        self.pixels = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )  # fmt: skip
        self.query, self.key, self.value = (
            nn.Conv2d(width, key, 1), nn.Conv1d(width, key, 1), nn.Conv1d(width, width, 1)
        )  # fmt: skip
        self.mix = nn.Sequential(nn.Conv2d(2 * width, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.out = nn.Conv2d(width, classes, 1)
        self.sharpness = key**-0.5

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        regions = torch.softmax(self.guess(x).flatten(2), dim=2)  # (B, classes, pixels)
        pixels = self.pixels(x)
        objects = torch.matmul(pixels.flatten(2), regions.transpose(1, 2))  # (B, width, classes)
        alike = torch.matmul(self.query(pixels).flatten(2).transpose(1, 2), self.key(objects)) * self.sharpness
        around = torch.matmul(self.value(objects), torch.softmax(alike, dim=2).transpose(1, 2))
        around = around.unflatten(2, (int(height), int(width)))
        answer: Tensor = self.out(self.mix(torch.cat([pixels, around], dim=1)))
        return answer


def _enlarge(x: Tensor, factor: int) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=factor, mode="bilinear") if factor > 1 else x

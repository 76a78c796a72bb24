"""Heads of dense networks: one answer per pixel, or one map per joint, from features of one or several strides.

``FusedHead``  brings features of several strides to the finest of them and adds them up, a light form of feature
               pyramids (Lin et al., CVPR 2017; Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019). What
               lies between its 1x1 convolutions is depthwise. The final head.
``SkipHead``   does so on a coarser grid, of a quarter of the places, and adds what the finest features say of each
               answer by one 1x1 convolution (Long et al., "Fully Convolutional Networks", CVPR 2015; Howard et al.,
               "Searching for MobileNetV3", ICCV 2019, LR-ASPP). For exits, whose head is computed for every row.
``MapsHead``   a bottleneck and transposed convolutions from the features of one stride up to that of the answer, as in
               PoseResNet (Xiao et al., "Simple Baselines for Human Pose Estimation and Tracking", ECCV 2018); the PAME
               paper's exits of dense networks are of this kind.

Each ends with one convolution for the answers, which are enlarged to the answer's size in the graph (``Enlarge``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
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


class Enlarge(nn.Module):
    """Answers (B, C, H, W) -> (B, C, factor H, factor W): bilinear for every second pixel, which stands for four.

    The full resolution would cost four times as much, and more than all that an exit head computes besides. Behind the
    repetition an argmax moves before it (``export.answers``), and so does a confidence, without changing either.

    The bilinear half is a matrix product along either axis: on ONNX Runtime and OpenVINO that takes half the time of
    ``Resize`` for so few channels.

    Args:
        height: H.
        width: W.
        factor: even.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, height: int, width: int, factor: int) -> None:
        super().__init__()
        self.register_buffer("rows", _bilinear(height, factor // 2), persistent=False)
        self.register_buffer("columns", _bilinear(width, factor // 2).T.contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        enlarged = torch.matmul(self.rows, torch.matmul(x, self.columns))
        return nn.functional.interpolate(enlarged, scale_factor=2.0, mode="nearest")


def _bilinear(size: int, factor: int) -> Tensor:
    """Returns the weights (factor size, size) by which a line is enlarged, those of bilinear interpolation in torch."""
    places = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
    return torch.from_numpy(np.maximum(1 - np.abs(places[:, None] - np.arange(size)), 0).astype(np.float32))


class _Fusion(nn.Module):
    """Features of several strides -> (B, width, H, W) at the finest of them: brought there, added up and mixed.

    Args:
        shapes: (C, H, W) of the features, the deepest first.
        width: channels that everything is brought to.
        context: add what the deepest features are on average.
        mixes: how many separable convolutions follow.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], *, width: int, context: bool, mixes: int) -> None:
        super().__init__()
        finest = max(shape[1] for shape in shapes)
        self.factors = tuple(finest // shape[1] for shape in shapes)
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(shape[0], width, 1, bias=False), nn.BatchNorm2d(width)) for shape in shapes
        )
        self.context = nn.Conv2d(shapes[0][0], width, 1) if context else None
        self.mix = nn.Sequential(*(SeparableConvolution(width, width) for _ in range(mixes)))

    def forward(self, *features: Tensor) -> Tensor:
        parts = [lateral(x) for lateral, x in zip(self.laterals, features, strict=True)]
        if self.context is not None:  # before it is enlarged: the same everywhere, and cheapest there
            parts[0] = parts[0] + self.context(nn.functional.adaptive_avg_pool2d(features[0], 1))
        y, *others = (_enlarge(part, factor) for part, factor in zip(parts, self.factors, strict=True))
        for part in others:
            y = y + part
        mixed: Tensor = self.mix(torch.relu(y))
        return mixed


class _PyramidHead(nn.Module):
    """A head that reads features of several strides, which frozen training packs into one row each.

    Args:
        shapes: (C, H, W) of the features at the cut, and of the others that are read.
        reads: names of the other features.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], reads: tuple[str, ...]) -> None:
        super().__init__()
        self.reads = reads
        self.shapes = tuple(tuple(shape) for shape in shapes)

    def reduce(self, *features: Tensor) -> Tensor:
        """Packs features into one row each, for frozen training."""
        return torch.cat([x.flatten(1) for x in features], dim=1)

    def answer(self, reduced: Tensor) -> Tensor:
        """Returns the answers for what ``reduce`` returned."""
        pieces = reduced.split([math.prod(shape) for shape in self.shapes], dim=1)
        answer: Tensor = self(*(piece.unflatten(1, shape) for piece, shape in zip(pieces, self.shapes, strict=True)))
        return answer


class FusedHead(_PyramidHead):
    """Features of several strides -> (B, answers, H, W): the head of a whole network.

    Args:
        shapes: (C, H, W) of the last features, and of the others that are read.
        answers: how many there are per pixel.
        width: channels that everything is brought to.
        scale: by how much the finest features are smaller than the answer, along either side: 1, or even.
        reads: names of the other features.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], *, answers: int, width: int, scale: int = 1,
        reads: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(shapes, reads)
        self.fusion = _Fusion(shapes, width=width, context=True, mixes=2)
        self.out = nn.Conv2d(width, answers, 1)
        _, height, width = max(self.shapes, key=lambda shape: shape[1])
        self.enlarge = build_enlarging(height, width, scale)

    def forward(self, *features: Tensor) -> Tensor:
        answer: Tensor = self.enlarge(self.out(self.fusion(*features)))
        return answer


class SkipHead(_PyramidHead):
    """Features of several strides -> (B, answers, H, W): the head of an exit, mixed at the second finest stride.

    Args:
        shapes: (C, H, W) of the features at the cut, then of the finest that are read, then of further ones.
        answers: how many there are per pixel.
        width: channels that all but the finest are brought to.
        scale: by how much the finest features are smaller than the answer, along either side: 1, or even.
        reads: names of all but the first.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, ...]], *, answers: int, width: int, scale: int = 1,
        reads: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(shapes, reads)
        last, finest, *further = self.shapes
        fused = (last, *further)
        self.fusion = _Fusion(fused, width=width, context=True, mixes=2)
        self.out = nn.Conv2d(width, answers, 1)
        self.skip = nn.Conv2d(finest[0], answers, 1)
        self.factor = finest[1] // max(shape[1] for shape in fused)
        self.enlarge = build_enlarging(finest[1], finest[2], scale)

    def forward(self, last: Tensor, finest: Tensor, *further: Tensor) -> Tensor:
        coarse = self.out(self.fusion(last, *further))
        answer: Tensor = self.enlarge(_enlarge(coarse, self.factor) + self.skip(finest))
        return answer


def build_enlarging(height: int, width: int, scale: int) -> nn.Module:
    """Builds what enlarges answers (B, C, height, width) by a scale: 1, or even."""
    return Enlarge(height, width, scale) if scale > 1 else nn.Identity()


class MapsHead(nn.Module):
    """Features (B, C, H, W) -> (B, answers, H * 2^doublings, W * 2^doublings), or what these are enlarged to.

    Args:
        channels: C.
        answers: how many there are per pixel.
        width: channels inside.
        doublings: how many transposed convolutions double the resolution.
        enlarge: enlarges the answer in the end.
        size: (H, W) that it is enlarged to instead.
    """

    def __init__(
        self, channels: int, *, answers: int, width: int, doublings: int = 0, enlarge: nn.Module | None = None,
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
        self.enlarge, self.size = enlarge or nn.Identity(), size

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.out(self.up(self.bottleneck(x)))
        if self.size is not None:
            return nn.functional.interpolate(answer, size=self.size, mode="bilinear")
        enlarged: Tensor = self.enlarge(answer)
        return enlarged


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

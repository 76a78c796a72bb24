"""The ``resnet`` family: CIFAR-style 20/32/44/56/110 and ImageNet-style 18/34/50/101/152.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. The ImageNet ones name their parameters as
torchvision does, so that its checkpoints load; the CIFAR ones follow the same scheme with three stages of
16, 32 and 64 channels. Where a stage begins, the shortcut is a projection or, as in the paper's CIFAR networks
("option A"), every second pixel with channels of zeros beside, which has no parameters. What state dicts of others are
of, and how their names become these, stands in ``export.nets.resnet_states``. An exit may sit after every residual
block but the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from artifacts import UsageError, unknown_name
from export.nets.family import Backbone, Family, check_image_options
from export.nets.resnet_states import CIFAR_WIDTHS, IMAGENET_BLOCKS, fit_state

CIFAR_DEPTHS = (20, 32, 44, 56, 110)
SHORTCUTS = ("projection", "padding")
STEMS = ("auto", "cifar", "imagenet")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetConfig:
    """Which ResNet.

    Attributes:
        depth: 20, 32, 44, 56, 110 (CIFAR style) or 18, 34, 50, 101, 152 (ImageNet style).
        shortcut: where a stage begins: ``projection`` (1x1 convolution) or, in the CIFAR style, ``padding``.
        stem: ``imagenet``: a 7x7 convolution and a pooling, which leave a sixteenth of the pixels; ``cifar``: a 3x3
            convolution; ``auto``: as the style says.
        classes: number of classes.
        input_shape: (channels, height, width) of an image.
    """

    depth: int = field(default=32, metadata={"help": "which ResNet"})
    shortcut: str = field(
        default=SHORTCUTS[0],
        metadata={
            "help": f"{' or '.join(SHORTCUTS)}, which has no parameters: where a stage begins",
            "recorded_if_changed": True,
        },
    )
    stem: str = field(
        default=STEMS[0],
        metadata={"help": f"{', '.join(STEMS)}: how a network begins; auto: by its depth", "recorded_if_changed": True},
    )
    classes: int = field(default=10, metadata={"help": "number of classes"})
    input_shape: tuple[int, int, int] = (1, 28, 28)

    def __post_init__(self) -> None:
        if self.depth not in (*CIFAR_DEPTHS, *IMAGENET_BLOCKS):
            choices = ", ".join(map(str, sorted((*CIFAR_DEPTHS, *IMAGENET_BLOCKS))))
            raise UsageError(f"there is no ResNet of depth {self.depth}; choose --depth from {choices}")
        check_image_options(self)
        if self.shortcut not in SHORTCUTS:
            raise unknown_name("shortcut", self.shortcut, SHORTCUTS)
        if self.stem not in STEMS:
            raise unknown_name("stem", self.stem, STEMS)
        if self.shortcut != SHORTCUTS[0] and not self.is_small:
            raise UsageError(f"--shortcut {self.shortcut}: ResNet-{self.depth} has projections; leave the flag out")

    @property
    def is_small(self) -> bool:
        """Is it one of the CIFAR style?"""
        return self.depth in CIFAR_DEPTHS

    @property
    def keeps_pixels(self) -> bool:
        """Does its first convolution keep the resolution?"""
        return self.is_small if self.stem == STEMS[0] else self.stem == "cifar"


class PaddedShortcut(nn.Module):
    """Every second pixel, between channels of zeros: (B, C, H, W) -> (B, out, H/2, W/2); no parameters."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        before = (out - channels) // 2
        self.padding = (0, 0, 0, 0, before, out - channels - before)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x[:, :, ::2, ::2], self.padding)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int, *, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _build_shortcut(channels, width, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the stride sits at the 3x3, as in torchvision."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int, *, shortcut: str) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _build_shortcut(channels, out, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


def _build_shortcut(channels: int, out: int, stride: int, kind: str) -> nn.Module | None:
    if stride == 1 and channels == out:
        return None
    if kind == "padding":
        return PaddedShortcut(channels, out)
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))


class ResNet(Backbone):
    """A residual network that also returns its features after every block.

    Shapes: input (B, C, H, W) float32, output (B, classes) float32 logits.
    """

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.input_shape[0]
        blocks: tuple[int, ...]
        widths: tuple[int, ...]
        kind: type[BasicBlock] | type[Bottleneck]
        if config.is_small:
            blocks, widths, kind = ((config.depth - 2) // 6,) * 3, CIFAR_WIDTHS, BasicBlock
        else:
            blocks, widths = IMAGENET_BLOCKS[config.depth], (64, 128, 256, 512)
            kind = BasicBlock if config.depth < 50 else Bottleneck
        if config.keeps_pixels:
            self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            self.conv1 = nn.Conv2d(channels, widths[0], 7, 2, 3, bias=False)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layers: list[str] = []
        inner = widths[0]
        for index, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            layer = nn.Sequential()
            for position in range(count):
                stride = 2 if index > 0 and position == 0 else 1
                layer.append(kind(inner, width, stride, shortcut=config.shortcut))
                inner = width * kind.expansion
            self.add_module(f"layer{index + 1}", layer)
            self.layers.append(f"layer{index + 1}")
        self.fc = nn.Linear(inner, config.classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, (BasicBlock, Bottleneck)):
                last = module.bn2 if isinstance(module, BasicBlock) else module.bn3
                nn.init.zeros_(last.weight)

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields every residual block under its parameter prefix, e.g. ``layer2.0``."""
        for layer in self.layers:
            for position, block in enumerate(self.get_submodule(layer).children()):
                yield f"{layer}.{position}", block

    def forward_with_features(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns (block name -> features after it, for every block; logits)."""
        features = {}
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for name, block in self.blocks():
            x = block(x)
            features[name] = x
        return features, self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))


FAMILY = Family(
    name="resnet", config=ResNetConfig, build=ResNet, fit_state=fit_state,
    title=lambda config: f"ResNet-{config.depth}",
)  # fmt: skip

"""The ``resnet`` family: CIFAR-style 20/32/44/56 and ImageNet-style 18/34/50/101/152.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. The ImageNet ones name their parameters as
torchvision does, so that its checkpoints load; the CIFAR ones follow the same scheme with three stages of
16, 32 and 64 channels and projection shortcuts. An exit may sit after every residual block but the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from artifacts import UsageError
from export.nets.family import Backbone, Family

CIFAR_DEPTHS = (20, 32, 44, 56)
IMAGENET_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetConfig:
    """Which ResNet.

    Attributes:
        depth: 20, 32, 44, 56 (CIFAR style) or 18, 34, 50, 101, 152 (ImageNet style).
        classes: number of classes.
        input_shape: (channels, height, width) of an image.
    """

    depth: int = field(default=32, metadata={"help": "which ResNet"})
    classes: int = field(default=10, metadata={"help": "number of classes"})
    input_shape: tuple[int, int, int] = (1, 28, 28)

    def __post_init__(self) -> None:
        if self.depth not in (*CIFAR_DEPTHS, *IMAGENET_BLOCKS):
            choices = ", ".join(map(str, sorted((*CIFAR_DEPTHS, *IMAGENET_BLOCKS))))
            raise UsageError(f"there is no ResNet of depth {self.depth}; choose --depth from {choices}")
        if self.classes < 2:
            raise UsageError(f"--classes {self.classes}: a classifier needs at least 2")
        if len(self.input_shape) != 3 or min(self.input_shape) < 1:
            raise UsageError(f"--input-shape {self.input_shape}: expected channels,height,width, e.g. 3,224,224")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the stride sits at the 3x3, as in torchvision."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = _shortcut(channels, out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


def _shortcut(channels: int, out: int, stride: int) -> nn.Module | None:
    if stride == 1 and channels == out:
        return None
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
        if config.depth in CIFAR_DEPTHS:
            blocks, widths, kind = ((config.depth - 2) // 6,) * 3, (16, 32, 64), BasicBlock
            self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
            self.maxpool: nn.Module = nn.Identity()
        else:
            blocks, widths = IMAGENET_BLOCKS[config.depth], (64, 128, 256, 512)
            kind = BasicBlock if config.depth < 50 else Bottleneck
            self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
            self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layers: list[str] = []
        inner = widths[0]
        for index, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            layer = nn.Sequential()
            for position in range(count):
                layer.append(kind(inner, width, 2 if index > 0 and position == 0 else 1))
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


FAMILY = Family(name="resnet", config=ResNetConfig, build=ResNet, title=lambda config: f"ResNet-{config.depth}")

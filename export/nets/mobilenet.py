"""The blocks of MobileNetV2, for the families that are built on it, with torchvision's key names.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018. A family keeps what
``build_features`` returns as its ``features``; then torchvision's ImageNet weights load under their own keys.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

STAGES = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
"""(expansion, channels, blocks) of each stage."""
STRIDES = (2, 1, 2, 2, 2, 1, 2, 1)
"""Of the stem and of the first block of each stage."""
STEM_CHANNELS, LAST_CHANNELS = 32, 1280


class ConvolutionNorm(nn.Sequential):
    """A convolution, batch normalisation, ReLU6."""

    def __init__(self, channels: int, out: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, out, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU6(),
        )


class InvertedResidual(nn.Module):
    """A 1x1 expansion (none at an expansion of 1), a 3x3 depthwise convolution and a linear 1x1 projection.

    A shortcut goes around them where shape and channels stay the same.
    """

    def __init__(self, channels: int, out: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.has_shortcut = stride == 1 and channels == out
        self.conv = nn.Sequential(
            *([] if expansion == 1 else [ConvolutionNorm(channels, inner, kernel=1)]),
            ConvolutionNorm(inner, inner, stride=stride, groups=inner),
            nn.Conv2d(inner, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.has_shortcut else y


def build_features(channels: int = 3, *, width_percent: int = 100, strides: tuple[int, ...] = STRIDES) -> nn.Sequential:
    """Builds the feature extractor, untrained: the stem, 17 inverted residuals and the last 1x1 convolution.

    Args:
        channels: of an image.
        width_percent: of the channels of every layer but the last, whose 1280 only grow; each is rounded to a
            multiple of 8, as in torchvision.
        strides: of the stem and of the first block of each stage; smaller images need fewer twos.
    """
    width = width_percent / 100
    inner = round_channels(STEM_CHANNELS * width)
    layers: list[nn.Module] = [ConvolutionNorm(channels, inner, stride=strides[0])]
    for (expansion, out, blocks), stride in zip(STAGES, strides[1:], strict=True):
        wide = round_channels(out * width)
        for position in range(blocks):
            layers.append(InvertedResidual(inner, wide, stride=stride if position == 0 else 1, expansion=expansion))
            inner = wide
    layers.append(ConvolutionNorm(inner, round_channels(LAST_CHANNELS * max(1.0, width)), kernel=1))
    features = nn.Sequential(*layers)
    _initialise(features)
    return features


def round_channels(channels: float) -> int:
    """Returns the nearest multiple of 8, but never less than nine tenths of what was wanted."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _initialise(features: nn.Module) -> None:
    for module in features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")


def feature_blocks(features: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    """Yields every inverted residual under its parameter prefix, ``features.1`` to ``features.17``."""
    for position, block in enumerate(features):
        if isinstance(block, InvertedResidual):
            yield f"features.{position}", block


def run_blocks(features: nn.Sequential, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Runs stem and inverted residuals.

    Returns:
        (block name -> features after it, for every block; what comes out of the last). The 1x1 convolution behind it,
        ``features[-1]``, is left to the family: it belongs to the answer.
    """
    found = {}
    x = features[0](x)
    for name, block in feature_blocks(features):
        x = block(x)
        found[name] = x
    return found, x

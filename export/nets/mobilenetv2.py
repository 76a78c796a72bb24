"""The ``mobilenetv2`` family: an image classifier on the blocks of MobileNetV2, with torchvision's keys.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018. An exit may sit after every
inverted residual but the last; the 1x1 convolution behind the last belongs to the final head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from artifacts import GraphError, UsageError, unknown_name
from export.nets.family import Backbone, Family, FittedState, check_image_options
from export.nets.mobilenet import (
    LAST_CHANNELS,
    STAGES,
    STEM_CHANNELS,
    STRIDES,
    build_features,
    feature_blocks,
    round_channels,
    run_blocks,
)

STYLES: Mapping[str, tuple[int, ...]] = {"imagenet": STRIDES, "cifar": (1, 1, 1, 2, 2, 1, 2, 1)}
_PUBLISHED_WIDTHS = (100, 25, 35, 50, 75, 130, 140)  # per cent
_MOST_WIDTH = 400
_DROPPED = 0.2
_SIZE = 224
_TELLING = ("features.0.0.weight", "features.18.0.weight", "classifier.1.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class MobileNetConfig:
    """Which MobileNetV2.

    Attributes:
        width: of its layers, in per cent of the published network's.
        style: ``imagenet``: the last features have a 32nd of the image's pixels each way; ``cifar``: an eighth.
        classes: number of classes.
        input_shape: (channels, height, width) of an image.
    """

    width: int = field(default=100, metadata={"help": "of its layers, in per cent of the published network's"})
    style: str = field(default="imagenet", metadata={"help": f"{' or '.join(STYLES)}: for large or for small images"})
    classes: int = field(default=1000, metadata={"help": "number of classes"})
    input_shape: tuple[int, int, int] = (3, _SIZE, _SIZE)

    def __post_init__(self) -> None:
        check_image_options(self)
        if self.style not in STYLES:
            raise unknown_name("style", self.style, STYLES)
        if not 1 <= self.width <= _MOST_WIDTH:
            raise UsageError(f"--width {self.width}: expected per cent from 1 to {_MOST_WIDTH}, as in --width 50")


class MobileNet(Backbone):
    """A MobileNetV2 that also returns its features after every block.

    Shapes: input (B, C, H, W) float32, output (B, classes) float32 logits.
    """

    def __init__(self, config: MobileNetConfig) -> None:
        super().__init__()
        self.config = config
        self.features = build_features(
            config.input_shape[0], width_percent=config.width, strides=STYLES[config.style]
        )  # fmt: skip
        channels = round_channels(LAST_CHANNELS * max(100, config.width) / 100)
        answer = nn.Linear(channels, config.classes)
        nn.init.normal_(answer.weight, 0, 0.01)
        nn.init.zeros_(answer.bias)
        self.classifier = nn.Sequential(nn.Dropout(_DROPPED), answer)

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields every inverted residual under its parameter prefix, e.g. ``features.7``."""
        yield from feature_blocks(self.features)

    def forward_with_features(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns (block name -> features after it, for every block; logits)."""
        features, x = run_blocks(self.features, x)
        pooled = nn.functional.adaptive_avg_pool2d(self.features[-1](x), 1)
        return features, self.classifier(torch.flatten(pooled, 1))


def fit_state(state: Mapping[str, Tensor]) -> FittedState:
    """Tells which MobileNetV2 a state dict of torchvision is of; what images it takes does not stand in it.

    Raises:
        GraphError: it is not of a MobileNetV2.
    """
    missing = [
        key for key in ("features.0.0.weight", "features.18.0.weight", "classifier.1.weight") if key not in state
    ]
    if missing:
        raise GraphError(
            f"the weights have no {', '.join(missing)}, so they are not of a MobileNetV2 as torchvision names it: they "
            f"begin with {', '.join(list(state)[:4])}. Other networks: torch:package.module:factory"
        )
    widths = (*_PUBLISHED_WIDTHS, *range(1, _MOST_WIDTH + 1))
    width = next((width for width in widths if _has_width(state, width)), None)
    if width is None:
        raise GraphError(
            "the weights have layers with other numbers of channels than any MobileNetV2 of up to "
            f"{_MOST_WIDTH} per cent. Other networks: torch:package.module:factory"
        )
    options = {"width": width, "classes": len(state["classifier.1.weight"])}
    channels = int(state["features.0.0.weight"].shape[1])
    return FittedState(options=options, channels=channels, size=_SIZE, state=state)


def _has_width(state: Mapping[str, Tensor], width: int) -> bool:
    """Do the stem, the ends of all blocks and the last convolution have the channels of a width?"""
    expected = {"features.0.0.weight": round_channels(STEM_CHANNELS * width / 100)}
    position = 1
    for expansion, channels, blocks in STAGES:
        for _ in range(blocks):
            end = 1 if expansion == 1 else 2
            expected[f"features.{position}.conv.{end}.weight"] = round_channels(channels * width / 100)
            position += 1
    expected[f"features.{position}.0.weight"] = round_channels(LAST_CHANNELS * max(100, width) / 100)
    return all(key in state and len(state[key]) == channels for key, channels in expected.items())


FAMILY = Family(
    name="mobilenetv2", config=MobileNetConfig, build=MobileNet, fit_state=fit_state,
    title=lambda config: "MobileNetV2" if config.width == 100 else f"MobileNetV2 at {config.width} % of its width",
)  # fmt: skip

"""The ``vgg16`` family: CIFAR-style for small images, and ImageNet-style with torchvision's keys.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015: thirteen 3x3
convolutions in five stages, each stage ended by a pooling that halves the resolution. The CIFAR style answers with one
linear layer over what the last stage leaves, the ImageNet style with three layers over 7x7 averages. Parameters are
named as in torchvision (``features.N``, ``classifier.N``), so that its ``vgg16`` and ``vgg16_bn`` load. An exit may sit
after every convolution but the last, behind the pooling where one follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from artifacts import GraphError, UsageError, unknown_name
from export.nets.family import Backbone, Family, FittedState, check_image_options

STAGES = (2, 2, 3, 3, 3)  # convolutions
WIDENING = (1, 2, 4, 8, 8)  # of each stage, in units of the first one's channels
STYLES = ("cifar", "imagenet")
NORMS = ("batch", "none")
_AVERAGES = 7  # pixels of the ImageNet style's last average, each way
_IMAGENET_SIZE = 224
_SMALLEST = 17  # pixels, of which five halvings leave one


@dataclass(frozen=True, slots=True, kw_only=True)
class VGGConfig:
    """Which VGG-16.

    Attributes:
        width: channels of the first stage; the published network has 64.
        style: ``cifar`` or ``imagenet``.
        norm: ``batch``: a batch normalisation after every convolution; ``none``.
        hidden: units of each of two hidden layers before the answer; 0: no such layers in the CIFAR style, 64 times the
            width in the ImageNet style, as published.
        classes: number of classes.
        input_shape: (channels, height, width) of an image.
    """

    width: int = field(default=64, metadata={"help": "channels of the first stage; smaller: a narrower network"})
    style: str = field(default=STYLES[0], metadata={"help": f"{' or '.join(STYLES)}: for small or for large images"})
    norm: str = field(default=NORMS[0], metadata={"help": f"{' or '.join(NORMS)}: normalisation after convolutions"})
    hidden: int = field(default=0, metadata={"help": "units of two hidden layers before the answer; 0: by the style"})
    classes: int = field(default=10, metadata={"help": "number of classes"})
    input_shape: tuple[int, int, int] = (3, 32, 32)

    def __post_init__(self) -> None:
        check_image_options(self)
        if self.style not in STYLES:
            raise unknown_name("style", self.style, STYLES)
        if self.norm not in NORMS:
            raise unknown_name("normalisation", self.norm, NORMS)
        if self.width < 1:
            raise UsageError(f"--width {self.width}: expected channels from 1")
        if self.hidden < 0:
            raise UsageError(f"--hidden {self.hidden}: expected units from 1, or 0")
        smallest = 2 ** len(STAGES) if self.style == "imagenet" else _SMALLEST
        if min(self.input_shape[1:]) < smallest:
            raise UsageError(
                f"--input-shape {','.join(map(str, self.input_shape))}: {len(STAGES)} poolings need at least "
                f"{smallest} pixels each way"
            )


class VGG(Backbone):
    """A VGG-16 that also returns its features after every convolution.

    Shapes: input (B, C, H, W) float32, output (B, classes) float32 logits.
    """

    def __init__(self, config: VGGConfig) -> None:
        super().__init__()
        self.config = config
        self.features = nn.Sequential()
        self._ends: dict[int, int] = {}  # where a block begins in ``features`` -> where it ends
        channels, height, width = config.input_shape
        for count, factor in zip(STAGES, WIDENING, strict=True):
            for position in range(count):
                start = len(self.features)
                self.features.append(nn.Conv2d(channels, config.width * factor, 3, padding=1))
                channels = config.width * factor
                if config.norm == "batch":
                    self.features.append(nn.BatchNorm2d(channels))
                self.features.append(nn.ReLU())
                if position == count - 1:
                    # images of 28x28 keep their last row and column, or nothing would be left after five poolings
                    self.features.append(nn.MaxPool2d(2, ceil_mode=config.style == "cifar"))
                self._ends[start] = len(self.features)
        if config.style == "imagenet":
            self.averages: nn.Module = nn.AdaptiveAvgPool2d(_AVERAGES)
            inner, hidden = channels * _AVERAGES**2, config.hidden or 64 * config.width
        else:
            self.averages = nn.Identity()
            for _ in STAGES:
                height, width = -(-height // 2), -(-width // 2)
            inner, hidden = channels * height * width, config.hidden
        self.classifier = _build_classifier(inner, hidden, config.classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields every convolution with all that follows it up to the next, under its prefix, e.g. ``features.7``."""
        for start, end in self._ends.items():
            yield f"features.{start}", self.features[start:end]

    def forward_with_features(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Returns (block name -> features after it, for every block; logits)."""
        features = {}
        for name, block in self.blocks():
            x = block(x)
            features[name] = x
        return features, self.classifier(torch.flatten(self.averages(x), 1))


def _build_classifier(inner: int, hidden: int, classes: int) -> nn.Module:
    if not hidden:
        return nn.Linear(inner, classes)
    return nn.Sequential(
        nn.Linear(inner, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(),
        nn.Linear(hidden, classes),
    )  # fmt: skip


_CONVOLUTION = re.compile(r"features\.(\d+)\.weight")


def fit_state(state: Mapping[str, Tensor]) -> FittedState:
    """Tells which VGG-16 a state dict of torchvision, or of the usual networks for CIFAR, is of.

    Raises:
        GraphError: it is not of a VGG-16.
    """
    found = {int(match[1]): state[key] for key in state if (match := _CONVOLUTION.fullmatch(key))}
    convolutions = [tensor for _, tensor in sorted(found.items()) if tensor.ndim == 4]
    widths = [tensor.shape[0] for tensor in convolutions]
    base = widths[0] if widths else 0
    expected = [base * factor for count, factor in zip(STAGES, WIDENING, strict=True) for _ in range(count)]
    if widths != expected:
        raise GraphError(
            f"the weights have convolutions features.N with {', '.join(map(str, widths)) or 'no'} channels; a VGG-16 "
            f"has {sum(STAGES)} in stages of {', '.join(map(str, STAGES))}, as wide as the first times "
            f"{', '.join(map(str, WIDENING))}. Other networks: torch:package.module:factory"
        )
    classes = len(_last_layer(state))
    first = state.get("classifier.0.weight")
    hidden = 0 if first is None else len(first)
    # 7x7 averages of the last stage enter the first layer of the ImageNet style alone
    large = first is not None and first.shape[1] == widths[-1] * _AVERAGES**2
    normed = any(key.endswith("running_mean") for key in state if key.startswith("features."))
    options = {
        "width": base, "style": "imagenet" if large else "cifar", "norm": "batch" if normed else "none",
        "hidden": 0 if large and hidden == 64 * base else hidden, "classes": classes,
    }  # fmt: skip
    size = _IMAGENET_SIZE if large else VGGConfig().input_shape[1]
    return FittedState(options=options, channels=int(convolutions[0].shape[1]), size=size, state=state)


def _last_layer(state: Mapping[str, Tensor]) -> Tensor:
    for key in ("classifier.6.weight", "classifier.weight"):
        if key in state:
            return state[key]
    layers = ", ".join(key for key in state if key.startswith("classifier.")) or "none"
    raise GraphError(
        f"the weights have the layers {layers} behind their convolutions; expected classifier.0, .3 and .6, or one "
        "layer 'classifier'. Other networks: torch:package.module:factory"
    )


FAMILY = Family(
    name="vgg16", config=VGGConfig, build=VGG, fit_state=fit_state,
    title=lambda config: "VGG-16" if config.width == 64 else f"VGG-16 of width {config.width}",
)  # fmt: skip

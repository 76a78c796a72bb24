"""Trunks of dense networks: what makes features for one answer per pixel, with the strides that those have.

``mobilenetv2`` goes down to a stride of 32. A ResNet does so too, or with ``dilated`` stays at a stride of 8: its last
two stages spread their kernels instead of striding (Yu et al., "Dilated Residual Networks", CVPR 2017).

A trunk's state has torchvision's keys behind ``trunk.``, so that weights for ImageNet load (``adapt_to_trunk``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from artifacts import GraphError, UsageError, unknown_name
from export.nets.mobilenet import build_features, run_blocks
from export.nets.resnet import ResNet, ResNetConfig
from export.nets.resnet_states import IMAGENET_BLOCKS

MOBILENET = "mobilenetv2"
TRUNKS = (MOBILENET, *(f"resnet{depth}" for depth in IMAGENET_BLOCKS))
STRIDE = 32
"""What the sizes of an image must be multiples of, so that features of all strides lie above one another."""
_CUTS = (6, 8, 10, 13, 17)
SHARED = {"features.3": 24, "features.6": 32, "features.13": 96}
"""The last features of MobileNetV2 at strides 4, 8 and 16, and their channels; heads read them beside later ones."""
_PREFIX = "trunk."


class MobileNetTrunk(nn.Module):
    """MobileNetV2 without its last 1x1 convolution: (B, C, H, W) -> block name -> features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*list(build_features(channels))[:-1])

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        wanted = {*SHARED, *_block_names()}
        return {name: value for name, value in run_blocks(self.features, x)[0].items() if name in wanted}

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields the blocks behind which exits are worth while: an earlier answer would know too little."""
        for position in _CUTS:
            yield f"features.{position}", self.features[position]


class ResNetTrunk(nn.Module):
    """A ResNet without its classifier: (B, C, H, W) -> block name -> features.

    Args:
        depth: 18, 34, 50, 101 or 152.
        channels: of an image.
        dilated: stay at a stride of 8.
    """

    def __init__(self, depth: int, channels: int, *, dilated: bool) -> None:
        super().__init__()
        net = ResNet(ResNetConfig(depth=depth, input_shape=(channels, STRIDE, STRIDE)))
        self.conv1, self.bn1, self.maxpool = net.conv1, net.bn1, net.maxpool
        self.layers = list(net.layers)
        for name in self.layers:
            self.add_module(name, net.get_submodule(name))
        if dilated:
            for name, rate in zip(self.layers[2:], (2, 4), strict=True):
                _dilate(self.get_submodule(name), rate)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = {}
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for name, block in self.blocks():
            x = block(x)
            found[name] = x
        return found

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Yields every residual block under its parameter prefix, e.g. ``layer2.0``."""
        for layer in self.layers:
            for position, block in enumerate(self.get_submodule(layer).children()):
                yield f"{layer}.{position}", block


def _dilate(layer: nn.Module, rate: int) -> None:
    """Lets the 3x3 convolutions of a layer see as far as before, without its stride."""
    for module in layer.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (rate, rate)


Trunk = MobileNetTrunk | ResNetTrunk


def build_trunk(name: str, channels: int, *, dilated: bool) -> Trunk:
    """Builds a trunk, untrained.

    Args:
        name: one of ``TRUNKS``.
        channels: of an image.
        dilated: of a ResNet: stay at a stride of 8.
    """
    if name == MOBILENET:
        return MobileNetTrunk(channels)
    return ResNetTrunk(int(name.removeprefix("resnet")), channels, dilated=dilated)


def check_trunk(name: str, input_shape: tuple[int, ...]) -> None:
    """Checks what every dense family is asked for.

    Raises:
        UsageError: there is no such trunk, or images have a size that it cannot be halved five times.
    """
    if name not in TRUNKS:
        raise unknown_name("trunk (--trunk)", name, TRUNKS)
    if len(input_shape) != 3 or any(side < STRIDE or side % STRIDE for side in input_shape[1:]):
        raise UsageError(
            f"--input-shape {','.join(map(str, input_shape))}: expected channels,height,width with height and width "
            f"multiples of {STRIDE}, e.g. 3,192,256"
        )


def shared_before(block: str) -> tuple[str, ...]:
    """Returns the shared features of MobileNetV2 that are made before a block; none of another trunk."""
    position = int(block.removeprefix("features.")) if block in _block_names() else 0
    return tuple(name for name in SHARED if int(name.removeprefix("features.")) < position)


def _block_names() -> set[str]:
    return {f"features.{position}" for position in _CUTS}


def stride_of(block: str, *, dilated: bool) -> int:
    """Returns how many pixels of the image one of the features after a block stands for, along either side."""
    if block.startswith("features."):
        position = int(block.removeprefix("features."))
        return 8 if position < 7 else 16 if position < 14 else 32
    stage = int(block.removeprefix("layer").partition(".")[0])
    stride = 1 << (stage + 1)
    return min(stride, 8) if dilated else stride


def adapt_to_trunk(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the state of a dense network: the one that is given, or drawn answers over the trunk of a classifier.

    Args:
        own: the network's own state, as it was drawn.
        state: of such a network, or of a classifier with torchvision's keys; of that the classifier is left out.

    Raises:
        GraphError: it is of neither.
    """
    if any(key.startswith(_PREFIX) for key in state):
        return dict(state)
    trunk = {key.removeprefix(_PREFIX) for key in own if key.startswith(_PREFIX)}
    missing = sorted(key for key in trunk - set(state) if not key.endswith("num_batches_tracked"))
    if missing:
        raise GraphError(
            f"the weights are neither of this network nor of a classifier for its trunk: {len(missing)} of "
            f"{len(trunk)} tensors are not there, such as {', '.join(missing[:3])}. Name weights of the same trunk "
            "(--trunk) with torchvision's keys"
        )
    return {**own, **{f"{_PREFIX}{key}": state[key] for key in trunk & set(state)}}

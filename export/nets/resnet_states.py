"""State dicts of ResNets: what those of torchvision and of the usual CIFAR networks are of, and the names in them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from artifacts import GraphError
from export.nets.family import FittedState

IMAGENET_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
CIFAR_WIDTHS = (16, 32, 64)
_CIFAR_SIZE, _IMAGENET_SIZE = 32, 224
_IMAGENET_WIDTH = 64
_OTHERS = "Other networks: torch:package.module:factory"
_BLOCK = re.compile(r"layer(\d+)\.(\d+)\.conv1\.weight")
_RENAMED = ((re.compile(r"^linear\."), "fc."), (re.compile(r"\.shortcut\."), ".downsample."))


def fit_state(state: Mapping[str, Tensor]) -> FittedState:
    """Tells which ResNet a state dict is of; names of CIFAR networks (``linear``, ``shortcut``) become torchvision's.

    Raises:
        GraphError: it is not of a ResNet of this family.
    """
    renamed = {_rename(key): value for key, value in state.items()}
    missing = [key for key in ("conv1.weight", "fc.weight", "layer1.0.conv1.weight") if key not in renamed]
    if missing:
        raise GraphError(
            f"the weights have no {', '.join(missing)}, so they are not of a ResNet: they begin with "
            f"{', '.join(list(state)[:4])}. {_OTHERS}"
        )
    stem, answer = renamed["conv1.weight"], renamed["fc.weight"]
    depth, small = _find_depth(renamed)
    options: dict[str, Any] = {"depth": depth, "classes": len(answer)}
    if small:
        projects = any(".downsample." in key for key in renamed)
        options["shortcut"] = "projection" if projects else "padding"
    keeps_pixels = stem.shape[-1] == 3
    options["stem"] = "auto" if keeps_pixels == small else "cifar" if keeps_pixels else "imagenet"
    size = _CIFAR_SIZE if keeps_pixels else _IMAGENET_SIZE
    return FittedState(options=options, channels=int(stem.shape[1]), size=size, state=renamed)


def _rename(key: str) -> str:
    for pattern, new in _RENAMED:
        key = pattern.sub(new, key)
    return key


def _find_depth(state: Mapping[str, Tensor]) -> tuple[int, bool]:
    """Returns the depth, and whether it is one of the CIFAR style."""
    found = [match for key in state if (match := _BLOCK.fullmatch(key))]
    layers = range(1, 1 + max(int(match[1]) for match in found))
    blocks = tuple(sum(int(match[1]) == layer for match in found) for layer in layers)
    bottleneck = "layer1.0.conv3.weight" in state
    first = state["layer1.0.conv1.weight"]
    inner, second = len(first), state.get("layer1.0.conv2.weight")
    small = blocks == (blocks[0],) * 3 and not bottleneck and inner == CIFAR_WIDTHS[0]
    if small:
        return 6 * blocks[0] + 2, True
    plain = second is not None and second.shape[1] == inner == _IMAGENET_WIDTH
    for depth, expected in IMAGENET_BLOCKS.items():
        if blocks == expected and bottleneck == (depth >= 50) and plain:
            return depth, False
    kind = "bottlenecks" if bottleneck else "blocks of two convolutions"
    raise GraphError(
        f"the weights have {', '.join(map(str, blocks))} {kind} with {inner} channels inside the first; there are "
        f"ResNets with 3 times as many blocks of {CIFAR_WIDTHS[0]} channels and "
        f"{', '.join(map(str, IMAGENET_BLOCKS))} of {_IMAGENET_WIDTH}, without groups. {_OTHERS}"
    )

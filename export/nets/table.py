"""The table of network families and the kinds of exit heads, by name; loads no torch.

A family is one file of this folder, which defines a ``Family`` called ``FAMILY``, and one line below.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

from artifacts import MissingExtraError, UsageError, unknown_name

if TYPE_CHECKING:
    from export.nets.family import Family

FAMILIES = {
    "mobilenetv2": "export.nets.mobilenetv2",
    "posenet": "export.nets.dense.posenet",
    "resnet": "export.nets.resnet",
    "segmentation": "export.nets.dense.segmentation",
    "vgg16": "export.nets.vgg",
}
HEADS = ("pooled", "complex", "simple")  # the first is the default

_ANNOUNCED = ("bert",)


class NetConfig(Protocol):
    """The options that every family has; each adds its own."""

    @property
    def classes(self) -> int:
        """How many classes the network tells apart."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""


def find_family(name: str) -> Family:
    """Returns a family by its name, loading torch.

    Raises:
        UsageError: there is no such family, or not yet.
        MissingExtraError: torch, or what else training needs, is not installed.
    """
    if name in _ANNOUNCED:
        raise UsageError(
            f"the family '{name}' is not available yet; there are {', '.join(FAMILIES)} and any ONNX file: "
            "python -m export path/to/model.onnx --segments"
        )
    if name not in FAMILIES:
        raise unknown_name("family", name, FAMILIES)
    try:
        family: Family = importlib.import_module(FAMILIES[name]).FAMILY
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"", "artifacts", "engines", "export"}:
            raise
        raise MissingExtraError(package, "train") from error
    return family

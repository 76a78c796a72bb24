"""The table of network families and the kinds of exit heads, by name; loads no torch.

A family is one file of this folder, which defines a ``Family`` called ``FAMILY``, and one line below.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

from artifacts import MissingExtraError, unknown_name

if TYPE_CHECKING:
    from export.nets.family import Family

FAMILIES = {
    "bert": "export.nets.bert",
    "mobilenetv2": "export.nets.mobilenetv2",
    "posenet": "export.nets.dense.posenet",
    "resnet": "export.nets.resnet",
    "segmentation": "export.nets.dense.segmentation",
    "vgg16": "export.nets.vgg",
}
HEADS = ("pooled", "complex", "simple")  # the first is the default

TOKEN_HEAD_KINDS = ("mean", "pooler")  # of networks of tokens; the first is the default
HEAD_KINDS = (*HEADS, *TOKEN_HEAD_KINDS)


class NetConfig(Protocol):
    """The options that every family has; each adds its own."""

    @property
    def classes(self) -> int:
        """How many classes the network tells apart."""


def find_family(name: str) -> Family:
    """Returns a family by its name, loading torch.

    Raises:
        UsageError: there is no such family.
        MissingExtraError: torch, or what else training needs, is not installed.
    """
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

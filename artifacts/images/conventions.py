"""Conventions: the usual ways in which networks want their pixels, by name, and one written down field by field.

``--preprocess`` names one. A convention says how values are scaled and cropped; size, channels and layout are those of
the network's input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from artifacts.codec import from_plain, to_plain
from artifacts.errors import GraphError, SchemaError, UsageError, unknown_name
from artifacts.images.preprocessing import Preprocessing, name_channels

_CROPPED = 0.875  # of the shorter side: 224 of 256
_CROPPED_FROM = 128  # pixels; smaller networks were not trained on photographs of 256 pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """One usual way to prepare pixels.

    Attributes:
        name: for ``--preprocess``.
        meaning: in a few words.
        scale, mean, std, channel_order, interpolation: as in ``Preprocessing``.
        coloured: it is for three channels alone.
        cropped: the centre is cut from an image whose shorter side is somewhat larger; otherwise images are squashed.
    """

    name: str
    meaning: str
    scale: float
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channel_order: str = "RGB"
    interpolation: str = "bicubic"
    coloured: bool = False
    cropped: bool = False

    def fit(self, plain: Preprocessing) -> Preprocessing:
        """Returns the convention for the size, channels and layout of a network.

        Raises:
            UsageError: it is for three channels, and the network takes another number.
        """
        wanted = self.renumber(plain)
        if not self.cropped:
            return replace(wanted, resize="squash", shorter_side=None, interpolation=self.interpolation)
        side = max(plain.height, plain.width)
        shorter = side if min(plain.height, plain.width) < _CROPPED_FROM else round(side / _CROPPED)
        return replace(wanted, resize="centre-crop", shorter_side=shorter, interpolation=self.interpolation)

    def renumber(self, now: Preprocessing) -> Preprocessing:
        """Returns ``now`` with the convention's numbers and channel order; how images are resized stays.

        Raises:
            UsageError: as ``fit``.
        """
        if self.coloured and now.channels != 3:
            raise UsageError(
                f"'{self.name}' has numbers for red, green and blue; the network takes {now.channels} channel(s). "
                f"Known for any number: {', '.join(found.name for found in CONVENTIONS if not found.coloured)}"
            )
        order = self.channel_order if now.channels == 3 else now.channel_order
        return replace(now, scale=self.scale, mean=self.mean, std=self.std, channel_order=order)


CONVENTIONS = (
    Convention(
        name="imagenet", meaning="ImageNet's mean and spread per channel, as torchvision", scale=1 / 255,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear", coloured=True, cropped=True,
    ),
    Convention(
        name="inception", meaning="pixels from -1 to 1", scale=1 / 255, mean=(0.5,), std=(0.5,), cropped=True,
    ),
    Convention(name="unit", meaning="pixels from 0 to 1", scale=1 / 255),
    Convention(name="raw", meaning="pixels from 0 to 255", scale=1.0),
    Convention(
        name="caffe-bgr", meaning="pixels from 0 to 255 without ImageNet's mean, in the order BGR", scale=1.0,
        mean=(103.939, 116.779, 123.68), channel_order="BGR", interpolation="bilinear", coloured=True, cropped=True,
    ),
)  # fmt: skip


def find_convention(name: str) -> Convention:
    """Returns the convention of a name.

    Raises:
        UsageError: there is none.
    """
    for found in CONVENTIONS:
        if found.name == name:
            return found
    raise unknown_name("preprocessing", name, [found.name for found in CONVENTIONS])


def plain_preprocessing(row_shape: tuple[int, ...], *, name: str, dtype: str) -> Preprocessing:
    """Returns the preprocessing for an input of which no more is known than the shape of an image.

    Args:
        row_shape: (C, H, W), or (H, W, C) where the last axis alone can be that of 1 or 3 channels.
        name, dtype: of the network's input; one of integers takes bytes as they are, of int8 less 128.

    Raises:
        GraphError: that is no shape of an image.
    """
    if len(row_shape) != 3:
        raise GraphError(
            f"input '{name}' {dtype} {row_shape} is not an image (C, H, W) or (H, W, C): bring samples as an object "
            "of your own with --data module:object"
        )
    last = row_shape[0] not in (1, 3) and row_shape[2] in (1, 3)
    height, width, channels = row_shape if last else (row_shape[1], row_shape[2], row_shape[0])
    order, count = name_channels(channels)
    return Preprocessing(
        height=height, width=width, channel_order=order, channel_count=count, layout="NHWC" if last else "NCHW",
        scale=1.0 if np.dtype(dtype).kind in "iu" else 1 / 255, mean=(128.0 if dtype == "int8" else 0.0,),
    )  # fmt: skip


def fit_fields(stated: Mapping[str, Any], plain: Preprocessing, *, where: str) -> Preprocessing:
    """Returns what some fields of ``Preprocessing`` say, the others as ``plain`` has them.

    Args:
        stated: field -> value, as in JSON.
        plain: of the network's input.
        where: what says so, for messages.

    Raises:
        UsageError: a field is unknown, of the wrong type, or contradicts the network's input.
        InputError: the values contradict each other.
    """
    if "in_graph" in stated:
        raise UsageError(f"{where}: in_graph is not to be stated; export with --input uint8")
    unknown = sorted(set(stated) - {field.name for field in fields(Preprocessing)})
    if unknown:
        names = [field.name for field in fields(Preprocessing) if field.name != "in_graph"]
        raise unknown_name(f"field of the preprocessing in {where}", unknown[0], names)
    try:
        found = from_plain(Preprocessing, {**to_plain(plain), **stated})
    except SchemaError as error:
        raise UsageError(f"{where}: {error}") from error
    if found.row_shape != plain.row_shape:
        raise UsageError(
            f"{where} describes images of {found.row_shape} ({found.layout}), and the network takes {plain.row_shape}; "
            "leave out height, width, channel_order and layout to take them from the network"
        )
    return found

"""Preprocessing: how a network wants its input images; part of ``model.json`` and of the bundle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from artifacts.errors import InputError, unknown_name

RESIZES = ("squash", "centre-crop")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
CHANNEL_ORDERS = ("RGB", "BGR", "L", "any")
LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """The steps from an image to one row of a network's input: resize, crop, order, scale, normalise, lay out.

    A pixel value ``p`` in 0..255 becomes ``(p * scale - mean) / std``, per channel.

    Attributes:
        height, width: of the image that the network takes, in pixels.
        resize: ``squash`` resizes to ``height`` x ``width`` whatever the shape of the image; ``centre-crop`` resizes
            its shorter side to ``shorter_side`` pixels and cuts ``height`` x ``width`` from the centre.
        shorter_side: for ``centre-crop``, in pixels; ``None`` with ``squash``.
        interpolation: of the resize, with antialiasing, by Pillow's name.
        channel_order: ``RGB``, ``BGR``, ``L`` for one channel of luminance, or ``any`` for arrays of ``channel_count``
            channels that are no picture, multispectral images for instance.
        channel_count: for ``any``; ``None`` with the others.
        scale: the first factor of pixel values: 1/255 for networks that take values in [0, 1], 1 for 0..255.
        mean, std: per channel, of the scaled values; one number stands for all channels.
        layout: ``NCHW`` or ``NHWC``.
    """

    height: int
    width: int
    resize: str = "squash"
    shorter_side: int | None = None
    interpolation: str = "bicubic"
    channel_order: str = "RGB"
    channel_count: int | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str = "NCHW"

    def __post_init__(self) -> None:
        for what, name, names in (
            ("resize", self.resize, RESIZES),
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("channel order", self.channel_order, CHANNEL_ORDERS),
            ("layout", self.layout, LAYOUTS),
        ):
            if name not in names:
                raise unknown_name(f"{what} of the preprocessing", name, names)
        if self.height < 1 or self.width < 1:
            raise InputError(f"preprocessing: expected a size of at least 1 x 1, got {self.height} x {self.width}")
        if (self.channel_count is None) != (self.channel_order != "any") or self.channel_count == 0:
            raise InputError(
                f"preprocessing: a channel_count of at least 1 goes with channel order 'any' alone, got "
                f"{self.channel_count} with '{self.channel_order}'"
            )
        if (self.shorter_side is None) != (self.resize == "squash"):
            raise InputError(
                f"preprocessing: shorter_side goes with resize 'centre-crop' alone, got {self.shorter_side} with "
                f"'{self.resize}'"
            )
        if self.shorter_side is not None and self.shorter_side < max(self.height, self.width):
            raise InputError(
                f"preprocessing: {self.height} x {self.width} cannot be cut from an image whose shorter side is "
                f"{self.shorter_side}; expected at least {max(self.height, self.width)}"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, self.channels) or not np.isfinite(values).all():
                raise InputError(
                    f"preprocessing: {name} {list(values)}: expected one finite number, or {self.channels}, one per "
                    "channel"
                )
        if not np.isfinite(self.scale) or self.scale <= 0 or min(self.std) <= 0:
            raise InputError(f"preprocessing: scale {self.scale} and std {list(self.std)} must be positive")

    @property
    def channels(self) -> int:
        """The number of channels that the network takes."""
        if self.channel_count is not None:
            return self.channel_count
        return 1 if self.channel_order == "L" else 3

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Scales and normalises pixel values, the last step before the network.

        Args:
            pixels: (N, C, H, W) or (N, H, W, C), as ``layout`` says, of any real dtype, with values in 0..255.

        Returns:
            float32 of the same shape.
        """
        mean, std = (np.asarray(values, np.float64) for values in (self.mean, self.std))
        along = (-1, 1, 1) if self.layout == "NCHW" else (-1,)
        factor = np.float32(self.scale / std).reshape(along)
        shift = np.float32(mean / std).reshape(along)
        normalised: np.ndarray = pixels.astype(np.float32) * factor - shift
        return normalised


def name_channels(count: int) -> tuple[str, int | None]:
    """Returns the ``channel_order`` and ``channel_count`` of images of which only the number of channels is known."""
    order = {1: "L", 3: "RGB"}.get(count, "any")
    return order, count if order == "any" else None

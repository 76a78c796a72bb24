"""Preprocessing: how a network wants its input images; part of ``model.json`` and of the bundle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from artifacts.errors import InputError, unknown_name

RESIZES = ("squash", "centre-crop", "squash-crop")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
CHANNEL_ORDERS = ("RGB", "BGR", "L", "any")
LAYOUTS = ("NCHW", "NHWC")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """The steps from an image to one row of a network's input: resize, crop, order, scale, normalise, lay out.

    A pixel value ``p`` in 0..255 becomes ``(p * scale - mean) / std``, per channel; where ``in_graph``, the network
    does that itself and takes the bytes.

    Attributes:
        height, width: of the image that the network takes, in pixels.
        resize: ``squash`` resizes to ``height`` x ``width`` whatever the shape of the image; ``centre-crop`` resizes
            its shorter side to ``shorter_side`` pixels and cuts ``height`` x ``width`` from the centre;
            ``squash-crop`` resizes both sides to ``shorter_side`` and cuts in the same way.
        shorter_side: in pixels; ``None`` with ``squash``.
        interpolation: of the resize, with antialiasing, by Pillow's name.
        channel_order: ``RGB``, ``BGR``, ``L`` for one channel of luminance, or ``any`` for arrays of ``channel_count``
            channels that are no picture, multispectral images for instance.
        channel_count: for ``any``; ``None`` with the others.
        scale: the first factor of pixel values: 1/255 for networks that take values in [0, 1], 1 for 0..255.
        mean, std: per channel, of the scaled values; one number stands for all channels.
        layout: ``NCHW`` or ``NHWC``.
        in_graph: the network scales and normalises by itself: it was exported with ``--input uint8``.
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
    in_graph: bool = False

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
                f"preprocessing: shorter_side goes with resize 'centre-crop' and 'squash-crop' alone, got "
                f"{self.shorter_side} with '{self.resize}'"
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

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """The shape of one image in the network's layout."""
        if self.layout == "NHWC":
            return (self.height, self.width, self.channels)
        return (self.channels, self.height, self.width)

    def normalise(self, pixels: np.ndarray) -> np.ndarray:
        """Scales and normalises pixel values, the last step before the network.

        Args:
            pixels: (N, C, H, W) or (N, H, W, C), as ``layout`` says, of any real dtype, with values in 0..255.

        Returns:
            float32 of the same shape; the pixels as they are where the network normalises them itself.
        """
        if self.in_graph:
            return pixels
        factor, shift = self.factors()
        normalised: np.ndarray = pixels.astype(np.float32) * factor - shift
        return normalised

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns what pixels are multiplied by and what is then subtracted, float32, shaped for one row."""
        mean, std = (np.asarray(values, np.float64) for values in (self.mean, self.std))
        along = (-1, 1, 1) if self.layout == "NCHW" else (-1,)
        return np.float32(self.scale / std).reshape(along), np.float32(mean / std).reshape(along)

    def prepare(self, pixels: np.ndarray, dtype: str) -> np.ndarray:
        """Returns the network's input for uint8 pixels in its size, order and layout: normalised, in its type.

        Args:
            pixels: uint8 (N, C, H, W) or (N, H, W, C), as ``layout`` says.
            dtype: the numpy name of the network's input type.
        """
        return self.normalise(pixels).astype(dtype, copy=False)

    def check_dtype(self, dtype: str) -> None:
        """Refuses a normalisation whose values an input of integers cannot hold.

        Raises:
            InputError: they are fractions, or out of its range.
        """
        if np.dtype(dtype).kind not in "iu" or self.in_graph:
            return
        limits = np.iinfo(dtype)
        every = np.arange(256, dtype=np.float32).reshape((-1, 1) if self.layout == "NHWC" else (-1, 1, 1, 1))
        values = self.normalise(every)
        whole = np.abs(values - np.round(values)).max() < 1e-3
        if not whole or values.min() < limits.min or values.max() > limits.max:
            raise InputError(
                f"preprocessing: the network's input is {dtype}, which cannot hold values from {values.min():g} to "
                f"{values.max():g} in steps of {self.scale / max(self.std):g}; an input of bytes takes pixels as they "
                "are: scale 1, mean 0, std 1 (raw)"
            )

    def describe(self) -> str:
        """Returns the steps in words, for people."""
        size = f"{self.height} x {self.width}"
        resized = {
            "squash": f"resized to {size}",
            "centre-crop": f"shorter side to {self.shorter_side}, {size} from the centre",
            "squash-crop": f"resized to {self.shorter_side} x {self.shorter_side}, {size} from the centre",
        }[self.resize]
        order = f"{self.channels} channels" if self.channel_order == "any" else self.channel_order
        scaled = "p" if self.scale == 1 else f"p * {self.scale:g}" if self.scale < 1e-4 else f"p / {1 / self.scale:g}"
        if self.mean == (0.0,) and self.std == (1.0,):
            numbers = f"pixels {scaled}"
        else:
            mean, spread = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
            numbers = f"pixels ({scaled} - mean) / spread with mean {mean} and spread {spread}"
        inside = ", inside the network" if self.in_graph else ""
        return f"{order}, {resized} ({self.interpolation}), {numbers}{inside}, {self.layout}"


def name_channels(count: int) -> tuple[str, int | None]:
    """Returns the ``channel_order`` and ``channel_count`` of images of which only the number of channels is known."""
    order = {1: "L", 3: "RGB"}.get(count, "any")
    return order, count if order == "any" else None

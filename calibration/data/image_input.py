"""ImageInput: the one input of a network that takes images, and the preprocessing that leads to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from artifacts import GraphError, Model, Preprocessing, plain_preprocessing

CHUNK_ROWS = 256
"""Images that are looked at together where all of a part are gone through."""
MEASURED_IMAGES = 5_000
"""Images in files from which mean and spread are taken, evenly spaced, where a network does not state its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """How images become one input of a network.

    Attributes:
        name: of the network's input.
        dtype: its numpy name; networks that take bytes get the pixels as they are.
        preprocessing: size, channels, layout and normalisation.
        stated: False where the network does not state its normalisation, so that it is taken from the data.
    """

    name: str
    dtype: str
    preprocessing: Preprocessing
    stated: bool

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """The shape of one image in the network's layout."""
        return self.preprocessing.row_shape

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the network's input for uint8 pixels in its size and layout: normalised, in its type."""
        return self.preprocessing.prepare(pixels, self.dtype)

    def normalised_by(self, mean: float, std: float) -> ImageInput:
        """Returns the input with another normalisation of pixels in [0, 1]."""
        return replace(self, preprocessing=replace(self.preprocessing, mean=(mean,), std=(std,)))


def image_input(row_shape: tuple[int, ...], *, name: str = "images", dtype: str = "float32") -> ImageInput:
    """Returns the input of a network of which no more is known than the shape of an image.

    Args:
        row_shape: (C, H, W), or (H, W, C) where the last axis alone can be that of 1 or 3 channels.
        name: of the network's input.
        dtype: its numpy name.

    Raises:
        GraphError: that is no shape of an image.
    """
    preprocessing = plain_preprocessing(row_shape, name=name, dtype=dtype)
    return ImageInput(name=name, dtype=dtype, preprocessing=preprocessing, stated=np.dtype(dtype).kind in "iu")


def image_input_of(model: Model) -> ImageInput:
    """Returns the image input of a network, with the preprocessing that the model states.

    Raises:
        GraphError: the network takes something else than one image.
    """
    inputs = model.spec.full.inputs
    if len(inputs) != 1:
        described = ", ".join(f"{spec.name} {spec.dtype} {spec.row_shape}" for spec in inputs)
        raise GraphError(
            f"image files and arrays go into networks with one input; {model.spec.name} takes {described}: bring the "
            "samples as an object of your own with --data module:object"
        )
    found = image_input(inputs[0].row_shape, name=inputs[0].name, dtype=inputs[0].dtype)
    stated = model.spec.stated_preprocessing()
    return found if stated is None else replace(found, preprocessing=stated, stated=True)


def measure_normalisation(chunks: Iterable[np.ndarray]) -> tuple[float, float]:
    """Returns mean and spread of pixel values in [0, 1], to four digits.

    Args:
        chunks: uint8 arrays of any shape; gone through once, so that they need not fit into memory together.
    """
    counts = np.zeros(256, np.int64)
    for chunk in chunks:
        counts += np.bincount(chunk.reshape(-1), minlength=256)
    values = (np.arange(256, dtype=np.float32) / 255).astype(np.float64)
    shares = counts / max(1, int(counts.sum()))
    mean = float(shares @ values)
    spread = float(np.sqrt(shares @ (values - mean) ** 2))
    return round(mean, 4), max(round(spread, 4), 1e-3)

"""Ranges: random images over the whole range of a network's input, and what that may be where nobody says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from artifacts import Preprocessing, plain_preprocessing
from export.graphs.loading import LoadedGraph

_BRIGHTNESS = (0.5, 120.0, 215.0)
_CONTRAST = (0.5, 45.0, 60.0)
_ASSUMED = {1 / 255: "pixels from 0 to 1", 1.0: "pixels from 0 to 255"}  # scale -> its words


def draw_images(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draws uint8 noise (count, ...): the first image is nearly black, the second usual, the third bright; each other
    one has a brightness and a contrast of its own."""
    bright, contrast = random.uniform(20, 230, shape[0]), random.uniform(10, 70, shape[0])
    known = min(shape[0], len(_BRIGHTNESS))
    bright[:known], contrast[:known] = _BRIGHTNESS[:known], _CONTRAST[:known]
    along = (-1, *([1] * (len(shape) - 1)))
    noise = random.standard_normal(shape, dtype=np.float32) * contrast.reshape(along) + bright.reshape(along)
    return np.clip(np.round(noise), 0, 255).astype(np.uint8)


def plain_image(loaded: LoadedGraph) -> Preprocessing | None:
    """Returns the plain preprocessing of a graph's only input, if that may be an image of one or three channels."""
    if len(loaded.inputs) != 1 or len(loaded.inputs[0].row_shape) != 3:
        return None
    spec = loaded.inputs[0]
    found = plain_preprocessing(spec.row_shape, name=spec.name, dtype=spec.dtype)
    return found if found.channels in (1, 3) else None


def assume_pixels(loaded: LoadedGraph) -> Iterator[tuple[str, Preprocessing]]:
    """Yields the ranges that images may have, in words and as a preprocessing, where nobody says which they have."""
    image = plain_image(loaded)
    if loaded.pixels is None and image is not None and loaded.inputs[0].dtype.startswith("float"):
        for scale, words in _ASSUMED.items():
            yield words, replace(image, scale=scale)

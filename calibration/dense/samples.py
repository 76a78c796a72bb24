"""DenseImages: images whose right answers are masks or places of joints; both move with the image in training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from artifacts import Preprocessing
from calibration.data.files import FileImages


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moves:
    """How the images of a batch were moved in training.

    Attributes:
        down, right: (n,) int64 pixels of the network's input by which each crop lies below and right of the image's
            own place; negative ones above and left.
        mirrored: (n,) bool; mirrored after it was moved.
        size: (height, width) of the network's input.
    """

    down: np.ndarray
    right: np.ndarray
    mirrored: np.ndarray
    size: tuple[int, int]


class Truth(Protocol):
    """The right answers to some images."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns the right answers (n, ...) to some images, as the task wants them."""

    def move(self, targets: np.ndarray, moves: Moves) -> np.ndarray:
        """Returns the right answers to images that were moved."""

    def digest(self) -> str:
        """Returns the SHA-256 of all right answers in hex."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseImages:
    """Images with dense answers; an implementation of ``ImageSamples``.

    Attributes:
        images: the pictures and their parts.
        truth: the right answers, by the same indices.
        classes: names of the classes, or of the joints.
    """

    images: FileImages
    truth: Truth
    classes: tuple[str, ...] = ()
    _digest: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the data."""
        return self.images.name

    @property
    def labelled(self) -> bool:
        """Always: images without answers are plain images."""
        return True

    @property
    def preprocessing(self) -> Preprocessing:
        """The way from an image to a row of the network's input."""
        return self.images.preprocessing

    @property
    def split_seed(self) -> int | None:
        """The seed that decided about the parts; ``None`` where the data came with them."""
        return self.images.split_seed

    def indices_of(self, part: str, /) -> np.ndarray:
        """Returns the indices of a part."""
        return self.images.indices_of(part)

    def inputs(self, indices: np.ndarray, /) -> Mapping[str, np.ndarray]:
        """Returns the network's input for some images."""
        return self.images.inputs(indices)

    def pixels(self, indices: np.ndarray, /) -> np.ndarray:
        """Returns uint8 images in the network's size and layout."""
        return self.images.pixels(indices)

    def prepare(self, pixels: np.ndarray, /) -> Mapping[str, np.ndarray]:
        """Returns the network's input for such pixels."""
        return self.images.prepare(pixels)

    def targets(self, indices: np.ndarray, /) -> np.ndarray:
        """Returns the right answers to some images."""
        return self.truth.read(indices)

    def move_targets(self, targets: np.ndarray, moves: Moves, /) -> np.ndarray:
        """Returns the right answers to images that were moved."""
        return self.truth.move(targets, moves)

    def digests(self) -> Mapping[str, str]:
        """Returns the digests of the images, the right answers and the index set of each part.

        Raises:
            InputError: an image or a mask cannot be read.
        """
        if not self._digest:
            self._digest.append(self.truth.digest())
        return {**self.images.digests(), "labels": self._digest[0]}

"""StoredImages: what all images have in common that PAME reads itself, wherever they lie."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from artifacts import Preprocessing, array_digest, unknown_name
from calibration.data.image_input import ImageInput
from calibration.data.samples import PARTS, check_parts, labels_missing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StoredImages:
    """Images with labels or without; an implementation of ``ImageSamples`` but for the pixels.

    Attributes:
        name: for messages and records.
        labels: (N,) int64, positions in ``classes``; ``None`` where they are not given.
        classes: class names; none without labels.
        parts: part -> ascending indices, int64; pairwise disjoint.
        input: how an image becomes the network's input.
        split_seed: what decided about the parts; ``None`` where the data came with them.
    """

    name: str
    labels: np.ndarray | None
    classes: tuple[str, ...]
    parts: Mapping[str, np.ndarray]
    input: ImageInput
    split_seed: int | None = None

    def __post_init__(self) -> None:
        check_parts(self.name, self.parts, count=len(self))

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def pixels(self, indices: np.ndarray, /) -> np.ndarray:
        """Returns uint8 images in the network's size and layout."""

    @abstractmethod
    def content_digest(self) -> str:
        """Returns the SHA-256 of all images in hex."""

    @property
    def labelled(self) -> bool:
        """Whether the true classes are given."""
        return self.labels is not None

    @property
    def preprocessing(self) -> Preprocessing:
        """The way from an image to a row of the network's input."""
        return self.input.preprocessing

    def indices_of(self, part: str, /) -> np.ndarray:
        """Returns the indices of a part."""
        if part not in self.parts:
            raise unknown_name("part of the data", part, PARTS)
        return self.parts[part]

    def prepare(self, pixels: np.ndarray, /) -> dict[str, np.ndarray]:
        """Returns the network's input for such pixels."""
        return {self.input.name: self.input.prepare(pixels)}

    def inputs(self, indices: np.ndarray, /) -> dict[str, np.ndarray]:
        """Returns the network's input for some images."""
        return self.prepare(self.pixels(indices))

    def targets(self, indices: np.ndarray, /) -> np.ndarray:
        """Returns the labels (n,) int64 of some images.

        Raises:
            UsageError: there are none.
        """
        if self.labels is None:
            raise labels_missing(self.name)
        found: np.ndarray = self.labels[indices]
        return found

    def digests(self) -> dict[str, str]:
        """Returns the digests of the images, the labels (if there are any) and the index set of each part.

        Raises:
            InputError: an image cannot be read.
        """
        parts = {f"indices.{part}": array_digest(self.parts[part]) for part in PARTS}
        labels = {} if self.labels is None else {"labels": array_digest(self.labels)}
        return {"images": self.content_digest(), **labels, **parts}

    def measured_indices(self) -> np.ndarray:
        """Returns the images whose mean and spread count: those of the train part, or all where that is empty."""
        return self.parts["train"] if len(self.parts["train"]) else np.arange(len(self))

"""FileImages: images in files, listed at once and decoded when they are asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from artifacts import (
    InputError,
    Preprocessing,
    array_digest,
    check_image,
    decode_image,
    file_digest,
    unknown_name,
)
from calibration.data.image_input import CHUNK_ROWS, MEASURED_IMAGES, ImageInput, measure_normalisation
from calibration.data.samples import PARTS, check_parts, in_chunks, labels_missing


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileImages:
    """Images in files, with labels or without; an implementation of ``ImageSamples``.

    What is held in memory is a path, a label and an index for each image, however large the images are.

    Attributes:
        name: for messages and records.
        root: the folder that the paths are relative to.
        paths: (N,) bytes.
        labels: (N,) int64, positions in ``classes``; ``None`` where they are not given.
        classes: class names; none without labels.
        parts: part -> ascending indices into ``paths``, int64; pairwise disjoint.
        input: how an image becomes the network's input.
        split_seed: what decided about the parts; ``None`` where the data came with them.
    """

    name: str
    root: Path
    paths: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    parts: Mapping[str, np.ndarray]
    input: ImageInput
    split_seed: int | None = None
    _read_digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_parts(self.name, self.parts, count=len(self.paths))

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

    def path(self, index: int) -> Path:
        """Returns the file of an image."""
        return self.root / os.fsdecode(self.paths[index])

    def pixels(self, indices: np.ndarray, /) -> np.ndarray:
        """Decodes images: uint8 in the network's size and layout.

        Raises:
            InputError: a file is no image; with its name.
        """
        found = np.empty((len(indices), *self.input.row_shape), np.uint8)
        for row, index in enumerate(indices):
            found[row] = decode_image(self.path(index), self.preprocessing)
        return found

    def prepare(self, pixels: np.ndarray, /) -> dict[str, np.ndarray]:
        """Returns the network's input for such pixels."""
        return {self.input.name: self.input.prepare(pixels)}

    def inputs(self, indices: np.ndarray, /) -> dict[str, np.ndarray]:
        """Decodes images and returns the network's input for them."""
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
        """Returns the digests of the files' bytes, the labels (if there are any) and the index set of each part.

        The files are read once per process, and the header of each is looked at: what is no image is refused here.

        Raises:
            InputError: a file cannot be read, or is no image.
        """
        if not self._read_digests:
            content = hashlib.sha256(f"files ({len(self.paths)},) ".encode())
            for index in range(len(self.paths)):
                path = self.path(index)
                check_image(path)
                content.update(bytes.fromhex(_digest(path)))
            self._read_digests["images"] = content.hexdigest()
        parts = {f"indices.{part}": array_digest(self.parts[part]) for part in PARTS}
        labels = {} if self.labels is None else {"labels": array_digest(self.labels)}
        return {**self._read_digests, **labels, **parts}

    def with_own_normalisation(self) -> FileImages:
        """Returns the images normalised by the mean and spread of the train part, or of all when that is empty.

        Of a large part ``MEASURED_IMAGES`` are taken, evenly spaced.
        """
        train = self.parts["train"] if len(self.parts["train"]) else np.arange(len(self.paths))
        step = max(1, len(train) // MEASURED_IMAGES)
        chunks = (self.pixels(chunk) for chunk in in_chunks(train[::step], CHUNK_ROWS))
        return replace(self, input=self.input.normalised_by(*measure_normalisation(chunks)))


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error

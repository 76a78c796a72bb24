"""FileImages: encoded images, listed at once and decoded when they are asked for."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from artifacts import Box, InputError, check_image, decode_image
from calibration.data.image_input import CHUNK_ROWS, MEASURED_IMAGES, measure_normalisation
from calibration.data.samples import in_chunks
from calibration.data.stored import StoredImages

_WHOLE_ENDS = (b"\xff\xd9", b"IEND\xaeB`\x82")  # of JPEG and of PNG


class EncodedFiles(Protocol):
    """Image files by number, wherever they lie."""

    def __len__(self) -> int:
        """How many there are."""

    def read(self, index: int) -> bytes:
        """Returns the content of one; ``InputError`` with its name where that cannot be read."""

    def name(self, index: int) -> str:
        """Returns the name of one for messages."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FolderFiles:
    """Files on disk; in memory is a path for each.

    Attributes:
        root: the folder that the paths are relative to.
        paths: (N,) bytes.
    """

    root: Path
    paths: np.ndarray

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        path = self._path(index)
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{path} cannot be read as an image ({error.strerror or error}); remove or replace it"
            ) from error

    def name(self, index: int) -> str:
        return str(self._path(index))

    def _path(self, index: int) -> Path:
        return self.root / os.fsdecode(self.paths[index])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileImages(StoredImages):
    """Encoded images, with labels or without; an implementation of ``ImageSamples``.

    Attributes:
        files: the images, one after the other.
        boxes: (N, 4) int32: the part of each picture that is the sample (``artifacts.Box``); ``None``: all of it.
    """

    files: EncodedFiles
    boxes: np.ndarray | None = None
    _read_digests: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, indices: np.ndarray, /) -> np.ndarray:
        """Decodes images: uint8 in the network's size and layout.

        Raises:
            InputError: a file is no image; with its name.
        """
        found = np.empty((len(indices), *self.input.row_shape), np.uint8)
        for row, index in enumerate(indices):
            found[row] = self._decode(int(index), self.files.read(index))
        return found

    def content_digest(self) -> str:
        """Returns the SHA-256 of the files' own digests.

        The files are read once per process and the header of each is looked at; what does not end as its format does is
        decoded. So a file that is no image, or cut off, is refused here, before any work.

        Raises:
            InputError: a file cannot be read, is no image or not a whole one.
        """
        if not self._read_digests:
            found = hashlib.sha256(f"files ({len(self)},) ".encode())
            for index in range(len(self)):
                content = self.files.read(index)
                found.update(hashlib.sha256(content).digest())
                check_image(content, name=self.files.name(index))
                if not content.rstrip(b"\0").endswith(_WHOLE_ENDS):
                    self._decode(index, content)
            if self.boxes is not None:
                found.update(np.ascontiguousarray(self.boxes).tobytes())
            self._read_digests.append(found.hexdigest())
        return self._read_digests[0]

    def with_own_normalisation(self) -> FileImages:
        """Returns the images normalised by their own mean and spread, of ``MEASURED_IMAGES`` evenly spaced ones."""
        measured = self.measured_indices()
        step = max(1, len(measured) // MEASURED_IMAGES)
        chunks = (self.pixels(chunk) for chunk in in_chunks(measured[::step], CHUNK_ROWS))
        return replace(self, input=self.input.normalised_by(*measure_normalisation(chunks)))

    def _decode(self, index: int, content: bytes) -> np.ndarray:
        box: Box | None = None
        if self.boxes is not None:
            left, top, right, bottom = (int(side) for side in self.boxes[index])
            box = (left, top, right, bottom)
        return decode_image(content, self.preprocessing, name=self.files.name(index), box=box)

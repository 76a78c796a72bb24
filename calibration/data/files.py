"""FileImages: encoded images, listed at once and decoded when they are asked for, or kept once they are."""

from __future__ import annotations

import hashlib
import logging
import math
import mmap
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from artifacts import Box, InputError, check_image, decode_image
from calibration.data.image_input import CHUNK_ROWS, MEASURED_IMAGES, measure_normalisation
from calibration.data.samples import in_chunks
from calibration.data.stored import StoredImages

_log = logging.getLogger("pame.calibration")
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


class DecodedPixels:
    """The pixels of some images, each in a place of its own, filled by whichever process decodes it first.

    Of images that are gone through again and again in any order, which ones are kept makes no difference; so these are
    settled beforehand, and nothing is ever driven out. The memory is taken as it is filled. An image is asked for once
    in an epoch, and workers end with it: nobody reads what another is about to write.
    """

    def __init__(self, indices: np.ndarray, row_shape: tuple[int, ...], memory: int) -> None:
        """Makes room.

        Args:
            indices: of the images; if there are too many, the first are kept.
            row_shape: of one image's uint8 pixels.
            memory: bytes for all of them.
        """
        fitting = min(len(indices), max(0, memory) // (math.prod(row_shape) + 1))
        self._indices: np.ndarray = np.sort(indices[:fitting])
        self._filled: np.ndarray = np.zeros(0, np.uint8)
        self._pixels: np.ndarray = np.zeros((0, *row_shape), np.uint8)
        if fitting == 0:
            return
        try:
            self._filled = np.frombuffer(mmap.mmap(-1, fitting), np.uint8)
            self._pixels = np.frombuffer(mmap.mmap(-1, fitting * math.prod(row_shape)), np.uint8)
        except OSError as error:  # the memory is not granted; then it is slower, and that is all
            _log.warning("decoded images are not kept: %s", error)
            self._indices = self._indices[:0]
            return
        self._pixels = self._pixels.reshape(fitting, *row_shape)

    def __len__(self) -> int:
        """How many images have a place."""
        return len(self._indices)

    def find(self, index: int) -> np.ndarray | None:
        """Returns an image's pixels, to be read only; ``None`` where they are not kept (yet)."""
        place = self._place(index)
        return None if place is None or not self._filled[place] else self._pixels[place]

    def keep(self, index: int, pixels: np.ndarray) -> None:
        """Keeps an image's pixels if it has a place."""
        place = self._place(index)
        if place is not None:
            self._pixels[place] = pixels
            self._filled[place] = 1

    def _place(self, index: int) -> int | None:
        place = int(np.searchsorted(self._indices, index))
        return place if place < len(self._indices) and self._indices[place] == index else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileImages(StoredImages):
    """Encoded images, with labels or without; an implementation of ``ImageSamples``.

    Attributes:
        files: the images, one after the other.
        decoded: where pixels stay once they are decoded; ``None``: nowhere.
        boxes: (N, 4) int32: the part of each picture that is the sample (``artifacts.Box``); ``None``: all of it.
    """

    files: EncodedFiles
    decoded: DecodedPixels | None = None
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
            found[row] = self._read(int(index))
        return found

    def content_digest(self) -> str:
        """Returns the SHA-256 of the files' own digests.

        The files are read once per process and the header of each is looked at; what does not end as its format does is
        decoded. So a file that is no image, or cut off, is refused here, before any work; and images that are in two
        parts are logged.

        Raises:
            InputError: a file cannot be read, is no image or not a whole one.
        """
        if not self._read_digests:
            found = hashlib.sha256(f"files ({len(self)},) ".encode())
            contents = np.zeros(len(self), np.uint64)
            for index in range(len(self)):
                content = self.files.read(index)
                digest = hashlib.sha256(content).digest()
                found.update(digest)
                contents[index] = int.from_bytes(digest[:8], "little")
                check_image(content, name=self.files.name(index))
                if not content.rstrip(b"\0").endswith(_WHOLE_ENDS):
                    self._decode(index, content)
            if self.boxes is not None:
                found.update(np.ascontiguousarray(self.boxes).tobytes())
            else:
                self._log_twins(contents)
            self._read_digests.append(found.hexdigest())
        return self._read_digests[0]

    def _log_twins(self, contents: np.ndarray) -> None:
        """Logs images of which another part holds the same bytes: what is measured on them says too much good.

        Args:
            contents: (N,): equal for equal files.
        """
        for part, others in (("calibrate", ("train",)), ("test", ("train", "calibrate"))):
            own, other = self.parts[part], np.concatenate([self.parts[name] for name in others])
            twins = own[np.isin(contents[own], contents[other])]
            if len(twins):
                first = int(other[contents[other] == contents[twins[0]]][0])
                _log.warning(
                    "%s: %d of the %d images of the %s part are in the %s part too, byte for byte (%s and %s), so that "
                    "figures of them are too good; keep one of each", self.name, len(twins), len(own), part,
                    " or the ".join(others), self.files.name(first), self.files.name(int(twins[0])),
                )  # fmt: skip

    def with_own_normalisation(self) -> FileImages:
        """Returns the images normalised by their own mean and spread, of ``MEASURED_IMAGES`` evenly spaced ones."""
        measured = self.measured_indices()
        step = max(1, len(measured) // MEASURED_IMAGES)
        chunks = (self.pixels(chunk) for chunk in in_chunks(measured[::step], CHUNK_ROWS))
        return replace(self, input=self.input.normalised_by(*measure_normalisation(chunks)))

    def keeping_pixels(self, indices: np.ndarray, memory: int) -> FileImages:
        """Returns the same images, some of which are decoded once and then kept, by this process and by those that it
        forks from now on.

        Args:
            indices: the images that are asked for again and again.
            memory: bytes for their pixels; what does not fit is decoded every time.
        """
        return replace(self, decoded=DecodedPixels(indices, self.input.row_shape, memory))

    def _read(self, index: int) -> np.ndarray:
        found = None if self.decoded is None else self.decoded.find(index)
        if found is None:
            found = self._decode(index, self.files.read(index))
            if self.decoded is not None:
                self.decoded.keep(index, found)
        return found

    def _decode(self, index: int, content: bytes) -> np.ndarray:
        box: Box | None = None
        if self.boxes is not None:
            left, top, right, bottom = (int(side) for side in self.boxes[index])
            box = (left, top, right, bottom)
        return decode_image(content, self.preprocessing, name=self.files.name(index), box=box)

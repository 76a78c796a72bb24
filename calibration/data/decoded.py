"""DecodedPixels: decoded images in bounded memory that a process shares with the workers that it forks."""

from __future__ import annotations

import logging
import math
import mmap

import numpy as np

_log = logging.getLogger("pame.calibration")


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

"""Masks: the class of every pixel, in a PNG of one byte per pixel, prepared with the geometry of its image."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from artifacts import VOID, InputError, Preprocessing, decode_mask
from calibration.data.files import FolderFiles
from calibration.dense.samples import Moves


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Masks:
    """The masks of some images; an implementation of ``Truth``.

    Attributes:
        files: one per image, in their order.
        wanted: how the network wants its images; size and crop count.
        class_count: how many classes the network tells apart.
        void: values of pixels that belong to no class, besides 255.
    """

    files: FolderFiles
    wanted: Preprocessing
    class_count: int
    void: tuple[int, ...] = ()

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns masks (n, H, W) uint8; pixels of no class are 255.

        Raises:
            InputError: a file is no mask, or holds a class that the network does not know.
        """
        found = np.empty((len(indices), self.wanted.height, self.wanted.width), np.uint8)
        for row, index in enumerate(indices):
            found[row] = self._read(int(index))
        return found

    def _read(self, index: int) -> np.ndarray:
        name = self.files.name(index)
        mask = decode_mask(self.files.read(index), self.wanted, name=name)
        for value in self.void:
            mask = np.where(mask == value, np.uint8(VOID), mask)
        values = mask[mask != VOID]
        if values.size and values.max() >= self.class_count:
            raise InputError(
                f"{name} holds the class {values.max()}, and the network tells {self.class_count} apart (0 to "
                f"{self.class_count - 1}). Say which value means no class in classes.json beside the folders, "
                '{"classes": [...], "ignore_index": 11}, or export a network with more --classes'
            )
        return mask

    def move(self, targets: np.ndarray, moves: Moves) -> np.ndarray:
        """Returns masks moved as their images were; what came in from outside belongs to no class."""
        moved = np.full_like(targets, VOID)
        height, width = moves.size
        for row, (down, right) in enumerate(zip(moves.down.tolist(), moves.right.tolist(), strict=True)):
            rows, columns = slice(max(0, down), height + min(0, down)), slice(max(0, right), width + min(0, right))
            there = slice(max(0, -down), height + min(0, -down)), slice(max(0, -right), width + min(0, -right))
            moved[row][there] = targets[row][rows, columns]
        moved[moves.mirrored] = moved[moves.mirrored][:, :, ::-1]
        return moved

    def digest(self) -> str:
        """Returns the SHA-256 of the files' digests, and of what else decides about the classes."""
        found = hashlib.sha256(f"masks {len(self.files)} {self.class_count} {self.void} ".encode())
        for index in range(len(self.files)):
            found.update(hashlib.sha256(self.files.read(index)).digest())
        return found.hexdigest()

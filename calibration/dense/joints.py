"""Joints: where the joints of a person are in a picture, and where they come to lie in the network's input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from artifacts import array_digest
from calibration.dense.samples import Moves


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Joints:
    """The places of joints; an implementation of ``Truth``.

    Attributes:
        places: (N, J, 5) float32, as the task ``pose`` wants its targets: x and y as shares of the width and height of
            the network's input, whether the joint is visible, the head's length as a share of both.
        flip_pairs: joints that change their names in a mirror image.
    """

    places: np.ndarray
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Returns (n, J, 5) float32."""
        found: np.ndarray = self.places[indices]
        return found

    def move(self, targets: np.ndarray, moves: Moves) -> np.ndarray:
        """Returns joints moved as their images were; those that left the image are not visible any more."""
        moved = targets.copy()
        height, width = moves.size
        moved[..., 0] -= moves.right[:, None] / width
        moved[..., 1] -= moves.down[:, None] / height
        turned = moved[moves.mirrored]
        turned[..., 0] = 1 - turned[..., 0]
        for left, right in self.flip_pairs:
            turned[:, [left, right]] = turned[:, [right, left]]
        moved[moves.mirrored] = turned
        inside = ((moved[..., :2] >= 0) & (moved[..., :2] < 1)).all(axis=-1)
        moved[..., 2] *= inside
        return moved

    def digest(self) -> str:
        """Returns the SHA-256 of the places."""
        return array_digest(self.places)

"""Augmented mini-batches of a data set, drawn from a seed and an epoch alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from artifacts import UsageError
from calibration.data.datasets import Dataset, normalise


def epoch_batches(
    data: Dataset, *, batch_size: int, crop_padding: int, seed: int, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the train part once in random order: (images float32 (b, C, H, W) normalised, labels int64 (b,)).

    The last, smaller batch is left out. The same (seed, epoch) gives the same batches, so that a training which is
    continued sees what it would have seen.
    """
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(data.split("train"))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chunk = order[start : start + batch_size]
        images = augment(data.images[chunk], crop_padding, random)
        yield normalise(images, mean=data.mean, std=data.std), data.labels_of(chunk)


def count_batches(data: Dataset, batch_size: int) -> int:
    """Returns how many batches an epoch has.

    Raises:
        UsageError: there are fewer images to train on than one batch takes.
    """
    count = len(data.split("train")) // batch_size
    if count == 0:
        raise UsageError(
            f"{data.name} has {len(data.split('train'))} images to train on, fewer than one batch of {batch_size}; "
            "lower --train-batch-size"
        )
    return count


def augment(images: np.ndarray, padding: int, random: np.random.Generator) -> np.ndarray:
    """Shifts every image by up to ``padding`` pixels and mirrors half of them; uint8 (n, C, H, W), a new array."""
    count, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    out = np.empty_like(images)
    shifts = random.integers(0, 2 * padding + 1, (count, 2))
    mirrored: np.ndarray = random.random((count,)) < 0.5
    for row, (down, right) in enumerate(shifts.tolist()):
        crop = padded[row, :, down : down + height, right : right + width]
        out[row] = crop[..., ::-1] if mirrored[row] else crop
    return out

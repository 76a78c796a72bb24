"""Mini-batches of samples for training, drawn (and images augmented) from a seed and an epoch alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from artifacts import UsageError
from calibration.data.samples import ImageSamples, Samples
from calibration.training.config import FrozenConfig, JointConfig


def epoch_batches(
    samples: Samples, config: FrozenConfig | JointConfig, epoch: int
) -> Iterator[tuple[Mapping[str, np.ndarray], np.ndarray]]:
    """Yields the train part once in random order: (the network's inputs, targets), a batch at a time.

    Images are augmented before they are normalised; other samples come as they are. The last, smaller batch is left
    out. The same (seed, epoch) gives the same batches, so that a training which is continued sees what it would have
    seen.

    Args:
        samples: what is trained on.
        config: batch size, augmentation and seed.
        epoch: number of the epoch, from 0.
    """
    random = np.random.default_rng([config.seed, epoch])
    order = random.permutation(samples.indices_of("train"))
    for start in range(0, len(order) - config.batch_size + 1, config.batch_size):
        chunk = order[start : start + config.batch_size]
        if isinstance(samples, ImageSamples):
            pixels = samples.pixels(chunk)
            if config.augment != "none":
                last, mirror = samples.preprocessing.layout == "NHWC", config.augment == "crop-mirror"
                pixels = augment(pixels, config.crop_padding, random, mirror=mirror, channels_last=last)
            yield samples.prepare(pixels), samples.targets(chunk)
        else:
            yield samples.inputs(chunk), samples.targets(chunk)


def count_batches(samples: Samples, batch_size: int) -> int:
    """Returns how many batches an epoch has.

    Raises:
        UsageError: there are fewer samples to train on than one batch takes.
    """
    available = len(samples.indices_of("train"))
    if available < batch_size:
        raise UsageError(
            f"{samples.name} has {available} samples to train on, fewer than one batch of {batch_size}; "
            "lower --train-batch-size"
        )
    return available // batch_size


def augment(
    images: np.ndarray, padding: int, random: np.random.Generator, *, mirror: bool, channels_last: bool = False
) -> np.ndarray:
    """Shifts every image by up to ``padding`` pixels and, with ``mirror``, mirrors half of them.

    Args:
        images: uint8 (n, C, H, W), or (n, H, W, C) with ``channels_last``.
        padding: pixels.
        random: decides both.
        mirror: for classes that a mirror does not change.
        channels_last: where the axis of the channels is.

    Returns:
        A new array of the same shape.
    """
    if channels_last:
        return augment(images.transpose(0, 3, 1, 2), padding, random, mirror=mirror).transpose(0, 2, 3, 1)
    count, _, height, width = images.shape
    padded = np.pad(images, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    out = np.empty_like(images)
    shifts = random.integers(0, 2 * padding + 1, (count, 2))
    mirrored: np.ndarray = random.random((count,)) < (0.5 if mirror else 0.0)
    for row, (down, right) in enumerate(shifts.tolist()):
        crop = padded[row, :, down : down + height, right : right + width]
        out[row] = crop[..., ::-1] if mirrored[row] else crop
    return out

"""Segmentation: one class per pixel.

The metric is the mean over the classes of intersection over union, *mIoU*. It is one of a whole set of samples: the
pixels of every intersection and union are added up over all of them first. The quality of one sample is the mIoU of
that sample alone, over the classes that occur in it (as the PAME paper measures, ICS'22).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from artifacts.errors import InputError
from artifacts.tasks.protocol import Answers

VOID = 255
"""The value of pixels in a mask that belong to no class and count nowhere."""
_MOST_CLASSES = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """mIoU over logits (n, C, H, W) or classes (n, H, W) as the first output; targets are masks (n, H, W) uint8.

    Attributes:
        class_count: C, where answers are classes and do not tell it; ``None``: as many as masks can hold.
    """

    class_count: int | None = None

    name = "segmentation"
    metric_name = "mIoU"
    quality_name = "mIoU per image"
    confidence = "mean-pixel"
    loss = "pixel-cross-entropy"

    def of_classes(self, count: int) -> Segmentation:
        """Returns the task of a network that tells so many classes apart."""
        return Segmentation(class_count=count)

    def quality(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray:
        counts = self.counts(answers, targets)
        return np.array([self.summarise(row) for row in counts], np.float32)

    def agreement(self, answers: Answers, final: Answers, /) -> np.ndarray:
        pairs = zip(_each_classes(answers[0]), _each_classes(final[0]), strict=True)
        return np.array([(mine == theirs).mean(dtype=np.float64) for mine, theirs in pairs], np.float32)

    def counts(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray:
        """Returns (n, 2 C) float64: the pixels of the intersection of each class, then those of each union."""
        classes = answers[0].shape[1] if answers[0].ndim == 4 else self.class_count or _MOST_CLASSES
        rows = zip(_each_classes(answers[0]), targets, strict=True)
        return np.array([_count(found, mask, classes) for found, mask in rows]).reshape(-1, 2 * classes)

    def summarise(self, counts: np.ndarray, /) -> float:
        intersection, union = np.split(counts, 2)
        occurs = union > 0
        return float((intersection[occurs] / union[occurs]).mean()) if occurs.any() else 1.0

    def predictions(self, _answers: Answers, /) -> np.ndarray | None:
        return None


def _each_classes(answers: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the classes (H, W) of each row; logits are looked at a row at a time, since they are large."""
    for row in answers:
        yield row.argmax(axis=0) if row.ndim == 3 else row


def _count(found: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    if found.shape != mask.shape:
        raise InputError(
            f"segmentation: an answer of {found.shape} pixels cannot be compared with a mask of {mask.shape}; expected "
            "both in the size of the network's input"
        )
    kept = mask != VOID
    true, given = mask[kept].astype(np.int64), found[kept].astype(np.int64)
    if true.size and true.max() >= classes:
        raise InputError(
            f"segmentation: a mask holds class {true.max()}, and the network tells {classes} classes apart (0 to "
            f"{classes - 1}); void pixels are {VOID}"
        )
    together = np.bincount(true * classes + given, minlength=classes * classes).reshape(classes, classes)
    intersection = together.diagonal()
    union = together.sum(axis=0) + together.sum(axis=1) - intersection
    return np.concatenate([intersection, union]).astype(np.float64)

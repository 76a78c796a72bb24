"""Set metrics over classes: the Matthews correlation and F1, decided by the counts of a confusion matrix.

Neither is a mean over samples. A sample adds one to one cell of the matrix (label x answer); the metric follows from
the sum. Both are formulas of Gorodkin 2004 and van Rijsbergen 1979; below 0, which is worse than chance, the Matthews
correlation counts as 0.
"""

from __future__ import annotations

import math

import numpy as np

from artifacts.tasks.classification import Classification
from artifacts.tasks.protocol import Answers


def count_cells(answers: Answers, targets: np.ndarray) -> np.ndarray:
    """Returns (n, k * k) float64: a one in the cell of each sample's label and answer."""
    classes = answers[0].shape[1]
    cells = targets.astype(np.int64) * classes + answers[0].argmax(axis=1)
    counts = np.zeros((len(cells), classes * classes))
    counts[np.arange(len(cells)), cells] = 1
    return counts


def _matrix(counts: np.ndarray) -> np.ndarray:
    classes = math.isqrt(len(counts))
    return counts.reshape(classes, classes)


class Matthews(Classification):
    """One class per sample, judged by the Matthews correlation, as CoLA is; answers and targets as Classification."""

    name = "matthews"
    metric_name = "Matthews correlation"
    quality_name = "accuracy"

    def counts(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray | None:
        return count_cells(answers, targets)

    def summarise(self, counts: np.ndarray, /) -> float:
        cells = _matrix(counts)
        true, answered, n, right = cells.sum(axis=1), cells.sum(axis=0), cells.sum(), np.trace(cells)
        spread = (n**2 - (answered**2).sum()) * (n**2 - (true**2).sum())
        return max(0.0, float((n * right - (true * answered).sum()) / math.sqrt(spread))) if spread > 0 else 0.0


class F1(Classification):
    """One class per sample, judged by F1: of two classes that of the second, of more the mean over those that occur."""

    name = "f1"
    metric_name = "F1"
    quality_name = "accuracy"

    def counts(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray | None:
        return count_cells(answers, targets)

    def summarise(self, counts: np.ndarray, /) -> float:
        cells = _matrix(counts)
        true, answered, right = cells.sum(axis=1), cells.sum(axis=0), np.diagonal(cells)
        each = 2 * right / np.maximum(true + answered, 1)
        return float(each[1]) if len(each) == 2 else float(each[true > 0].mean()) if true.any() else 0.0

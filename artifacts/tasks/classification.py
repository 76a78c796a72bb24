"""Classification: one class per sample."""

from __future__ import annotations

import numpy as np

from artifacts.errors import UsageError
from artifacts.tasks.protocol import Answers


class Classification:
    """Top-1 accuracy over logits or probabilities (n, classes) as the first output; targets are (n,) class indices."""

    name = "classification"
    metric_name = "accuracy"
    confidence = "max-softmax"
    loss = "cross-entropy"

    def quality(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray:
        right: np.ndarray = answers[0].argmax(axis=1) == targets
        return right.astype(np.float32)

    def agreement(self, answers: Answers, final: Answers, /) -> np.ndarray:
        same: np.ndarray = answers[0].argmax(axis=1) == final[0].argmax(axis=1)
        return same.astype(np.float32)

    def counts(self, _answers: Answers, _targets: np.ndarray, /) -> np.ndarray | None:
        return None

    def summarise(self, _counts: np.ndarray, /) -> float:
        raise UsageError("the metric of classification is a mean over samples; it has no counts to summarise")

    def predictions(self, answers: Answers, /) -> np.ndarray | None:
        classes: np.ndarray = answers[0].argmax(axis=1).astype(np.int32)
        return classes

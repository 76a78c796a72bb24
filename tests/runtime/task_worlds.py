"""A task of a host's own, which is not one of ``artifacts.TASKS``."""

from __future__ import annotations

import numpy as np

from artifacts import Answers


class CloseAnswers:
    """Answers are numbers, the first of each row; they agree the more the closer they are.

    The metric is no mean over samples: it is the share of the total error that is missing to 100 per sample.
    """

    name = "numbers"
    metric_name = "closeness"
    confidence = "max-softmax"
    loss = "squared-error"

    def quality(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray:
        close: np.ndarray = np.maximum(0, 1 - np.abs(answers[0][:, 0] - targets) / 4).astype(np.float32)
        return close

    def agreement(self, answers: Answers, final: Answers, /) -> np.ndarray:
        return self.quality(answers, final[0][:, 0])

    def counts(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray:
        error = np.abs(answers[0][:, 0] - targets)
        return np.stack([error, np.full(len(error), 100.0)], axis=1).astype(np.float64)

    def summarise(self, counts: np.ndarray, /) -> float:
        return float(max(0.0, 1 - counts[0] / counts[1]))

    def predictions(self, answers: Answers, /) -> None:
        del answers

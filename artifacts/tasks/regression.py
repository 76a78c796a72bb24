"""Regression: one number per sample, with a spread that the network itself predicts.

The network answers two numbers, the value and the logarithm of its spread, and is trained by the likelihood of a normal
distribution with both (Nix and Weigend, "Estimating the mean and variance of the target probability distribution",
ICNN 1994). The confidence is ``1 / (1 + spread)``. The alternative, the agreement of successive exits, needs the answer
of the exit before at every exit, and says nothing at the first; a predicted spread is one number of the exit itself,
and is learned on the errors that it is to rank.
"""

from __future__ import annotations

import math

import numpy as np

from artifacts.tasks.protocol import Answers


class Regression:
    """Pearson correlation over answers (n, 2), value and log spread, as the first output; targets are (n,) numbers."""

    name = "regression"
    metric_name = "Pearson correlation"
    quality_name = "1 / (1 + error)"
    confidence = "predicted-spread"
    loss = "normal-likelihood"

    def quality(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray:
        """Returns ``1 / (1 + |error|)``: 1 for the right number."""
        return _closeness(answers[0][:, 0], targets)

    def agreement(self, answers: Answers, final: Answers, /) -> np.ndarray:
        """Returns ``1 / (1 + |difference|)``: 1 for the same number."""
        return _closeness(answers[0][:, 0], final[0][:, 0])

    def counts(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray | None:
        """Returns one, the answer and the target, their squares and their product: what a correlation is made of."""
        x, y = answers[0][:, 0].astype(np.float64), targets.astype(np.float64)
        return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)

    def summarise(self, counts: np.ndarray, /) -> float:
        """Returns the correlation; a negative one, which is worse than a constant, counts as 0."""
        n, x, y, xx, yy, xy = counts.tolist()
        spread = (n * xx - x * x) * (n * yy - y * y)
        return min(1.0, max(0.0, (n * xy - x * y) / math.sqrt(spread))) if spread > 0 else 0.0

    def predictions(self, _answers: Answers, /) -> np.ndarray | None:
        return None


def _closeness(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    close: np.ndarray = (1 / (1 + np.abs(found.astype(np.float64) - wanted))).astype(np.float32)
    return close

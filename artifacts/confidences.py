"""Learned confidences: what is read of a choice among classes, and the logistic model that makes a confidence of it.

The largest probability says how sure a network is, but not how often it is right: a head may be too sure of one class
and not sure enough of another. A learned confidence weighs four features of an answer and the class that it chose.

The features of log-probabilities ``q`` with ``p = exp(q)``, the two largest ``q1 >= q2``: the largest probability
``p1``, the margin ``p1 - p2``, the entropy ``-sum p q`` and the gap ``q1 - q2``. Unlike log-odds of ``p1`` they lose no
digits in float32 where a network is nearly sure, so that all backends compute the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from artifacts.errors import InputError

MAX_SOFTMAX = "max-softmax"
"""The recipe by which a task asks for the largest probability; learned confidences take its place."""
FEATURES = ("largest", "margin", "entropy", "gap")
LEAST_PROBABILITY = 1e-7
"""Smaller probabilities count as this, where an answer holds probabilities rather than logits."""


def describe_choice(values: np.ndarray, *, probabilities: bool) -> np.ndarray:
    """Returns the features of answers (n, K): (n, 4) float32, in the order of ``FEATURES``.

    Args:
        values: logits, or probabilities.
        probabilities: which of them.
    """
    exact = values.astype(np.float64)
    if probabilities:
        shares, logs = exact, np.log(np.maximum(exact, LEAST_PROBABILITY))
    else:
        shifted = exact - exact.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        shares = np.exp(logs)
    best = -np.sort(-logs, axis=1)[:, :2]
    first, second = np.exp(best[:, 0]), np.exp(best[:, 1])
    features = [first, first - second, -(shares * logs).sum(axis=1), best[:, 0] - best[:, 1]]
    return np.stack(features, axis=1).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedConfidence:
    """A logistic model of one exit: features and class of an answer -> confidence.

    Attributes:
        weights: one per feature, in the order of ``FEATURES``.
        bias: added to their sum.
        class_biases: added where the answer is that class, one per class from the first; 0 for classes behind the last,
            which no sample that this was fitted to has as its answer.
    """

    weights: tuple[float, ...]
    bias: float
    class_biases: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.weights) != len(FEATURES):
            raise InputError(f"a learned confidence has {len(self.weights)} weights; expected {len(FEATURES)}")
        if not np.isfinite([*self.weights, self.bias, *self.class_biases]).all():
            raise InputError("a learned confidence has weights that are not finite; fit it again")

    def apply(self, features: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Returns the confidences of answers: (n,) float32 in [0, 1].

        Args:
            features: (n, 4), as ``describe_choice`` returns them.
            classes: (n,) integers, the chosen classes.
        """
        total = features.astype(np.float64) @ np.array(self.weights) + self.bias
        if self.class_biases:
            biases = np.zeros(max(len(self.class_biases), int(classes.max(initial=0)) + 1))
            biases[: len(self.class_biases)] = self.class_biases
            total = total + biases[classes]
        found: np.ndarray = (1 / (1 + np.exp(-np.clip(total, -60, 60)))).astype(np.float32)
        return found

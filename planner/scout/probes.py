"""Probes: a linear layer on pooled features at every cut, fitted on one half of some samples and judged on the other.

A probe stands for the exit head that would be trained at a cut. Its features are means over a coarse grid of positions
and the spread over all of them, so that a few hundred samples are enough; it is fitted by ridge regression in its dual
form, a system as large as there are samples, with the penalty that predicts best when every sample is left out once.
What it is fitted to is the mean of the full network's probabilities and the right answer where there is one; without
labels the probabilities alone, so that it learns to agree. Pure.
"""

from __future__ import annotations

import numpy as np

GRID = 3
"""Positions along each axis of a feature map that are averaged apart."""
_PENALTIES = np.logspace(-4, 2, 13)
_FLAT = 1e-6  # a feature that varies less than this share of the largest one says nothing


def pool_features(features: np.ndarray) -> np.ndarray:
    """Returns a short row of numbers for every sample: (n, d) float64.

    Args:
        features: (n, ...) of a cut: (n, F); tokens (n, S, F); or a map (n, C, H, W), (n, H, W, C) where the first two
            axes alone are equally long.
    """
    values = features.reshape(len(features), -1) if features.ndim > 4 else features
    values = np.asarray(values, np.float64)
    if values.ndim == 3:
        return np.concatenate([values.mean(axis=1), values[:, 0]], axis=1)
    if values.ndim != 4:
        return values.reshape(len(values), -1)
    if values.shape[1] == values.shape[2] != values.shape[3]:
        values = values.transpose(0, 3, 1, 2)
    rows, columns = (np.array_split(np.arange(size), min(GRID, size)) for size in values.shape[2:])
    means = [values[:, :, row[0] : row[-1] + 1, column[0] : column[-1] + 1].mean(axis=(2, 3))
             for row in rows for column in columns]  # fmt: skip
    return np.concatenate([*means, values.std(axis=(2, 3))], axis=1)


def predict_held_out(features: np.ndarray, targets: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Returns what a probe says about every sample, fitted on the samples of the other half.

    Args:
        features: (n, d) pooled features of one cut.
        targets: (n, classes) what it is fitted to.
        halves: (n,) bool, which half a sample belongs to.

    Returns:
        (n, classes) float64, in the terms of the targets.
    """
    found = np.empty(targets.shape)
    for half in (False, True):
        fitted, judged = halves != half, halves == half
        found[judged] = _fit_and_predict(features[fitted], targets[fitted], features[judged])
    return found


def _fit_and_predict(features: np.ndarray, targets: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Fits a ridge regression and returns its predictions for other samples."""
    centre, spread = features.mean(axis=0), features.std(axis=0)
    live = spread > _FLAT * max(float(spread.max(initial=0.0)), _FLAT)
    mean = targets.mean(axis=0)
    if not live.any():
        flat: np.ndarray = np.tile(mean, (len(others), 1))
        return flat
    own, other = ((rows[:, live] - centre[live]) / spread[live] for rows in (features, others))
    values, vectors = np.linalg.eigh(own @ own.T / own.shape[1])
    values, turned = values.clip(0), vectors.T @ (targets - mean)
    errors = []
    for penalty in _PENALTIES:
        shrink = values / (values + penalty)
        hat = np.einsum("ij,j,ij->i", vectors, shrink, vectors)
        left = (targets - mean - vectors @ (shrink[:, None] * turned)) / (1 - hat).clip(1e-6)[:, None]
        errors.append(float((left**2).mean()))
    penalty = _PENALTIES[int(np.argmin(errors))]
    weights = vectors @ (turned / (values + penalty)[:, None])
    predicted: np.ndarray = other @ own.T / own.shape[1] @ weights + mean
    return predicted


def make_targets(answers: np.ndarray, labels: np.ndarray | None) -> np.ndarray:
    """Returns what probes are fitted to: (n, classes) float64.

    Args:
        answers: (n, classes) of the full network, logits or probabilities.
        labels: (n,) the right classes; ``None`` without.
    """
    probabilities = _to_probabilities(answers)
    if labels is None:
        return probabilities
    both: np.ndarray = (probabilities + np.eye(probabilities.shape[1])[labels]) / 2
    return both


def _to_probabilities(answers: np.ndarray) -> np.ndarray:
    values: np.ndarray = np.asarray(answers, np.float64)
    if values.min(initial=0) >= 0 and np.allclose(values.sum(axis=1), 1, atol=1e-3):
        return values
    raised = np.exp(values - values.max(axis=1, keepdims=True))
    shares: np.ndarray = raised / raised.sum(axis=1, keepdims=True)
    return shares


def confidence_of(predicted: np.ndarray) -> np.ndarray:
    """Returns (n,) float32 in [0, 1]: how far the first class of a prediction is ahead of the second."""
    first_two = np.partition(predicted, -2, axis=1)[:, -2:]
    ahead: np.ndarray = (first_two[:, 1] - first_two[:, 0]).clip(0, 1).astype(np.float32)
    return ahead

"""Fitting of learned confidences: logistic regression with a ridge, by Newton's method. Pure.

What is learned is how much of the full network's quality an exit keeps: ``1 - max(0, q_full - q_exit)`` with the
qualities in [0, 1]; for a choice among classes 0 where leaving loses an answer that the full network has right, else 1.
That is the loss which a tolerance bounds: to be wrong together with the full network costs nothing.

Features are standardised, so that one ridge suits them all. A class has an offset of its own where the exit chose it at
least ``_LEAST_CHOSEN`` times; the ridge pulls offsets of rare classes to 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from artifacts import FEATURES, LearnedConfidence, Trace

Learned = Mapping[str, LearnedConfidence]
"""Cut -> the learned confidence of its exit; empty: all confidences are those of the trace."""
_RIDGE = 1.0
_LEAST_CHOSEN = 20  # samples
_MOST_CLASSES = 64  # with offsets of their own
_STEPS, _ENOUGH = 50, 1e-8
_HALVINGS = 30
_FOLDS = 3


def can_learn(trace: Trace) -> bool:
    """Tells whether a trace holds what learned confidences are fitted to."""
    return bool(trace.exits) and trace.features is not None and trace.predictions is not None


def fit_confidences(trace: Trace) -> dict[str, LearnedConfidence]:
    """Fits the confidence of every exit to all samples of a trace.

    Args:
        trace: of the samples for tuning alone, with features and predictions.
    """
    features, predictions = np.asarray(trace.features), np.asarray(trace.predictions)
    classes = int(predictions.max()) + 1
    metric = trace.metric.astype(np.float64)
    kept = 1 - np.maximum(0, metric[-1] - metric[:-1])
    return {
        name: _fit(features[row].astype(np.float64), predictions[row], kept[row], classes)
        for row, name in enumerate(trace.exits)
    }


def cross_fit(trace: Trace, *, seed: int) -> Trace:
    """Returns a trace with learned confidences, each fitted to other samples than those that it is given for.

    By them a learned confidence can be compared with one that was not fitted to the same samples.

    Args:
        trace: of the samples for tuning, at least ``_FOLDS`` of them.
        seed: decides which samples are fitted together.
    """
    confidence = trace.confidence.copy()
    everything = np.random.default_rng(seed).permutation(trace.sample_count)
    for held_out in np.array_split(everything, _FOLDS):
        others = np.setdiff1d(everything, held_out)
        part = trace.select(held_out).with_confidences(fit_confidences(trace.select(others)))
        confidence[:, held_out] = part.confidence
    return replace(trace, confidence=confidence)


def _fit(features: np.ndarray, chosen: np.ndarray, target: np.ndarray, classes: int) -> LearnedConfidence:
    """Fits one exit: features (n, 4), chosen classes (n,), targets (n,) in [0, 1]."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread = np.where(spread > _ENOUGH, spread, 1.0)
    counts = np.bincount(chosen, minlength=classes)
    common = np.argsort(-counts, kind="stable")[:_MOST_CLASSES]
    own = np.sort(common[counts[common] >= _LEAST_CHOSEN])
    offsets = (chosen[:, None] == own[None, :]).astype(np.float64)
    columns = np.concatenate([(features - mean) / spread, offsets, np.ones((len(features), 1))], axis=1)
    found = _minimise(columns, target)
    weights = found[: len(FEATURES)] / spread
    class_biases = np.zeros(classes)
    class_biases[own] = found[len(FEATURES) : -1]
    return LearnedConfidence(
        weights=tuple(weights.tolist()), bias=float(found[-1] - weights @ mean),
        class_biases=tuple(class_biases.tolist()) if len(own) else (),
    )  # fmt: skip


def _minimise(columns: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Returns the coefficients with the least penalised cross-entropy; the last one, the bias, has no penalty."""
    ridge = np.full(columns.shape[1], _RIDGE)
    ridge[-1] = _ENOUGH  # as good as none, but the minimum exists where all targets are alike
    found = np.zeros(columns.shape[1])
    # a target of 0 or 1 throughout has no minimum at a finite bias
    share = np.clip(target.mean(), 1 / (2 * len(target)), 1 - 1 / (2 * len(target)))
    found[-1] = np.log(share / (1 - share))
    loss = _loss(columns, target, found, ridge)
    for _ in range(_STEPS):
        expected = 1 / (1 + np.exp(-columns @ found))
        gradient = columns.T @ (expected - target) + ridge * found
        curvature = (columns * (expected * (1 - expected))[:, None]).T @ columns + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        for _ in range(_HALVINGS):
            tried = found - step
            tried_loss = _loss(columns, target, tried, ridge)
            if tried_loss <= loss:
                break
            step = step / 2
        else:
            return found
        gain, found, loss = loss - tried_loss, tried, tried_loss
        if gain <= _ENOUGH * max(1.0, abs(loss)):
            break
    return found


def _loss(columns: np.ndarray, target: np.ndarray, found: np.ndarray, ridge: np.ndarray) -> float:
    total = columns @ found
    return float((np.logaddexp(0, total) - target * total).sum() + (ridge * found**2).sum() / 2)

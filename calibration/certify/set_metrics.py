"""Metrics of a whole set of samples, which are no mean over them: F1 and the Matthews correlation. Pure.

From the counts of each class ``k`` (right ``c_k``, predicted ``p_k``, true ``t_k``, of ``n`` samples)

    F1_k = 2 c_k / (p_k + t_k);  of two classes F1 is F1_1, of more the mean over the classes that occur as labels,
    Matthews = (n c - sum_k p_k t_k) / sqrt((n^2 - sum_k p_k^2) (n^2 - sum_k t_k^2)),      c = sum_k c_k

(Gorodkin 2004; of two classes the usual formula). Such a metric has no per-sample loss, so none of the tests of
``calibration.certify.pvalues`` applies. Instead the *bootstrap* (Efron 1979) is used: samples are drawn
again from the samples, and the share of draws in which the plan loses more than the tolerance stands in for the
p-value. It is right in the limit of many samples, and it is *not* a finite-sample guarantee; certificates made from
it say so. Of errors that it has not seen the bootstrap knows nothing, so its answer is never below ``(1 -
tolerance)^n``, the chance that ``n`` samples show none of the errors of a plan that loses just too much.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from artifacts import InputError

SET_METRICS = ("f1", "matthews")
_DRAWS = 1000
_SEED = 0  # the draws are part of the method: equal samples give equal p-values


def set_metric(name: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    """Returns a set metric.

    Args:
        name: one of ``SET_METRICS``.
        labels: (n,) integers.
        predictions: (n,) integers.
    """
    classes = np.unique(labels)
    return float(_FORMULAS[name](np.ones((1, len(labels))), labels, predictions, classes)[0])


def bootstrap_p_value(name: str, full: np.ndarray, early: np.ndarray, *, tolerance: float) -> float:
    """Returns the bootstrap's stand-in for the p-value of "the plan loses more than ``tolerance`` of the metric".

    Args:
        name: one of ``SET_METRICS``.
        full: (n, 2) labels and predictions of the full network.
        early: (n, 2) labels and predictions of the plan, for the same samples.
        tolerance: allowed relative loss.

    Raises:
        InputError: the samples do not belong together.
    """
    check_evidence(full, early)
    cells, counts = np.unique(np.column_stack([full, early[:, 1]]), axis=0, return_counts=True)
    labels, by_full, by_early = cells.T
    draws = np.random.default_rng(_SEED).multinomial(len(full), counts / len(full), size=_DRAWS)
    classes, formula = np.unique(labels), _FORMULAS[name]
    whole, remaining = formula(draws, labels, by_full, classes), formula(draws, labels, by_early, classes)
    bad = (remaining <= (1 - tolerance) * whole) | (whole <= 0)  # with a metric of 0 no relative loss is defined
    return max((1 + int(bad.sum())) / (1 + _DRAWS), (1 - tolerance) ** len(full))


def check_evidence(full: np.ndarray, early: np.ndarray) -> None:
    """Refuses arrays that are not labels and predictions of the same samples."""
    if full.ndim != 2 or full.shape != early.shape or full.shape[1] != 2 or not np.array_equal(full[:, 0], early[:, 0]):
        raise InputError(
            f"set metrics compare labels and predictions (n, 2) of the same samples, got {full.shape} and {early.shape}"
        )


def _count(
    weights: np.ndarray, labels: np.ndarray, predictions: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns right, predicted and true counts per class: (draws, classes) each; weights are (draws, n)."""
    true, predicted = labels[:, None] == classes, predictions[:, None] == classes
    weights = weights.astype(np.float64)
    return weights @ (true & predicted), weights @ predicted, weights @ true


def _f1(weights: np.ndarray, labels: np.ndarray, predictions: np.ndarray, classes: np.ndarray) -> np.ndarray:
    if set(classes.tolist()) <= {0, 1}:
        classes = np.array([1])
    right, predicted, true = _count(weights, labels, predictions, classes)
    occurring = np.maximum(predicted + true, 1)
    mean: np.ndarray = (2 * right / occurring).mean(axis=1)
    return mean


def _matthews(weights: np.ndarray, labels: np.ndarray, predictions: np.ndarray, classes: np.ndarray) -> np.ndarray:
    classes = np.union1d(classes, predictions)
    right, predicted, true = _count(weights, labels, predictions, classes)
    n = weights.sum(axis=1)
    joint = n * right.sum(axis=1) - (predicted * true).sum(axis=1)
    spread = (n**2 - (predicted**2).sum(axis=1)) * (n**2 - (true**2).sum(axis=1))
    found: np.ndarray = joint / np.sqrt(np.maximum(spread, 1.0))
    return found


_FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "f1": _f1,
    "matthews": _matthews,
}

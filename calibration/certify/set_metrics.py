"""Metrics of a whole set of samples, which are no mean over them: F1, the Matthews correlation and mIoU. Pure.

From the counts of each class ``k`` (right ``c_k``, predicted ``p_k``, true ``t_k``, of ``n`` samples)

    F1_k = 2 c_k / (p_k + t_k);  of two classes F1 is F1_1, of more the mean over the classes that occur as labels,
    Matthews = (n c - sum_k p_k t_k) / sqrt((n^2 - sum_k p_k^2) (n^2 - sum_k t_k^2)),      c = sum_k c_k

(Gorodkin 2004; of two classes the usual formula). Of the pixels in each class's intersection and union, added up over
the samples, mIoU is the mean over the classes of their ratio. Such a metric has no per-sample loss, so none of the
tests of ``calibration.certify.pvalues`` applies. Instead the *bootstrap* (Efron 1979) is used: samples are drawn
again from the samples, and the share of draws in which the plan loses more than the tolerance stands in for the
p-value. It is right in the limit of many samples, and it is *not* a finite-sample guarantee; certificates made from
it say so. Of errors that it has not seen the bootstrap knows nothing, so its answer is never below ``(1 -
tolerance)^n``, the chance that ``n`` samples show none of the errors of a plan that loses just too much.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from artifacts import InputError

SET_METRICS = ("f1", "matthews", "miou")
"""Their evidence is the class of each sample, true and answered; of the last one the sample's counts (``COUNTED``)."""
COUNTED = ("miou",)
_DRAWS = 1000
_SEED = 0  # the draws are part of the method: equal samples give equal p-values


def set_metric(name: str, evidence: np.ndarray) -> float:
    """Returns a set metric.

    Args:
        name: one of ``SET_METRICS``.
        evidence: (n, 2) labels and predictions, integers; of ``miou`` (n, 2 C) pixels of the classes' intersections,
            then of their unions.
    """
    once = np.ones((1, len(evidence)))
    if name in COUNTED:
        return float(_miou(once, evidence)[0])
    labels, predictions = evidence.T
    return float(_FORMULAS[name](once, labels, predictions, np.unique(labels))[0])


def bootstrap_p_value(name: str, full: np.ndarray, early: np.ndarray, *, tolerance: float) -> float:
    """Returns the bootstrap's stand-in for the p-value of "the plan loses more than ``tolerance`` of the metric".

    Args:
        name: one of ``SET_METRICS``.
        full: evidence of the full network, as for ``set_metric``.
        early: that of the plan, for the same samples.
        tolerance: allowed relative loss.

    Raises:
        InputError: the samples do not belong together.
    """
    if name in COUNTED:
        check_counts(full, early)
        draws = np.random.default_rng(_SEED).multinomial(len(full), np.full(len(full), 1 / len(full)), size=_DRAWS)
        return _share_of_bad(_miou(draws, full), _miou(draws, early), tolerance, samples=len(full))
    check_evidence(full, early)
    cells, counts = np.unique(np.column_stack([full, early[:, 1]]), axis=0, return_counts=True)
    labels, by_full, by_early = cells.T
    draws = np.random.default_rng(_SEED).multinomial(len(full), counts / len(full), size=_DRAWS)
    classes, formula = np.unique(labels), _FORMULAS[name]
    whole, remaining = formula(draws, labels, by_full, classes), formula(draws, labels, by_early, classes)
    return _share_of_bad(whole, remaining, tolerance, samples=len(full))


def _share_of_bad(whole: np.ndarray, remaining: np.ndarray, tolerance: float, *, samples: int) -> float:
    bad = (remaining <= (1 - tolerance) * whole) | (whole <= 0)  # with a metric of 0 no relative loss is defined
    return max((1 + int(bad.sum())) / (1 + _DRAWS), (1 - tolerance) ** samples)


def check_counts(full: np.ndarray, early: np.ndarray) -> None:
    """Refuses arrays that are not counts of intersections and unions of the same samples."""
    if full.ndim != 2 or full.shape != early.shape or full.shape[1] % 2 or not full.size:
        raise InputError(
            f"mIoU is computed from counts (n, 2 classes) of the same samples, got {full.shape} and {early.shape}"
        )


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


def _miou(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    intersection, union = np.split(weights.astype(np.float64) @ counts, 2, axis=1)
    occurring = union > 0
    ratios = intersection / np.maximum(union, 1)
    mean: np.ndarray = ratios.sum(axis=1) / np.maximum(occurring.sum(axis=1), 1)
    return mean


_FORMULAS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "f1": _f1,
    "matthews": _matthews,
}

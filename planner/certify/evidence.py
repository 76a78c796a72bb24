"""What a risk is told of the samples: the metric, the agreement, or labels and predictions. Pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from artifacts import InputError, Trace
from calibration.certify.set_metrics import SET_METRICS
from planner.predict.replay import ChosenExits, evaluate_exits, exit_rows


def risk_trace(trace: Trace, risk: str) -> Trace:
    """Returns the trace in which ``metric`` is what the risk is about: for ``agreement`` it is the agreement."""
    return replace(trace, metric=trace.agreement.astype(np.float32)) if risk == "agreement" else trace


def metric_word(risk: str) -> str:
    """Returns what the metric of ``risk_trace`` is called."""
    return "agreement" if risk == "agreement" else "metric"


def metric_under(trace: Trace, chosen: ChosenExits) -> np.ndarray:
    """Returns the metric of each sample under a plan: (N,)."""
    rows = [*exit_rows(trace, chosen.cuts), len(trace.exits)]
    leaves_at = evaluate_exits(trace, chosen).leaves_at
    answered: np.ndarray = trace.metric[np.array(rows)[leaves_at], np.arange(trace.sample_count)]
    return answered


def evidence_under(trace: Trace, chosen: ChosenExits, risk: str) -> np.ndarray:
    """Returns what a test of the risk is told of each sample under a plan, see ``RiskTest``.

    Raises:
        InputError: the trace has no predictions and labels, which a set metric needs.
    """
    if risk not in SET_METRICS:
        return metric_under(trace, chosen)
    if trace.predictions is None or trace.labels is None:
        raise InputError(
            f"--risk {risk} needs the class that every exit answers, and the trace holds none: collect it again "
            "(remove its folder first), or import one with predictions and labels"
        )
    rows = np.array([*exit_rows(trace, chosen.cuts), len(trace.exits)])
    answered = trace.predictions[rows[evaluate_exits(trace, chosen).leaves_at], np.arange(trace.sample_count)]
    return np.stack([trace.labels, answered], axis=1)

"""Evidence: what a test of a risk reads of each sample under a plan. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from artifacts import TASKS, InputError, Trace
from calibration import COUNTED_METRICS, SET_METRICS
from planner.config import SELF
from planner.predict.replay import NO_EXITS, Exits, find_answers


def evidence_reader(trace: Trace, risk: str) -> Callable[[Exits], np.ndarray]:
    """Returns a function that gives the evidence of a risk under a plan, in the form of ``calibration.RiskTest``.

    Its answers are (N,); for a set metric (N, 2) labels and predictions, or (N, k) counts. Without exits it is the
    evidence of the full network. One plan is read at a time, since many plans of many samples would fill the memory.

    Args:
        trace: with the metric that the risk is about, see ``risk_trace``.
        risk: one of ``calibration.RISKS``.

    Raises:
        InputError: as ``check_evidence``.
    """
    check_evidence(trace, risk)
    if risk in COUNTED_METRICS:
        return partial(_counts_under, trace)
    return partial(_classes_under if risk in SET_METRICS else metric_under, trace)


def reference_evidence(trace: Trace, risk: str) -> np.ndarray:
    """Returns the evidence of the network that the tolerance refers to: the full network, or that in float32.

    Arguments and errors as ``evidence_reader``.
    """
    reference = trace.reference
    if reference is None:
        return evidence_reader(trace, risk)(NO_EXITS)
    check_evidence(trace, risk)
    if risk in COUNTED_METRICS:
        return np.asarray(reference.counts)
    if risk in SET_METRICS:
        return np.stack([np.asarray(trace.labels), np.asarray(reference.predictions)], axis=1)
    return reference.metric


def check_evidence(trace: Trace, risk: str) -> None:
    """Raises ``InputError`` where a trace has no predictions and labels, or no counts, which a set metric needs."""
    if risk in COUNTED_METRICS and trace.counts is None:
        raise InputError(
            f"--risk {risk} needs the pixels of every class, and the trace holds none: it is for the task segmentation"
        )
    if risk in set(SET_METRICS) - set(COUNTED_METRICS) and (trace.predictions is None or trace.labels is None):
        raise InputError(
            f"--risk {risk} needs the class that every exit answers, and the trace holds none: collect it again "
            "(remove its folder first), or import one with predictions and labels"
        )


def metric_under(trace: Trace, exits: Exits) -> np.ndarray:
    """Returns the metric of each sample under a plan: (N,)."""
    answered: np.ndarray = trace.metric[find_answers(trace, exits), np.arange(trace.sample_count)]
    return answered


def _classes_under(trace: Trace, exits: Exits) -> np.ndarray:
    """Returns the label of each sample and the class that a plan answers: (N, 2)."""
    predictions = np.asarray(trace.predictions)[find_answers(trace, exits), np.arange(trace.sample_count)]
    return np.stack([np.asarray(trace.labels), predictions], axis=1)


def _counts_under(trace: Trace, exits: Exits) -> np.ndarray:
    """Returns what each sample adds to the counts of a set metric under a plan: (N, k)."""
    counts: np.ndarray = np.asarray(trace.counts)[find_answers(trace, exits), np.arange(trace.sample_count)]
    return counts


def risk_trace(trace: Trace, risk: str) -> Trace:
    """Returns the trace in which ``metric`` is the one that a risk is about: for ``agreement`` the agreement with the
    network that the tolerance refers to.

    Raises:
        InputError: as ``check_evidence``.
    """
    check_evidence(trace, risk)
    if risk != "agreement":
        return trace
    reference = trace.reference
    if reference is None:
        return replace(trace, metric=trace.agreement.astype(np.float32))
    ones = replace(reference, metric=np.ones_like(reference.metric))
    return replace(trace, metric=reference.agreement, reference=ones)


def refer_to(trace: Trace, reference: str | None) -> Trace:
    """Returns the trace whose tolerances refer to a network: ``self``, the traced one, or the one that it names."""
    if reference != SELF or trace.reference is None:
        return trace
    return replace(trace, metric=trace.metric if trace.labelled else trace.agreement, reference=None)


def metric_word(risk: str, task: str | None) -> str:
    """Returns the name of the metric of ``risk_trace``, in the words of the task.

    Args:
        risk: one of ``calibration.RISKS``.
        task: the task's name; ``None``, or one that is not in our table: the metric has no name.
    """
    if risk == "agreement":
        return risk
    known = TASKS.get(TASKS[risk].name if risk in TASKS else task or "")
    if known is None:
        return "metric"
    if risk != "metric":
        return known.metric_name
    return str(getattr(known, "quality_name", known.metric_name))  # the latter where it is a mean over samples


def remark_on_risk(task: str, risk: str) -> str | None:
    """Returns what a user should know of the risk of a task whose metric is one of a whole set; ``None``: nothing.

    Args:
        task: the name of the model's.
        risk: one of ``calibration.RISKS``.
    """
    if task not in SET_METRICS or risk != "metric":
        return None
    return (
        f"the task's metric ({task}) is one of a whole set of samples: the tolerance is on the share of right answers; "
        f"--risk {task} is about the metric itself, by bootstrap"
    )

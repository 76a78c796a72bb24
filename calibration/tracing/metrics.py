"""MetricSum: a task's metric over samples that come a batch at a time. Pure."""

from __future__ import annotations

import numpy as np

from artifacts import Answers, Task, Trace


class MetricSum:
    """Adds up what decides a task's metric: the quality of each sample, or counts where the metric is no mean."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._samples = 0
        self._quality = 0.0
        self._counts: np.ndarray | None = None

    def add(self, answers: Answers, targets: np.ndarray) -> None:
        """Adds the answers to some samples."""
        quality = self._task.quality(answers, targets)
        self._samples += len(quality)
        self._quality += float(quality.sum(dtype=np.float64))
        counts = self._task.counts(answers, targets)
        if counts is not None:
            total = counts.sum(axis=0)
            self._counts = total if self._counts is None else self._counts + total

    @property
    def value(self) -> float:
        """The metric of all samples so far; 0 of none."""
        if self._counts is not None:
            return self._task.summarise(self._counts)
        return self._quality / max(1, self._samples)


def set_metrics(trace: Trace, task: Task) -> list[float] | None:
    """Returns the task's metric over the whole trace, per exit and last the final head's, where it is no mean.

    Returns:
        ``None`` where the metric is the mean of the samples' quality, which the trace has itself.
    """
    if trace.counts is None:
        return None
    return [task.summarise(counts) for counts in trace.counts.sum(axis=1)]

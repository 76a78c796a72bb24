"""Judge: what a task says of the answers of both contenders, batch by batch, so that no answers are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from artifacts import Answers, Task

Targets = Callable[[int], np.ndarray | None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Judgement:
    """What was found over N queries.

    Attributes:
        full_metric, metric: (N,) quality of the full network's and the bundle's answers; ``None`` without labels.
        agreement: (N,) of the bundle's answers with the full network's.
        full_set_metric, set_metric: the task's metric over all queries, where that is no mean; ``None`` elsewhere.
    """

    full_metric: np.ndarray | None
    metric: np.ndarray | None
    agreement: np.ndarray
    full_set_metric: float | None
    set_metric: float | None


@dataclass(slots=True, kw_only=True, eq=False)
class _Contender:
    quality: list[np.ndarray] = field(default_factory=list)
    counts: np.ndarray | None = None

    def add(self, task: Task, answers: Answers, targets: np.ndarray) -> None:
        self.quality.append(task.quality(answers, targets))
        counts = task.counts(answers, targets)
        if counts is not None:
            total = counts.sum(axis=0)
            self.counts = total if self.counts is None else self.counts + total

    def metric(self) -> np.ndarray | None:
        return np.concatenate(self.quality) if self.quality else None

    def set_metric(self, task: Task) -> float | None:
        return None if self.counts is None else task.summarise(self.counts)


class Judge:
    """Takes the answers of both contenders to one batch after another."""

    def __init__(self, task: Task, targets: Targets) -> None:
        """Starts with no batches.

        Args:
            task: judges.
            targets: number of a batch -> its right answers; ``None`` without labels.
        """
        self.task = task
        self._targets = targets
        self._full, self._early = _Contender(), _Contender()
        self._agreement: list[np.ndarray] = []

    def add(self, batch: int, full: Answers, early: Answers) -> None:
        """Judges the answers to a batch."""
        self._agreement.append(self.task.agreement(early, full))
        targets = self._targets(batch)
        if targets is not None:
            self._full.add(self.task, full, targets)
            self._early.add(self.task, early, targets)

    def judgement(self) -> Judgement:
        """Returns what was found of all batches so far."""
        return Judgement(
            full_metric=self._full.metric(),
            metric=self._early.metric(),
            agreement=np.concatenate(self._agreement),
            full_set_metric=self._full.set_metric(self.task),
            set_metric=self._early.set_metric(self.task),
        )

"""Grading of answers by the task, batch by batch: a few numbers per query are stored, and no answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from artifacts import Answers, Task


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grades:
    """How good the answers of one contender are, of N queries.

    Attributes:
        task: the task that graded them.
        quality: (N,) float32 of each answer.
        counts: (N, k) of each answer, for a metric that is not the mean of the quality; ``None`` otherwise.
    """

    task: Task
    quality: np.ndarray
    counts: np.ndarray | None = None

    def metric(self, queries: np.ndarray | slice = slice(None)) -> float:
        """Returns the task's metric of some queries, at least one: a mask (N,), indices or a slice."""
        if self.counts is not None:
            return float(self.task.summarise(self.counts[queries].sum(axis=0)))
        return float(self.quality[queries].mean(dtype=np.float64))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graded:
    """The grades of all answers to N queries.

    Attributes:
        full, early: of the whole network and of the bundle; ``None`` without targets.
        agreement: (N,) float32, how far the bundle's answer is that of the whole network.
        exit_agreement: (E, N) float32, how far the answer of each exit is, for all queries.
    """

    full: Grades | None
    early: Grades | None
    agreement: np.ndarray
    exit_agreement: np.ndarray


class Grader:
    """Grades batches one after the other."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._full: list[tuple[np.ndarray, np.ndarray | None]] = []
        self._early: list[tuple[np.ndarray, np.ndarray | None]] = []
        self._agreement: list[np.ndarray] = []
        self._exit_agreement: list[np.ndarray] = []

    def add(self, full: Answers, early: Answers, exits: Sequence[Answers], targets: np.ndarray | None) -> None:
        """Grades the answers to one batch of B queries.

        Args:
            full, early: those of the whole network and of the bundle, one array (B, ...) per output.
            exits: those of each exit.
            targets: (B, ...) the true answers; ``None`` without.
        """
        task = self._task
        if targets is not None:
            for found, answers in ((self._full, full), (self._early, early)):
                found.append((task.quality(answers, targets), task.counts(answers, targets)))
        agreement = task.agreement(early, full)
        self._agreement.append(agreement)
        by_exit = [task.agreement(answers, full) for answers in exits]
        self._exit_agreement.append(np.array(by_exit, np.float32).reshape(len(exits), len(agreement)))

    def finish(self) -> Graded:
        """Returns the grades of all batches; at least one has been added."""
        return Graded(
            full=self._join(self._full),
            early=self._join(self._early),
            agreement=np.concatenate(self._agreement),
            exit_agreement=np.concatenate(self._exit_agreement, axis=1),
        )

    def _join(self, found: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> Grades | None:
        if not found:
            return None
        counts = [batch for _, batch in found if batch is not None]
        return Grades(
            task=self._task,
            quality=np.concatenate([quality for quality, _ in found]),
            counts=np.concatenate(counts) if counts else None,
        )

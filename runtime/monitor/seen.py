"""Seen rows: rows that went to the end, with the answers of all exits judged against the final head's. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from artifacts import Answers, Task


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SeenRows:
    """Rows that were seen at every exit; E exits and the final head.

    Attributes:
        exit_index: (n,) int64, where they left.
        confidence: (E + 1, n) float32.
        agreement: (E + 1, n) float32 in [0, 1], with the final head's answer.
        predictions: (E + 1, n) int32, the class that each exit answers, where the task has classes.
        inputs: one array (n, ...) per input of the network, where they are logged; otherwise none.
    """

    exit_index: np.ndarray
    confidence: np.ndarray
    agreement: np.ndarray
    predictions: np.ndarray | None = None
    inputs: tuple[np.ndarray, ...] = ()

    @property
    def early(self) -> list[tuple[int, float]]:
        """The exit of each row that left early, and how far its answer there is the final head's."""
        final = len(self.confidence) - 1
        return [
            (exit_index, float(self.agreement[exit_index, row]))
            for row, exit_index in enumerate(self.exit_index.tolist())
            if exit_index < final
        ]


def judge_rows(
    task: Task,
    exit_index: np.ndarray,
    answered: Sequence[tuple[np.ndarray, Answers]],
    inputs: tuple[np.ndarray, ...] = (),
) -> SeenRows:
    """Compares the answers of all exits with the final head's.

    Args:
        task: says how far two answers agree.
        exit_index: (n,) where the rows left.
        answered: per exit, last the final head: confidences (n,) and answers, one array (n, ...) per output.
        inputs: as in ``SeenRows``.
    """
    final = answered[-1][1]
    classes = [task.predictions(answers) for _, answers in answered]
    return SeenRows(
        exit_index=exit_index,
        confidence=np.stack([confidence for confidence, _ in answered]),
        agreement=np.stack([task.agreement(answers, final) for _, answers in answered]).astype(np.float32),
        predictions=None if classes[0] is None else np.array(classes, np.int32),
        inputs=inputs,
    )

"""Tasks: how outputs become a metric. One small protocol, so that other tasks find their seat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from artifacts import unknown_name


class Task(Protocol):
    """What planning needs to know of a task; answers are the model's outputs, one array (n, ...) each."""

    @property
    def name(self) -> str: ...

    def metric(self, answers: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
        """Returns (n,) float32 in [0, 1] per sample; the task metric is its mean."""

    def agreement(self, answers: Sequence[np.ndarray], final: Sequence[np.ndarray]) -> np.ndarray:
        """Returns (n,) bool: does the exit answer what the final head answers?"""

    def predictions(self, answers: Sequence[np.ndarray]) -> np.ndarray | None:
        """Returns (n,) int32, the class of each sample; ``None`` where answers are no classes."""


class Classification:
    """Top-1 accuracy over logits or probabilities (n, classes) as the first output."""

    name = "classification"

    def metric(self, answers: Sequence[np.ndarray], labels: np.ndarray) -> np.ndarray:
        right: np.ndarray = answers[0].argmax(axis=1) == labels
        return right.astype(np.float32)

    def agreement(self, answers: Sequence[np.ndarray], final: Sequence[np.ndarray]) -> np.ndarray:
        same: np.ndarray = answers[0].argmax(axis=1) == final[0].argmax(axis=1)
        return same

    def predictions(self, answers: Sequence[np.ndarray]) -> np.ndarray | None:
        classes: np.ndarray = answers[0].argmax(axis=1).astype(np.int32)
        return classes


def find_task(name: str) -> Task:
    """Returns the task called ``name``; an unknown one is a ``UsageError`` that suggests the nearest."""
    tasks: dict[str, Task] = {"classification": Classification()}
    if name not in tasks:
        raise unknown_name("task", name, tasks)
    return tasks[name]

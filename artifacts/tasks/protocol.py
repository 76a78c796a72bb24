"""The task protocol: how a network's outputs become answers, a metric and an agreement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

Answers = Sequence[np.ndarray]
"""A network's outputs in their order, one array (n, ...) each."""


@runtime_checkable
class Task(Protocol):
    """A task, as calibration, planning and a running host see it; arrays hold n samples."""

    @property
    def name(self) -> str:
        """The name under which models and bundles store the task, e.g. ``classification``."""

    @property
    def metric_name(self) -> str:
        """The usual name of the metric, e.g. ``accuracy``."""

    @property
    def confidence(self) -> str:
        """The recipe by which ``export`` computes a confidence inside the graph: a name in its table of recipes."""

    @property
    def loss(self) -> str:
        """The loss by which ``calibration`` trains exit heads: a name in its table of losses."""

    def quality(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray:
        """Returns (n,) float32 in [0, 1]: how good each answer is; 1 is a fully correct one.

        The metric of the task is its mean, unless ``counts`` says otherwise.
        """

    def agreement(self, answers: Answers, final: Answers, /) -> np.ndarray:
        """Returns (n,) float32 in [0, 1]: the agreement of each answer with the final head's; 1 is the same answer."""

    def counts(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray | None:
        """Returns (n, k) float64 per sample, whose sum over any samples decides their metric (true positives, unions
        ...); ``None`` where the metric is the mean of ``quality``."""

    def summarise(self, counts: np.ndarray, /) -> float:
        """Returns the metric in [0, 1] of a set of samples from the sum (k,) of their ``counts``."""

    def predictions(self, answers: Answers, /) -> np.ndarray | None:
        """Returns (n,) int32, the class of each sample; ``None`` where answers are not classes."""

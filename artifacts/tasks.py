"""Tasks: how a network's outputs become answers, a metric and an agreement.

The model and the bundle store the name of their task. The name is looked up in ``TASKS`` and never imports a module. A
custom task is passed as an object: ``Runtime.load(..., task=mine)``, or as ``--task module:object`` on the command
line, where the user has typed the module's name.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from artifacts.errors import UsageError, unknown_name

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


class Classification:
    """Top-1 accuracy over logits or probabilities (n, classes) as the first output; targets are (n,) class indices."""

    name = "classification"
    metric_name = "accuracy"
    confidence = "max-softmax"
    loss = "cross-entropy"

    def quality(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray:
        right: np.ndarray = answers[0].argmax(axis=1) == targets
        return right.astype(np.float32)

    def agreement(self, answers: Answers, final: Answers, /) -> np.ndarray:
        same: np.ndarray = answers[0].argmax(axis=1) == final[0].argmax(axis=1)
        return same.astype(np.float32)

    def counts(self, _answers: Answers, _targets: np.ndarray, /) -> np.ndarray | None:
        return None

    def summarise(self, _counts: np.ndarray, /) -> float:
        raise UsageError("the metric of classification is a mean over samples; it has no counts to summarise")

    def predictions(self, answers: Answers, /) -> np.ndarray | None:
        classes: np.ndarray = answers[0].argmax(axis=1).astype(np.int32)
        return classes


TASKS: Mapping[str, Task] = {task.name: task for task in (Classification(),)}


def find_task(name: str) -> Task:
    """Returns the task that a model or a bundle names.

    Raises:
        UsageError: ``TASKS`` has no such task.
    """
    if name not in TASKS:
        raise UsageError(
            f"{unknown_name('task', name, TASKS)} Pass a task of your own as an object: Runtime.load(..., "
            "task=mine), or --task module:object"
        )
    return TASKS[name]


def load_task(reference: str) -> Task:
    """Returns the task that a command line names: one of ``TASKS``, or ``module:object`` that can be imported.

    Raises:
        UsageError: there is no such task, module or object, or the object is not a task.
    """
    module, colon, attribute = reference.partition(":")
    if not colon:
        return find_task(reference)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"--task {reference}: {error}; expected module:object, with the module on PYTHONPATH"
        ) from error
    task = found() if isinstance(found, type) else found
    if not isinstance(task, Task):
        raise UsageError(f"--task {reference}: {type(task).__name__} is not a task; see artifacts.Task for its methods")
    return task

"""The reference of a trace: the same network in float32, where the traced one computes more coarsely.

Tolerances are about what a user had before: a quantised network, or one in bfloat16, loses something even without
exits, and that counts. The reference runs on ONNX Runtime on the processor, whatever the traced engines are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from artifacts import PRECISIONS, Answers, GraphSpec, Model, Reference, Task
from engines import GraphRunner, arithmetic_of


def reference_graph(model: Model, backend: str) -> GraphSpec | None:
    """Returns the network in float32 that tolerances refer to; ``None`` where the traced network is that itself.

    Args:
        model: the network that is traced.
        backend: on which it is.
    """
    if model.spec.reference is not None:
        return model.spec.reference
    coarse = arithmetic_of(backend) != PRECISIONS[0] and model.spec.precision == PRECISIONS[0]
    return model.spec.full if coarse else None


class ReferenceNetwork:
    """The network in float32, opened to answer the traced samples; close it."""

    def __init__(self, model: Model, graph: GraphSpec, *, threads: int) -> None:
        self._graph = graph
        self._runner = GraphRunner(model.path(graph), threads=threads)
        self._found = _Collected()

    def add(self, inputs: Mapping[str, np.ndarray], exits: Sequence[Answers], task: Task,
            targets: np.ndarray | None) -> None:  # fmt: skip
        """Answers some samples and keeps what a task says of the answers.

        Args:
            inputs: name -> (n, ...).
            exits: the answers of every exit to them, the final head's last.
            task: judges the answers.
            targets: the right ones; ``None`` without labels.
        """
        answered = self._runner.run(
            {spec.name: inputs[spec.name] for spec in self._graph.inputs}, outputs=self._graph.answers
        )
        answers = [answered[name] for name in self._graph.answers]
        found = self._found
        found.agreement.append(np.stack([task.agreement(given, answers) for given in exits]))
        if (classes := task.predictions(answers)) is not None:
            found.predictions.append(np.asarray(classes, np.int32))
        if targets is not None:
            found.metric.append(task.quality(answers, targets))
            if (counts := task.counts(answers, targets)) is not None:
                found.counts.append(np.asarray(counts, np.float64))

    def collected(self) -> Reference:
        """Returns what was kept, in the order of the samples; without labels the metric is 1: it agrees with itself."""
        found = self._found
        agreement = np.concatenate(found.agreement, axis=1).astype(np.float32)
        ones = np.ones(agreement.shape[1], np.float32)
        return Reference(
            metric=np.concatenate(found.metric).astype(np.float32) if found.metric else ones,
            agreement=agreement,
            predictions=np.concatenate(found.predictions) if found.predictions else None,
            counts=np.concatenate(found.counts) if found.counts else None,
        )

    def close(self) -> None:
        """Frees the network; may be called twice."""
        self._runner.close()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Collected:
    """One array per chunk of n samples: the agreement (E + 1, n), others (n, ...)."""

    metric: list[np.ndarray] = field(default_factory=list)
    agreement: list[np.ndarray] = field(default_factory=list)
    predictions: list[np.ndarray] = field(default_factory=list)
    counts: list[np.ndarray] = field(default_factory=list)

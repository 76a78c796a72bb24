"""Whether what two sides compute differently moves a decision: the class of a row, or whether it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from artifacts import FINAL_HEAD_LABEL, GraphSpec, Model
from engines.comparing.runners import Side, run_side


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedDecisions:
    """What an exit, or the final head, decides otherwise on the second side; plain data.

    Attributes:
        exit: the name of its cut, or ``final head``.
        confidence_error: the largest difference of a confidence.
        classes_moved: the share of rows with another class; ``None`` where answers are not one number per class.
        rows_moved: the share of rows that leave on one side only; ``None`` where no plan uses this exit, or its
            confidence is a learned one.
    """

    exit: str
    confidence_error: float
    classes_moved: float | None
    rows_moved: float | None


def compare_decisions(
    models: tuple[Model, Model], sides: tuple[Side, Side], inputs: Mapping[str, np.ndarray],
    thresholds: Mapping[str, float],
) -> list[MovedDecisions]:  # fmt: skip
    """Compares what every exit that both models have, and the final head, say to some rows.

    The graphs have the outputs here that they have in an engine, and the tensors at the cuts.

    Args:
        models: of either side; the same one where only the backends differ.
        sides: which engines.
        inputs: rows, name -> (n, ...).
        thresholds: exit -> from which confidence on a row leaves; exits without one are compared as well.
    """
    answered = [_answer_everywhere(model, side, inputs) for model, side in zip(models, sides, strict=True)]
    first, second = answered
    return [
        _compare(name, first[name], second[name], thresholds.get(name)) for name in first if name in second
    ]  # fmt: skip


def _answer_everywhere(
    model: Model, side: Side, inputs: Mapping[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns exit -> (answers, confidences); exits without a confidence are left out."""
    spec = model.spec
    cuts = {cut.name: [tensor.name for tensor in cut.tensors] for cut in spec.cuts if cut.name in spec.heads}
    ends = [*spec.full.answers[:1], *([spec.full.confidence] if spec.full.confidence else [])]
    wanted = list(dict.fromkeys([*ends, *(name for names in cuts.values() for name in names)]))
    made = [name for name in wanted if name not in inputs]
    tensors = {**inputs, **run_side(side, inputs, made)}
    found = {}
    for name in cuts:
        graph = spec.heads[name]
        head = replace(side, onnx=model.path(graph))
        given = {tensor.name: tensors[tensor.name] for tensor in graph.inputs}
        found[name] = _ends_of(graph, run_side(head, given, [graph.answers[0], str(graph.confidence)]))
    if spec.full.confidence:
        found[FINAL_HEAD_LABEL] = _ends_of(spec.full, tensors)
    return found


def _ends_of(graph: GraphSpec, tensors: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    return tensors[graph.answers[0]], tensors[str(graph.confidence)]


def _compare(
    name: str, first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], threshold: float | None
) -> MovedDecisions:
    (answers, sure), (others, other_sure) = first, second
    moved = None
    if answers.ndim == 2 and answers.dtype.kind == "f" and answers.shape[1] > 1:
        moved = float((answers.argmax(axis=1) != others.argmax(axis=1)).mean())
    left = None
    if threshold is not None:
        level = np.float32(threshold)
        left = float(((sure >= level) != (other_sure >= level)).mean())
    apart = float(np.max(np.abs(sure.astype(np.float64) - other_sure.astype(np.float64)), initial=0.0))
    return MovedDecisions(exit=name, confidence_error=apart, classes_moved=moved, rows_moved=left)

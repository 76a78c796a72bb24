"""Confidence of a number with a predicted spread: ``1 / (1 + spread)`` of answers (B, 2), value and log spread."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from export.graphs.surgery import add_constant, make_node


def is_value_with_spread(values: np.ndarray, linear: bool) -> bool:  # noqa: FBT001
    """Does an answer hold a value and the logarithm of its spread? Arguments as ``ConfidenceRecipe.applies``."""
    return values.ndim == 2 and values.shape[1] == 2 and values.dtype.kind == "f" and linear


def add_spread(graph: ir.Graph, answer: ir.Value, _terms: str, name: str) -> ir.Value:
    """``1 / (1 + exp(log spread))``, the logistic function of its negative."""
    second = add_constant(graph, f"{name}/second", np.array(1, np.int64))
    column = make_node("Gather", [answer, second], f"{name}/log_spread", axis=1)
    negative = make_node("Neg", [column.outputs[0]], f"{name}/negative")
    confidence = make_node("Sigmoid", [negative.outputs[0]], name)
    graph.extend([column, negative, confidence])
    return confidence.outputs[0]

"""Confidence of a choice among classes: the largest probability of each row."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from artifacts import TensorSpec
from export.confidence.recipe import LOGITS, PROBABILITIES
from export.graphs.dataflow import name_of
from export.graphs.loading import LoadedGraph
from export.graphs.surgery import add_constant, make_node

_SHAPE_ONLY = frozenset({"Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_LINEAR = frozenset({"Add", "Conv", "Einsum", "FusedMatMul", "Gemm", "MatMul"})
_SUM_TOLERANCE = 1e-2  # of the probabilities of a row, in half precision too


def find_terms(values: np.ndarray) -> str:
    """Tells by the values of an answer whether it holds logits or probabilities.

    Args:
        values: (n, K), or (n, K, H, W) with one class per pixel: answers to random rows.
    """
    sums = values.sum(axis=1 if values.ndim == 4 else -1, dtype=np.float64)
    return PROBABILITIES if (values >= 0).all() and (np.abs(sums - 1) <= _SUM_TOLERANCE).all() else LOGITS


def is_choice(values: np.ndarray, linear: bool) -> bool:  # noqa: FBT001
    """Does an answer hold one number per class, of which one is chosen?

    Several probabilities that do not sum to 1 are answers to several questions.

    Args:
        values: (n, ...): answers to random rows.
        linear: nothing bounds the values, so they are not probabilities even where all lie between 0 and 1.
    """
    if values.ndim != 2 or values.shape[1] < 2 or values.dtype.kind != "f":
        return False
    in_unit_interval = bool(((values >= 0) & (values <= 1)).all())
    return linear or not in_unit_interval or find_terms(values) == PROBABILITIES


def ends_linear(graph: ir.Graph, output: str) -> bool:
    """Does an output come straight from a linear operator?"""
    value: ir.Value | None = next(value for value in graph.outputs if name_of(value) == output)
    node = None if value is None else value.producer()
    while node is not None and node.op_type in _SHAPE_ONLY:
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return node is not None and node.op_type in _LINEAR


def add_max_softmax(graph: ir.Graph, answer: ir.Value, terms: str, name: str) -> ir.Value:
    """The largest probability of each row."""
    current = answer
    if terms == LOGITS:
        softmax = make_node("Softmax", [current], f"{name}/probabilities", axis=-1)
        graph.append(softmax)
        current = softmax.outputs[0]
    axes = add_constant(graph, f"{name}/axes", np.array([-1], np.int64))
    largest = make_node("ReduceMax", [current, axes], name, keepdims=0)
    graph.append(largest)
    return largest.outputs[0]


def is_yes_or_no(values: np.ndarray, linear: bool) -> bool:  # noqa: FBT001
    """Does an answer hold one probability per row, (n,) or (n, 1)? Arguments as for ``is_choice``."""
    single = values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)
    return single and values.dtype.kind == "f" and not linear and bool(((values >= 0) & (values <= 1)).all())


def flatten_answer(loaded: LoadedGraph, answer: TensorSpec) -> LoadedGraph:
    """Takes the axes of size 1 off an answer: (B, K, 1, 1), (B, 1, K) -> (B, K).

    Args:
        loaded: the graph; its model is changed in place.
        answer: one of its outputs, of whose axes one at most is longer than 1.
    """
    graph, name = loaded.model.graph, answer.name
    given = next(output for output in graph.outputs if name_of(output) == name)
    given.name = f"{name}/given"
    shape = add_constant(graph, f"{name}/flat", np.array([-1, max(answer.row_shape)], np.int64))
    flat = make_node("Reshape", [given, shape], name)
    graph.append(flat)
    flat.outputs[0].type = given.type
    graph.outputs[:] = [flat.outputs[0] if output is given else output for output in graph.outputs]
    note = f"answer '{name}' with rows of shape {answer.row_shape} became one of shape ({max(answer.row_shape)},)"
    return replace(loaded, notes=(*loaded.notes, note))


def why_no_choice(values: np.ndarray) -> str:
    """Says why no confidence is known for answers (n, ...) to random rows, and what to do."""
    if values.dtype.kind != "f":
        return f"it holds {values.dtype}, the choice itself. Save a copy that ends before it, at the logits"
    if values.ndim == 1 or values.shape[1:] == (1,):
        return (
            "it is one number per row that nothing bounds. If it tells two classes apart, export the network with its "
            "sigmoid; if it is a value, with --task regression and a second number, its spread"
        )
    if values.ndim == 2:
        return "its numbers lie between 0 and 1 and do not sum to 1: they answer several questions"
    return f"its rows have the shape {values.shape[1:]}, not one number per class"


def widen_yes_or_no(loaded: LoadedGraph, answer: TensorSpec) -> LoadedGraph:
    """Makes two classes of an answer that is one probability: (B,) or (B, 1) -> (B, 2), no and yes.

    Args:
        loaded: the graph; its model is changed in place.
        answer: one of its outputs.
    """
    graph, name = loaded.model.graph, answer.name
    yes = next(output for output in graph.outputs if name_of(output) == name)
    yes.name = f"{name}/given"
    column = add_constant(graph, f"{name}/column", np.array([-1, 1], np.int64))
    one = add_constant(graph, f"{name}/one", np.ones((1, 1), answer.dtype))
    shaped = make_node("Reshape", [yes, column], f"{name}/yes")
    no = make_node("Sub", [one, shaped.outputs[0]], f"{name}/no")
    both = make_node("Concat", [no.outputs[0], shaped.outputs[0]], name, axis=1)
    graph.extend([shaped, no, both])
    both.outputs[0].type = yes.type
    graph.outputs[:] = [both.outputs[0] if output is yes else output for output in graph.outputs]
    note = f"answer '{name}', one probability, became two classes: no and yes"
    return replace(loaded, notes=(*loaded.notes, note))

"""Confidence recipes: how sure a network is of an answer, computed in its graph in float32.

A recipe has a name, by which a task chooses it (``Task.confidence``), and a line in ``RECIPES``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from artifacts import TensorSpec, unknown_name
from export.graphs.dataflow import name_of
from export.graphs.loading import LoadedGraph
from export.graphs.surgery import add_constant, make_node

LOGITS, PROBABILITIES = "logits", "probabilities"
_SHAPE_ONLY = frozenset({"Cast", "Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"})
_LINEAR = frozenset({"Add", "Conv", "Einsum", "FusedMatMul", "Gemm", "MatMul"})
_SUM_TOLERANCE = 1e-2  # of the probabilities of a row, in half precision too


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceRecipe:
    """A way to compute one confidence per row from an answer.

    Attributes:
        applies: can it be computed from answers with these values, (n, ...)? The second argument: does the
            answer come straight from a linear operator, so that nothing bounds its values?
        add: appends its nodes to a graph: (graph, float32 answer, the answer's terms, name of the new tensor) -> the
            tensor, (B,) float32.
    """

    applies: Callable[[np.ndarray, bool], bool]
    add: Callable[[ir.Graph, ir.Value, str, str], ir.Value]


def find_recipe(name: str) -> ConfidenceRecipe:
    """Returns a confidence recipe by its name.

    Raises:
        UsageError: there is no such recipe.
    """
    if name not in RECIPES:
        raise unknown_name("confidence recipe", name, RECIPES)
    return RECIPES[name]


def find_terms(values: np.ndarray) -> str:
    """Tells by the values of an answer whether it holds logits or probabilities.

    Args:
        values: (n, K): answers to random rows.
    """
    sums = values.sum(axis=-1, dtype=np.float64)
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


def _add_max_softmax(graph: ir.Graph, answer: ir.Value, terms: str, name: str) -> ir.Value:
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


RECIPES: Mapping[str, ConfidenceRecipe] = {
    "max-softmax": ConfidenceRecipe(applies=is_choice, add=_add_max_softmax),
}


def is_yes_or_no(values: np.ndarray, linear: bool) -> bool:  # noqa: FBT001
    """Does an answer hold one probability per row, (n,) or (n, 1)? Arguments as for ``is_choice``."""
    single = values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1)
    return single and values.dtype.kind == "f" and not linear and bool(((values >= 0) & (values <= 1)).all())


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


def add_confidence(
    loaded: LoadedGraph, answer: TensorSpec, *, recipe: ConfidenceRecipe, terms: str, name: str
) -> tuple[LoadedGraph, str]:
    """Adds the confidence of an answer as the last output of a graph.

    Args:
        loaded: the graph; its model is changed in place.
        answer: one of its outputs.
        recipe: one that applies to it.
        terms: of the answer, as ``find_terms`` says.
        name: of the new output; a number is added where it is taken.

    Returns:
        The graph and the name of the new output.
    """
    graph = loaded.model.graph
    taken = ir.convenience.create_value_mapping(graph, include_subgraphs=True)
    free = next(free for free in (name, *(f"{name}_{i}" for i in range(len(taken) + 1))) if free not in taken)
    value = next(output for output in graph.outputs if name_of(output) == answer.name)
    if answer.dtype != "float32":
        cast = make_node("Cast", [value], f"{free}/float32", to=ir.DataType.FLOAT)
        graph.append(cast)
        value = cast.outputs[0]
    graph.outputs.append(recipe.add(graph, value, terms, free))
    return replace(loaded, outputs=(*loaded.outputs, free)), free

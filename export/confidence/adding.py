"""The table of confidence recipes, and adding the confidence of an answer to a graph.

A recipe has a name, by which a task chooses it (``Task.confidence``), and a line in ``RECIPES``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import onnx_ir as ir

from artifacts import TensorSpec, unknown_name
from export.confidence.choice import add_max_softmax, is_choice
from export.confidence.dense import DENSE, is_dense
from export.confidence.heatmaps import HEAT_MAPS, is_heat_maps
from export.confidence.recipe import ConfidenceRecipe
from export.confidence.spread import add_spread, is_value_with_spread
from export.graphs.dataflow import name_of
from export.graphs.files import BATCH
from export.graphs.loading import LoadedGraph
from export.graphs.surgery import make_node

RECIPES: Mapping[str, ConfidenceRecipe] = {
    "max-softmax": ConfidenceRecipe(applies=is_choice, add=add_max_softmax),
    **{name: ConfidenceRecipe(applies=is_dense, add=add) for name, add in DENSE.items()},
    **{name: ConfidenceRecipe(applies=is_heat_maps, add=add) for name, add in HEAT_MAPS.items()},
    "predicted-spread": ConfidenceRecipe(applies=is_value_with_spread, add=add_spread),
}


def find_recipe(name: str) -> ConfidenceRecipe:
    """Returns a confidence recipe by its name.

    Raises:
        UsageError: there is no such recipe.
    """
    if name not in RECIPES:
        raise unknown_name("confidence recipe", name, RECIPES)
    return RECIPES[name]


def recipes_like(name: str) -> tuple[str, ...]:
    """Returns the names of all recipes for answers of the form that a recipe is for."""
    form = find_recipe(name).applies
    return tuple(other for other, recipe in RECIPES.items() if recipe.applies is form)


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
    value.shape = ir.Shape([BATCH, *answer.row_shape])
    if answer.dtype != "float32":
        cast = make_node("Cast", [value], f"{free}/float32", to=ir.DataType.FLOAT)
        graph.append(cast)
        value = cast.outputs[0]
        value.shape = ir.Shape([BATCH, *answer.row_shape])
    graph.outputs.append(recipe.add(graph, value, terms, free))
    return replace(loaded, outputs=(*loaded.outputs, free)), free

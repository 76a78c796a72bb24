"""Scoring: the confidences of answers by several recipes at once, by the very nodes that go into the graphs."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
import onnx_ir as ir

from artifacts import TensorSpec
from export.confidence.adding import add_confidence, find_recipe
from export.graphs.files import BATCH
from export.graphs.loading import prepare_graph
from export.graphs.normalising import OPSET, normalise_model
from export.graphs.probing import open_graph
from export.graphs.surgery import make_node

_IR_VERSION = 10


class Scorer:
    """Confidences of answers of one shape. Close it, or use it in a ``with``."""

    def __init__(self, row_shape: tuple[int, ...], *, recipes: Sequence[str], terms: str) -> None:
        """Makes the graph.

        Args:
            row_shape: of an answer, float32.
            recipes: names in ``RECIPES``.
            terms: of the answers.
        """
        given = ir.Value(name="given", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([BATCH, *row_shape]))
        answer = make_node("Identity", [given], "answer")
        value = answer.outputs[0]
        value.type, value.shape = given.type, given.shape
        graph = ir.Graph([given], [value], nodes=[answer], name="scorer", opset_imports={"": OPSET})
        model = normalise_model(ir.Model(graph, ir_version=_IR_VERSION))
        loaded = prepare_graph(model, input_shapes={}, where="the confidences")
        name = loaded.outputs[0]
        spec = TensorSpec(name=name, dtype="float32", row_shape=row_shape)
        self._outputs = {}
        for recipe in recipes:
            loaded, self._outputs[recipe] = add_confidence(
                loaded, spec, recipe=find_recipe(recipe), terms=terms, name=f"by/{recipe}"
            )
        self._input = loaded.inputs[0].name
        self._runner = open_graph(loaded.model)

    def score(self, answers: np.ndarray) -> dict[str, np.ndarray]:
        """Returns recipe -> (n,) float32 for answers (n, ...)."""
        found = self._runner.run({self._input: answers}, outputs=tuple(self._outputs.values()))
        return {recipe: found[name] for recipe, name in self._outputs.items()}

    def close(self) -> None:
        """Closes the graph; may be called twice."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

"""ConfidenceRecipe: a way to compute one confidence per row inside a graph, in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

LOGITS, PROBABILITIES = "logits", "probabilities"


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

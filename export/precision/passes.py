"""Precision passes: the table of them, and the measurement that each has to stand.

A pass works on the whole network before it is cut, so that a cut tensor gets its type once, for both sides.
A pass is a function in a file of its own and a line in ``_PASSES``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from artifacts import PRECISIONS, GraphError, unknown_name
from export.graphs.loading import LoadedGraph
from export.graphs.probing import draw_rows, open_graph, relative_error
from export.precision.fp16 import convert_to_fp16

LOST_LIMIT = 0.05  # of the magnitude: more is no rounding but a conversion that went wrong


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassRequest:
    """What a pass is asked for.

    Attributes:
        half: inputs and outputs that shall have the precision's own type, those at cuts for instance; the others stay
            as they are for whoever calls the network.
        rows: input name -> (n, ...): rows on which a pass may measure the network, and on which it is measured itself.
    """

    half: Collection[str]
    rows: Mapping[str, np.ndarray]


Pass = Callable[[LoadedGraph, PassRequest], LoadedGraph]

_PASSES: dict[str, Pass] = {
    "fp32": lambda loaded, _request: loaded,
    "fp16": lambda loaded, request: convert_to_fp16(loaded, request.half, request.rows),
}


def apply_precision(
    loaded: LoadedGraph,
    precision: str,
    *,
    half: Collection[str] = (),
    samples: Mapping[str, np.ndarray] | None = None,
) -> tuple[LoadedGraph, float]:
    """Returns the graph in another precision.

    Args:
        loaded: the graph in float32; changed in place.
        precision: one of ``artifacts.PRECISIONS``.
        half: see ``PassRequest``.
        samples: input name -> (n, ...): real inputs, for passes that calibrate themselves; ``None``: random rows.

    Returns:
        The graph, and how far its outputs are from what they were, relative to their magnitude.

    Raises:
        UsageError: there is no such precision.
        GraphError: the network cannot be had in it: an output is no longer finite, or far off.
    """
    if precision not in _PASSES:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision in (PRECISIONS[0], loaded.precision):
        return loaded, 0.0
    rows = draw_rows(loaded, 3) if samples is None else samples
    with open_graph(loaded.model) as runner:
        before = runner.run(rows)
    converted = _PASSES[precision](loaded, PassRequest(half=half, rows=rows))
    types = {spec.name: spec.dtype for spec in converted.inputs}
    with open_graph(converted.model) as runner:
        after = runner.run({name: array.astype(types[name]) for name, array in rows.items()})
    return converted, _measure_loss(before, after, precision)


def _measure_loss(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray], precision: str) -> float:
    worst = 0.0
    for name, reference in before.items():
        if reference.dtype.kind != "f":
            continue
        _, loss = relative_error(after[name].astype(reference.dtype), reference)
        if not loss <= LOST_LIMIT:
            raise GraphError(
                f"the network cannot be had in {precision}: on the rows it was measured on, its output '{name}' "
                f"differs by {loss:.1e} of its magnitude from the network in fp32, where {LOST_LIMIT:g} is allowed. "
                "Export it in fp32"
            )
        worst = max(worst, loss)
    return worst

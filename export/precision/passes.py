"""Precision passes: the table of them, and the measurement that each has to stand.

A pass works on the whole network before it is cut, so that a cut tensor gets its type once, for both sides.
A pass is a function in a file of its own and a line in ``_PASSES``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from artifacts import PRECISIONS, GraphError, unknown_name
from export.graphs.loading import LoadedGraph
from export.graphs.probing import draw_rows, open_graph, relative_error
from export.precision.fp16 import convert_to_fp16
from export.precision.int8 import Agreement, Int8Report, quantise

LOST_LIMIT = 0.05  # of the magnitude: more is no rounding but a conversion that went wrong


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassRequest:
    """What a pass is asked for.

    Attributes:
        half: inputs and outputs that shall have the precision's own type, those at cuts for instance; the others stay
            as they are for whoever calls the network.
        rows: input name -> (n, ...): rows on which a pass may measure the network, and on which it is measured itself.
        answers: the outputs that the network answers with; none: all.
        agreement: of answers with those in float32, as ``Task.agreement``, for int8; ``None``: closeness.
    """

    half: Collection[str] = ()
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    agreement: Agreement | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Converted:
    """A graph in another precision.

    Attributes:
        loaded: the graph.
        loss: how far its outputs are from what they were, relative to their magnitude: the largest difference, or of
            int8 the root of the mean square on real rows.
        report: of the calibration; ``None`` without.
    """

    loaded: LoadedGraph
    loss: float = 0.0
    report: Int8Report | None = None


def _halve(loaded: LoadedGraph, request: PassRequest) -> Converted:
    with open_graph(loaded.model) as runner:
        before = runner.run(request.rows)
    converted = convert_to_fp16(loaded, request.half, request.rows)
    types = {spec.name: spec.dtype for spec in converted.inputs}
    with open_graph(converted.model) as runner:
        after = runner.run({name: array.astype(types[name]) for name, array in request.rows.items()})
    return Converted(loaded=converted, loss=_measure_loss(before, after, "fp16"))


def _quantise(loaded: LoadedGraph, request: PassRequest, *, symmetric: bool = False) -> Converted:
    if loaded.rounding != PRECISIONS[0]:
        raise GraphError(
            f"--precision int8 starts from a network in float32, and this one computes in {loaded.rounding} already. "
            "Leave the flag out, or name the network in float32"
        )
    answers = request.answers or loaded.outputs
    found, report = quantise(loaded, request.half, answers, request.rows, request.agreement, symmetric=symmetric)
    return Converted(loaded=found, loss=report.error, report=report)


Pass = Callable[[LoadedGraph, PassRequest], Converted]

_PASSES: dict[str, Pass] = {
    "fp32": lambda loaded, _request: Converted(loaded=loaded),
    "fp16": _halve,
    "int8": _quantise,
    "int8-symmetric": partial(_quantise, symmetric=True),
}


def apply_precision(loaded: LoadedGraph, precision: str, request: PassRequest | None = None) -> Converted:
    """Returns the graph in another precision.

    Args:
        loaded: the graph in float32; changed in place.
        precision: one of ``artifacts.PRECISIONS``.
        request: see there; without rows, random ones are drawn.

    Raises:
        UsageError: there is no such precision.
        GraphError: the network cannot be had in it: an output is no longer finite, or far off.
    """
    if precision not in _PASSES:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision in (PRECISIONS[0], loaded.precision):
        return Converted(loaded=loaded)
    request = request or PassRequest()
    if not request.rows:
        request = replace(request, rows=draw_rows(loaded, 3))
    return _PASSES[precision](loaded, request)


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

"""Buffer checks: names, layouts and numbers of rows, checked before an engine binds its buffers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from artifacts import EngineError, EngineKey, GraphSpec, TensorSpec
from engines.protocols import Buffer


def check_host_buffers(
    graph: GraphSpec, key: EngineKey, buffers: Mapping[str, object]
) -> tuple[dict[str, np.ndarray], int]:
    """Checks host buffers against the interface of a graph.

    Returns:
        The buffers, and their common number of rows.

    Raises:
        EngineError: a name is missing or unknown, a buffer is not a contiguous array of the right dtype and row shape,
            an output is read-only, the numbers of rows differ, or the engine does not take that batch size.
    """
    specs = specs_by_name(graph, buffers)
    outputs = {spec.name for spec in graph.outputs}
    arrays: dict[str, np.ndarray] = {}
    for name, spec in specs.items():
        array, where = buffers[name], f"{graph.name}: buffer '{name}'"
        if not isinstance(array, np.ndarray) or array.ndim < 1:
            raise EngineError(f"{where} is a {type(array).__name__}, expected a numpy array with the batch in front")
        check_layout(array, spec, where)
        if not array.flags.c_contiguous:
            raise EngineError(f"{where} is not contiguous; bind leading rows of a buffer from Device.allocate")
        if name in outputs and not array.flags.writeable:
            raise EngineError(f"{where} is read-only but the engine writes it; bind a buffer from Device.allocate")
        arrays[name] = array
    return arrays, count_rows(graph, key, arrays)


def view_graph(graph: GraphSpec, key: EngineKey, buffers: Mapping[str, object]) -> GraphSpec:
    """Returns the interface of a graph at the length that the buffers of a binding have.

    Raises:
        EngineError: the engine does not take that length.
    """
    length = read_length(graph, buffers)
    if length not in (0, *key.lengths):
        taken = ", ".join(map(str, key.lengths))
        raise EngineError(
            f"{graph.name}: the buffers have rows of length {length}, this engine takes {taken}; pad them to one"
        )
    return graph.at_length(length) if length else graph


def read_length(graph: GraphSpec, buffers: Mapping[str, object]) -> int:
    """Returns the length of the rows in the buffers of a binding; 0 where no buffer tells, or rows have one shape."""
    for spec in (*graph.inputs, *graph.outputs):
        shape = getattr(buffers.get(spec.name), "shape", ())
        if spec.length_axes and len(shape) == len(spec.row_shape) + 1:
            return int(shape[1 + spec.length_axes[0]])
    return 0


def specs_by_name(graph: GraphSpec, buffers: Mapping[str, object]) -> dict[str, TensorSpec]:
    """Returns what each buffer must be; raises ``EngineError`` when a name is missing or unknown."""
    specs = {spec.name: spec for spec in (*graph.inputs, *graph.outputs)}
    if set(specs) != set(buffers):
        raise EngineError(
            f"{graph.name}: cannot bind, missing buffers {sorted(set(specs) - set(buffers))}, "
            f"unknown buffers {sorted(set(buffers) - set(specs))}; bind exactly the graph's inputs and outputs"
        )
    return specs


def check_layout(array: Buffer, spec: TensorSpec, where: str) -> None:
    """Raises ``EngineError`` when an array has another dtype or row shape than its tensor."""
    if array.dtype != np.dtype(spec.dtype) or array.shape[1:] != spec.row_shape:
        raise EngineError(
            f"{where} has dtype {array.dtype} and rows of {array.shape[1:]}, expected {spec.dtype} and {spec.row_shape}"
        )


def count_rows(graph: GraphSpec, key: EngineKey, buffers: Mapping[str, Buffer]) -> int:
    """Returns the common number of rows; raises ``EngineError`` without one, or when the engine does not take it."""
    rows = {name: len(buffer) for name, buffer in buffers.items()}
    if len(set(rows.values())) != 1:
        raise EngineError(f"{graph.name}: buffers differ in their number of rows: {rows}")
    count = next(iter(rows.values()))
    check_batch_size(graph, key, count)
    return count


def check_batch_size(graph: GraphSpec, key: EngineKey, rows: int) -> None:
    """Raises ``EngineError`` when an engine with this key does not take ``rows`` rows."""
    if key.batch_sizes:
        if rows not in key.batch_sizes:
            sizes = ", ".join(map(str, key.batch_sizes))
            raise EngineError(
                f"{graph.name}: this engine takes batch sizes {sizes}, not {rows}; pad or split the batch"
            )
    elif not 1 <= rows <= key.max_batch_size:
        raise EngineError(
            f"{graph.name}: this engine takes 1 to {key.max_batch_size} rows, not {rows}; split the batch, or build "
            "the engine with a larger max_batch_size"
        )

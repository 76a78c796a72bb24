"""Proving: a file as it was is run against the graph that was made of it."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from artifacts import EngineError, GraphError
from engines import GraphRunner
from export.graphs.loading import LoadedGraph
from export.graphs.probing import TOLERANCES, draw_rows, expose_tensors, open_graph, relative_error, run_rows
from export.graphs.reading import read_model, weight_files

_UNKNOWN_OPERATOR = re.compile(r"(\S+)\(-?\d+\) is not a registered function/op")


class FixedBatchError(GraphError):
    """A file that declares an open batch and runs with one row alone."""


def prove_same(original: Path, loaded: LoadedGraph, *, seed: int = 1) -> tuple[float, float]:
    """Runs a file as it was against its rewritten graph, at the file's own batch size.

    Returns:
        Largest absolute and relative error over all outputs.

    Raises:
        FixedBatchError: the file runs with one row alone, whatever it declares.
        GraphError: the file does not run, answers the same rows in two ways, or the two differ by more than 1e-4 of
            the largest magnitude, or what coarser number formats allow.
    """
    count = loaded.fixed_batch or 2
    rows = draw_rows(loaded, count, seed=seed)
    with _open_original(original, loaded) as runner:
        reference = _run_original(original, runner, loaded, rows)
        again = _run_original(original, runner, loaded, rows)
    _check_determined(original, loaded, reference, again)
    with open_graph(loaded.model) as runner:
        found = runner.run(rows)
    errors = [relative_error(found[name], reference[name]) for name in loaded.outputs]
    absolute, relative = max(error[0] for error in errors), max(error[1] for error in errors)
    if relative > TOLERANCES[loaded.rounding]:
        raise GraphError(
            f"{original}: once its operators were brought to the current opset and its batch made symbolic, the "
            f"answers differ from the file's own by {relative:.1e} of their magnitude. "
            "Export it again with a dynamic batch axis"
        )
    return absolute, relative


def _run_original(
    path: Path, runner: GraphRunner, loaded: LoadedGraph, rows: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    run = (
        partial(runner.run, outputs=loaded.outputs)
        if loaded.sequence is None
        else partial(run_rows, runner, loaded=loaded, outputs=loaded.outputs)
    )
    try:
        return run(rows)
    except EngineError as error:
        if loaded.fixed_batch is not None:
            raise
        try:
            run({name: array[:1] for name, array in rows.items()})
        except EngineError:
            raise error from None
        raise FixedBatchError(
            f"{path} declares an open batch and runs with 1 row alone: {error}. Export it again with "
            "a dynamic batch axis"
        ) from error


def _check_determined(
    path: Path, loaded: LoadedGraph, first: dict[str, np.ndarray], second: dict[str, np.ndarray]
) -> None:
    """Refuses a network that draws random numbers: its answers mean nothing twice."""
    for name in loaded.outputs:
        _, error = relative_error(second[name], first[name])
        if error > TOLERANCES[loaded.rounding]:
            raise GraphError(
                f"{path}: output '{name}' of the same rows differs from run to run by {error:.1e} of its "
                "magnitude: it draws random numbers, as dropout in training mode does. Export the network "
                "in evaluation mode (model.eval())"
            )


def _open_original(path: Path, loaded: LoadedGraph) -> GraphRunner:
    """Opens a file as it is, with the outputs of the loaded graph where some were cut off.

    One with weights beside it is opened through onnx_ir: ONNX Runtime refuses shapes that lie there. So is one in
    which two nodes have one name, which means nothing and which it refuses too.
    """
    model = read_model(path)
    if not {value.name for value in model.graph.outputs} >= set(loaded.outputs):
        model = expose_tensors(model, loaded.outputs)
    elif not weight_files(path) and not _has_twins(model):
        try:
            return GraphRunner(path)
        except EngineError as error:
            raise _explain(path, error) from error
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        node.name = None
    try:
        return open_graph(model)
    except EngineError as error:
        raise _explain(path, error) from error


def _has_twins(model: ir.Model) -> bool:
    names = [node.name for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.name]
    return len(set(names)) < len(names)


def _explain(path: Path, error: EngineError) -> GraphError:
    """Returns an error that says what to do about a file that ONNX Runtime refuses."""
    unknown = _UNKNOWN_OPERATOR.search(str(error))
    if unknown is not None:
        return GraphError(
            f"{path}: ONNX Runtime has no operator {unknown[1]}. Export the network with standard operators, or write "
            "this one as a function of the model (onnx.helper.make_function)"
        )
    if "bfloat16" in str(error):
        return GraphError(
            f"{path}: ONNX Runtime does not compute all of it in bfloat16 ({error}). Save the network in "
            "float32 or float16"
        )
    return GraphError(f"{path} is no network that ONNX Runtime runs: {error}. Export it again")

"""Graphs of torch modules: ``torch.onnx.export`` with a dynamic batch, and without its noise."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from artifacts import GraphError
from export.graphs.files import BATCH, LENGTH
from export.graphs.loading import LoadedGraph, prepare_graph
from export.graphs.normalising import OPSET, normalise_model
from export.graphs.outputs import check_outputs


def export_module(
    module: nn.Module,
    examples: tuple[Tensor, ...],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    lengths: tuple[int, ...] = (),
) -> LoadedGraph:
    """Exports a torch module as a graph with a symbolic batch and, where rows have several lengths, a symbolic length.

    Args:
        module: in evaluation mode.
        examples: one tensor per input, each with the batch as leading axis; at least 2 rows, since torch specialises
            on sizes of 1.
        input_names, output_names: names in the graph; ``None`` leaves them to torch.
        lengths: the lengths that rows may have; examples are of the largest, which is the size of their second axis.

    Raises:
        GraphError: torch cannot export the module, or fixes its batch size.
    """
    if any(example.ndim == 0 or len(example) < 2 for example in examples):
        raise GraphError("every example input needs the batch as leading axis, with at least 2 rows")
    try:
        with _silence(), torch.no_grad():
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=_dynamic_shapes(module, examples, lengths),
                input_names=input_names,
                output_names=output_names,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError) as error:
        cause = str(error.__cause__ or error).partition("\n")[0]
        raise GraphError(f"torch cannot export {type(module).__name__}: {cause}") from error
    if program is None:
        raise GraphError(f"torch exported nothing for {type(module).__name__}")
    model = program.model
    for value in model.graph.inputs:
        if value.shape is None or isinstance(value.shape[0], int):
            raise GraphError(
                f"torch fixed the batch of input '{value.name}' while exporting {type(module).__name__}: its forward "
                "method depends on the number of rows"
            )
    check_outputs(model.graph, type(module).__name__)
    return prepare_graph(normalise_model(model), input_shapes={}, where=type(module).__name__, lengths=lengths)


def _dynamic_shapes(module: nn.Module, examples: tuple[Tensor, ...], lengths: tuple[int, ...]) -> tuple[Any, ...]:
    """Returns the dynamic axes of inputs in the structure of ``module.forward``'s parameters."""
    batch, length = torch.export.Dim(BATCH), torch.export.Dim(LENGTH, min=1)
    long = lengths[-1:]
    shapes = [{0: batch, 1: length} if example.shape[1:2] == long else {0: batch} for example in examples]
    for position, parameter in enumerate(inspect.signature(module.forward).parameters.values()):
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            return (*shapes[:position], tuple(shapes[position:]))
    return tuple(shapes)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps the exporter's progress, warnings and log records to itself."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

"""Torch modules: exported, compared with their graphs, and published like any ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from artifacts import GraphError, RunFolder
from export.folder.pipeline import ExportResult, publish_model, reuse_model
from export.folder.recipe import EXPORT_PREFIX, Provenance, SourceParity, graph_parameters, graph_recipe
from export.folder.writing import is_model_current
from export.from_torch.graphs import export_module
from export.graphs.files import graph_digest
from export.graphs.loading import LoadedGraph
from export.graphs.probing import TOLERANCE, open_graph, relative_error, sample_rows
from export.options import ExportOptions
from export.pixels.statements import read_statement, settle_preprocessing


def export_torch(
    run: RunFolder,
    module: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    options: ExportOptions | None = None,
) -> ExportResult:
    """Exports any torch module through ``torch.onnx.export`` and cuts it as any ONNX graph.

    Args:
        run: the run's folder.
        module: the network; exported in evaluation mode and left in the mode it was in.
        example_inputs: one tensor per input, at least 2 rows each.
        input_names, output_names: names in the graph; ``None`` leaves them to torch.
        options: ``segments``, ``every``, ``head``, ``precision``, ``preprocess`` and ``input`` count; ``None``: the
            defaults.

    Raises:
        GraphError: torch cannot export it, or it has no cuts.
    """
    options = options or ExportOptions()
    was_training = module.training
    module.eval()
    try:
        loaded = export_module(module, example_inputs, input_names=input_names, output_names=output_names)
        source = compare_with_torch(loaded, module)
    finally:
        module.train(was_training)
    inputs = {f"{EXPORT_PREFIX}onnx": graph_digest(loaded.model)}
    statements = () if options.preprocess is None else (read_statement(options.preprocess),)
    settled = settle_preprocessing(statements, loaded.inputs)
    provenance = Provenance(inputs=inputs, parameters=graph_parameters(options, statements))
    if is_model_current(run, provenance):
        return reuse_model(run)
    return publish_model(run, loaded, graph_recipe(options, loaded.outputs, source, provenance, settled))


def compare_with_torch(loaded: LoadedGraph, module: nn.Module) -> SourceParity:
    """Compares the first outputs of an exported graph with the torch module's on random rows.

    Raises:
        GraphError: they differ by more than 1e-4 of their magnitude.
    """
    rows = sample_rows(loaded.inputs, 3)
    with torch.inference_mode():
        answer = module(*(torch.from_numpy(array) for array in rows.values()))
    expected = [answer] if isinstance(answer, Tensor) else list(answer)
    with open_graph(loaded.model) as runner:
        found = runner.run(rows, outputs=loaded.outputs[: len(expected)])
    pairs = zip(found.values(), expected, strict=True)
    errors = [relative_error(array, np.asarray(tensor.numpy())) for array, tensor in pairs]
    absolute, relative = max(error[0] for error in errors), max(error[1] for error in errors)
    if relative > TOLERANCE:
        raise GraphError(
            f"the exported graph differs from the torch module by {relative:.1e} of its magnitude, where "
            f"{TOLERANCE:.0e} is allowed: torch.onnx.export translated an operator in another way. Put the module in "
            "evaluation mode, or export it with another torch"
        )
    return SourceParity(label="torch", absolute=absolute, relative=relative)

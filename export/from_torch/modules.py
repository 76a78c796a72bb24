"""Torch modules: exported, compared with their graphs, and published like any ONNX graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from artifacts import GraphError, RunFolder
from export.folder.pipeline import ExportResult, publish_model, reuse_model
from export.folder.recipe import Provenance, SourceParity, graph_parameters, graph_recipe
from export.folder.texts import EXPORT_PREFIX, TextSource
from export.folder.writing import is_model_current
from export.from_torch.graphs import export_module
from export.graphs.files import graph_digest
from export.graphs.loading import LoadedGraph
from export.graphs.probing import TOLERANCE, open_graph, relative_error, sample_rows
from export.options import ExportOptions
from export.pixels.statements import find_neighbours, read_statement, settle_preprocessing

_log = logging.getLogger("pame.export")


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
    network = TorchNetwork(
        module=module, examples=example_inputs, input_names=input_names, output_names=output_names
    )  # fmt: skip
    return publish_network(run, network, options or ExportOptions())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TorchNetwork:
    """A torch module and what is needed to export it.

    Attributes:
        module: the network.
        examples: one tensor per input, at least 2 rows each.
        input_names, output_names: names in the graph; ``None`` leaves them to torch.
        classes: names of the classes that it tells apart, in the order of its answers; none where they are not known.
        neighbours: folders whose files may say how it wants its images.
        files: name -> digest of all that it was made of; ``None``: its graph tells whether it is the same.
        command: the command line that exports it again; ``None``: there is none.
        text: how it wants its texts; ``None``: it takes something else, or no tokenizer is known.
    """

    module: nn.Module
    examples: tuple[Tensor, ...]
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    classes: tuple[str, ...] = ()
    neighbours: tuple[Path, ...] = ()
    files: Mapping[str, str] | None = None
    command: str | None = None
    text: TextSource | None = None


def publish_network(
    run: RunFolder, network: TorchNetwork, options: ExportOptions, *, report: Callable[[str], None] = _log.info
) -> ExportResult:
    """Exports a torch network into the model folder of a run, or reuses what is there; errors as ``export_torch``."""
    module, files = network.module, network.files
    statements = find_neighbours(network.neighbours)
    if options.preprocess is not None:
        statements = (read_statement(options.preprocess),)
    parameters = graph_parameters(options, statements)
    if network.classes:
        parameters["classes"] = list(network.classes)
    if files is not None and is_model_current(run, _describe_origin(network, files, parameters)):
        report(f"{run.model} is up to date")
        return reuse_model(run)
    report(f"exporting a torch module into {run.model}")
    was_training = module.training
    module.eval()
    try:
        loaded = export_module(
            module, network.examples, input_names=network.input_names, output_names=network.output_names,
            lengths=options.lengths,
        )  # fmt: skip
        source = compare_with_torch(loaded, module)
    finally:
        module.train(was_training)
    provenance = _describe_origin(network, files or {"onnx": graph_digest(loaded.model)}, parameters)
    if is_model_current(run, provenance):
        report(f"{run.model} is up to date")
        return reuse_model(run)
    settled = settle_preprocessing(statements, loaded.inputs)
    text = [] if network.text is None else [f"texts are {network.text.wanted.describe()}"]
    for note in (*settled.notes, *text):
        report(note)
    loaded = replace(loaded, pixels=settled.preprocessing)
    recipe = graph_recipe(options, loaded.outputs, source, provenance, settled)
    return publish_model(run, loaded, replace(recipe, classes=network.classes, text=network.text))


def _describe_origin(
    network: TorchNetwork, files: Mapping[str, str], parameters: Mapping[str, Any]
) -> Provenance:  # fmt: skip
    inputs = {f"{EXPORT_PREFIX}{name}": digest for name, digest in files.items()}
    return Provenance(inputs=inputs, parameters=parameters, command=network.command)


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

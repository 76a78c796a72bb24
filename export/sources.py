"""Sources of an export: a family, file, torch module or folder becomes the model of a run, made once and reused."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from artifacts import (
    EngineError,
    GraphError,
    MissingArtifactError,
    Model,
    RunFolder,
    TensorSpec,
    UsageError,
    file_digest,
    name_token_inputs,
)
from export.folder.pipeline import ExportResult, publish_model, reuse_model
from export.folder.recipe import Provenance, SourceParity, graph_parameters, graph_recipe
from export.folder.texts import EXPORT_PREFIX, find_text_source, find_tokenizer
from export.folder.writing import is_model_current, open_run_model
from export.graphs.class_names import find_class_names
from export.graphs.loading import load_graph
from export.graphs.probing import settle_integers
from export.graphs.proving import FixedBatchError, prove_same
from export.graphs.reading import read_metadata, weight_files
from export.nets.table import find_family
from export.options import LENGTH, ExportOptions
from export.pixels.neighbours import neighbour_folders
from export.pixels.statements import gather_statements, settle_preprocessing

_log = logging.getLogger("pame.export")


def ensure_model(
    run: RunFolder, options: ExportOptions | None = None, *, report: Callable[[str], None] = _log.info
) -> Model:
    """Opens the run's model; exports it when there is none.

    Args:
        run: the run's folder.
        options: ``None`` takes whatever model is there, and exports the ResNet family when there is none; given
            options must be met, or the model is exported again.
        report: is called with a line on what is done.

    Raises:
        CorruptArtifactError: a model is there, but damaged.
        UsageError, GraphError: as ``export_model``.
    """
    if options is None:
        try:
            return open_run_model(run)
        except MissingArtifactError:
            options = ExportOptions()
    return export_model(run, options, report=report).model


def export_model(run: RunFolder, options: ExportOptions, *, report: Callable[[str], None] = _log.info) -> ExportResult:
    """Exports a network into ``run.model``, or reuses what is there if it was made from the same.

    Args:
        run: the run's folder.
        options: what to export and how.
        report: is called with a line on what is done.

    Raises:
        UsageError: the options name something that does not exist.
        InputError: the weights or the ONNX file cannot be read.
        GraphError: the network has no cuts, or its parts do not make the whole.
    """
    if options.is_file:
        return _export_file(run, options, report)
    if options.is_torch:
        from export.from_torch.factories import export_factory

        return export_factory(run, options, report=report)
    if options.is_hugging_face:
        from export.from_torch.hugging_face import export_hugging_face

        return export_hugging_face(run, options, report=report)
    family = find_family(options.source)
    from export.from_torch.family import export_family

    return export_family(run, family, options, report=report)


def _export_file(run: RunFolder, options: ExportOptions, report: Callable[[str], None]) -> ExportResult:
    path = Path(options.source)
    files = {**weight_files(path), "onnx": path}
    inputs = {f"{EXPORT_PREFIX}{name}": file_digest(file) for name, file in sorted(files.items())}
    statements = gather_statements(path, options.preprocess)
    parameters = graph_parameters(options, statements)
    tokenizer = find_tokenizer(options.tokenizer, neighbour_folders(path))
    if tokenizer is not None:
        inputs[f"{EXPORT_PREFIX}tokenizer"] = file_digest(tokenizer)
    provenance = Provenance(inputs=inputs, parameters=parameters, command=options.command(run))
    if is_model_current(run, provenance):
        report(f"{run.model} is up to date")
        return reuse_model(run)
    report(f"exporting {path} into {run.model}")
    length = None if options.lengths else options.length or LENGTH
    load = partial(load_graph, path, input_shapes=options.input_shapes, lengths=options.lengths, length=length)
    loaded = load()
    _check_length(options.length, loaded.inputs)
    text = find_text_source(options.tokenizer, neighbour_folders(path), loaded.inputs)
    if text is not None:
        report(f"texts are {text.wanted.describe()} ({text.tokenizer})")
    settled = settle_preprocessing(statements, loaded.inputs)
    for note in settled.notes:
        report(note)
    with _naming_length(path, length, loaded.inputs):
        try:
            loaded = settle_integers(replace(loaded, pixels=settled.preprocessing))
            absolute, relative = prove_same(path, loaded)
        except FixedBatchError:
            loaded = settle_integers(replace(load(batch=1), pixels=settled.preprocessing))
            absolute, relative = prove_same(path, loaded)
    source = SourceParity(label=path.name, absolute=absolute, relative=relative)
    recipe = graph_recipe(options, loaded.outputs, source, provenance, settled)
    classes = find_class_names(read_metadata(path)) or loaded.classes
    return publish_model(run, loaded, replace(recipe, classes=classes, text=text))


@contextlib.contextmanager
def _naming_length(path: Path, length: int | None, inputs: Sequence[TensorSpec]) -> Iterator[None]:
    """Names the length of rows of tokens where a network does not run with it."""
    try:
        yield
    except EngineError as error:
        if {spec.row_shape for spec in inputs} != {(length,)}:
            raise
        raise GraphError(
            f"{path} does not run with rows of {length} tokens ({error}). Say how long its rows are with --length, up "
            "to the positions that it has"
        ) from error


def _check_length(length: int | None, inputs: Sequence[TensorSpec]) -> None:
    """Refuses a length for a network that takes no tokens, or that has another one."""
    found = {spec.row_shape for spec in inputs}
    if length is not None and (name_token_inputs([spec.name for spec in inputs]) is None or found != {(length,)}):
        rows = ", ".join(f"{spec.name} {spec.row_shape}" for spec in inputs)
        raise UsageError(
            f"--length {length}: the network takes {rows}; omit the flag, or name a file that leaves it open"
        )

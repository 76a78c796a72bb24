"""From a source (a family, an ``.onnx`` file) to the model folder of a run, made once and reused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import GraphError, MissingArtifactError, Model, RunFolder, file_digest, read_json, to_plain
from artifacts.console import say
from export.cuts.parity import PARITY_JSON, ParityReport
from export.cuts.splitting import CutGraph, CutReport, cut_graph
from export.folder.writing import (
    EXPORT_PREFIX,
    Blueprint,
    SourceParity,
    is_model_current,
    open_run_model,
    precision_record,
    write_model,
)
from export.graphs.confidence import add_confidence
from export.graphs.loading import LoadedGraph, load_graph
from export.graphs.probing import probe_tensors, prove_same
from export.options import HEADS, ExportOptions, thin_cuts
from export.precision.fp16 import apply_precision

FORMAT = 1  # of what an export writes; another one makes every model folder stale


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What an export did.

    Attributes:
        model: the model folder.
        parity: its parity report.
        reused: it was there already, made from the same inputs.
    """

    model: Model
    parity: ParityReport
    reused: bool


def ensure_model(run: RunFolder, options: ExportOptions | None = None) -> Model:
    """Opens the run's model; exports it (saying so) when there is none.

    Args:
        run: the run's folder.
        options: ``None`` takes whatever model is there, and exports the ResNet family when there is none; given
            options must be met, or the model is exported again.

    Raises:
        CorruptArtifactError: a model is there, but damaged.
        UsageError, GraphError: as ``export_model``.
    """
    if options is None:
        try:
            return open_run_model(run)
        except MissingArtifactError:
            options = ExportOptions()
    return export_model(run, options).model


def export_model(run: RunFolder, options: ExportOptions) -> ExportResult:
    """Exports a family or an ONNX file into ``run.model``, or reuses what is there if it was made from the same.

    Raises:
        UsageError: the options name something that does not exist.
        InputError: the weights or the ONNX file cannot be read.
        GraphError: the network has no cuts, or its parts do not make the whole.
    """
    if options.is_file:
        return _export_file(run, options)
    from export.from_torch.family import export_family

    return export_family(run, options)


def _export_file(run: RunFolder, options: ExportOptions) -> ExportResult:
    path = Path(options.source)
    loaded = None if path.is_file() else load_graph(path)  # which says what is wrong with it
    inputs = {f"{EXPORT_PREFIX}onnx": file_digest(path)}
    for data in sorted(path.parent.glob(f"{path.stem}*.data")):
        inputs[f"{EXPORT_PREFIX}{data.name}"] = file_digest(data)
    parameters = file_parameters(options)
    if is_model_current(run, inputs=inputs, parameters=parameters):
        return reuse_model(run)
    say(f"exporting {path} into {run.model}")
    loaded = load_graph(path, input_shapes=options.input_shapes)
    absolute, relative = prove_same(path, loaded)
    source = SourceParity(label=path.name, absolute=absolute, relative=relative)
    return export_graph(run, loaded, options, source=source, inputs=inputs, parameters=parameters)


def file_parameters(options: ExportOptions) -> dict[str, Any]:
    """Returns what, besides the file, decides the model folder of an imported graph."""
    return {
        "format": FORMAT, "family": "onnx", "segments": options.segments, "every": options.every or 1,
        "head": options.head or HEADS[0], "input_shapes": to_plain(options.input_shapes),
        **precision_record(options.precision),
    }  # fmt: skip


def reuse_model(run: RunFolder) -> ExportResult:
    """Opens the run's model as it is, saying so."""
    model = open_run_model(run)
    say(f"{run.model} is up to date")
    return ExportResult(model=model, parity=read_parity(model), reused=True)


def read_parity(model: Model) -> ParityReport:
    """Returns the parity report of a model folder."""
    return read_json(model.artifact.path(PARITY_JSON), ParityReport)


def export_graph(
    run: RunFolder,
    loaded: LoadedGraph,
    options: ExportOptions,
    *,
    source: SourceParity,
    inputs: Mapping[str, str],
    parameters: Mapping[str, Any],
) -> ExportResult:
    """Cuts a loaded graph and writes the run's model folder.

    Args:
        run: the run's folder.
        loaded: the graph; changed in place.
        options: ``segments``, ``every``, ``head`` and ``precision`` count.
        source: how far the graph is from what it was made of.
        inputs, parameters: for the manifest.

    Raises:
        GraphError: the graph has no cuts, or its parts do not make the whole.
    """
    answers = loaded.outputs
    loaded, precision_loss = apply_precision(loaded, options.precision)
    every, head = options.every or 1, options.head or HEADS[0]
    cut = cut_graph(loaded, answers=answers) if options.segments else uncut_graph(loaded)
    confidence, kind = None, "none"
    if len(answers) == 1:
        loaded, confidence, kind = add_confidence(loaded, cut.specs[answers[0]])
        if confidence is not None:
            cut = with_specs(cut, loaded)
    blueprint = Blueprint(
        name=run.name,
        family="onnx",
        task="classification" if confidence is not None else "none",
        settings={
            "every": every, "head": head, "confidence": kind, "data_input": cut.report.data_input,
            "source": source.label,
        },
        loaded=loaded, cut=cut, cuts=thin_cuts(cut.cuts, every) if cut.cuts else (), answers=answers,
        confidence=confidence, source=source, precision_loss=precision_loss,
    )  # fmt: skip
    model = write_model(run, blueprint, inputs=inputs, parameters=parameters)
    return ExportResult(model=model, parity=read_parity(model), reused=False)


def uncut_graph(loaded: LoadedGraph) -> CutGraph:
    """Proves the outputs of a graph that is not to be cut."""
    report = CutReport(data_input=loaded.inputs[0].name, separators=0, places=0, notes=loaded.notes)
    return CutGraph(cuts=(), specs=probe_tensors(loaded, ()).led, report=report)


def with_specs(cut: CutGraph, loaded: LoadedGraph) -> CutGraph:
    """Returns ``cut`` with the outputs that were added to the graph since."""
    specs = {**cut.specs, **probe_tensors(loaded, ()).led}
    return CutGraph(cuts=cut.cuts, specs=specs, report=cut.report, recomputed=cut.recomputed)


def check_wanted_cuts(model: Model) -> None:
    """Refuses a model without segments.

    Raises:
        GraphError: the model folder holds ``full.onnx`` alone.
    """
    if not model.spec.cuts:
        raise GraphError(f"{model.artifact.folder} holds the whole network alone. Export it again with --segments")

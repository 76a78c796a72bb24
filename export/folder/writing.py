"""The model folder: ``full.onnx``, segments, final head, exit heads, ``model.json``, ``parity.json``, ``cuts.json``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from artifacts import (
    PRECISIONS,
    ArtifactError,
    Cut,
    GraphSpec,
    Manifest,
    Model,
    ModelSpec,
    RunFolder,
    digest_of,
    new_artifact,
    open_artifact,
    open_model,
    write_json,
    write_model_spec,
)
from export.cuts.parity import PARITY_JSON, ParityReport, check_parity
from export.cuts.splitting import CutGraph, CutReport, extract_part, split_segments
from export.graphs.files import save_graph
from export.graphs.loading import LoadedGraph
from export.graphs.probing import TOLERANCES

CUTS_JSON = "cuts.json"
EXPORT_PREFIX = "export."
REMEDY = "python -m export {source} --segments --run {run}"

Part = tuple[ir.Model, GraphSpec]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceParity:
    """How far the exported graph is from what it was made of.

    Attributes:
        label: what that was, for the report.
        absolute, relative: largest errors over all outputs.
    """

    label: str = ""
    absolute: float = 0.0
    relative: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blueprint:
    """Everything that a model folder is written from.

    Attributes:
        name, family, task, settings: of the model.
        loaded: the graph with answers, confidence and, for torch families, the outputs of the exit heads.
        cut: its cuts and what is known of its tensors.
        cuts: those that are used; empty: ``full.onnx`` alone.
        answers: the network's outputs.
        confidence: the output with the confidence, if there is one.
        heads: cut name -> names of the head's outputs (answers, confidence) in ``loaded``.
        source: how far ``loaded`` is from what it was made of.
        precision_loss: how far it is from the same in fp32, where it is of another precision.
    """

    name: str
    family: str
    task: str
    settings: Mapping[str, str | int | float | bool]
    loaded: LoadedGraph
    cut: CutGraph
    cuts: tuple[Cut, ...]
    answers: tuple[str, ...]
    confidence: str | None
    heads: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    source: SourceParity = SourceParity()
    precision_loss: float = 0.0


def write_model(
    run: RunFolder,
    blueprint: Blueprint,
    *,
    inputs: Mapping[str, str],
    parameters: Mapping[str, Any],
    extra: Callable[[Path], None] | None = None,
) -> Model:
    """Writes the model folder of a run and proves that the parts make the whole.

    Args:
        run: the run's folder.
        blueprint: what to write.
        inputs: name -> digest of what it was made from.
        parameters: what else decides the content.
        extra: writes further files into the staging folder, the weights of a torch family for instance.

    Raises:
        GraphError: the chained parts differ from the whole network.
        ArtifactError: the folder cannot be written.
    """
    with new_artifact(run.model, kind="model", inputs=inputs, parameters=parameters) as staging:
        spec = _write_graphs(staging, blueprint)
        chain, sensitivity = check_parity(staging, spec)
        report = ParityReport(
            tolerance=TOLERANCES[spec.precision],
            chain=chain,
            sensitivity=sensitivity,
            source=blueprint.source.label,
            source_absolute=blueprint.source.absolute,
            source_relative=blueprint.source.relative,
            precision_relative=blueprint.precision_loss,
        )
        write_json(staging / PARITY_JSON, report)
        if blueprint.cuts:
            write_json(staging / CUTS_JSON, blueprint.cut.report)
        if extra is not None:
            extra(staging)
        write_model_spec(staging, spec)
    return open_run_model(run)


def open_run_model(run: RunFolder) -> Model:
    """Opens and verifies the model of a run; errors as ``open_model``."""
    return open_model(run.model, remedy=REMEDY.format(source="resnet", run=run.root))


def _write_graphs(staging: Path, blueprint: Blueprint) -> ModelSpec:
    decision = () if blueprint.confidence is None else (blueprint.confidence,)
    specs = blueprint.cut.specs
    available = {spec.name: spec for spec in blueprint.loaded.inputs}
    full = extract_part(
        blueprint.loaded, "full", available, [specs[name] for name in (*blueprint.answers, *decision)],
        answers=blueprint.answers, confidence=blueprint.confidence,
    )  # fmt: skip
    spec = ModelSpec(
        name=blueprint.name,
        family=blueprint.family,
        task=blueprint.task,
        full=save_part(staging, full, "full.onnx"),
        settings={**blueprint.settings, **precision_record(blueprint.loaded.precision)},
    )
    if not blueprint.cuts:
        return spec
    *segments, final = split_segments(blueprint.loaded, blueprint.cut, blueprint.cuts, blueprint.answers, decision)
    heads = {}
    for index, cut in enumerate(blueprint.cuts):
        if cut.name in blueprint.heads:
            answer, confidence = blueprint.heads[cut.name]
            head = extract_part(
                blueprint.loaded, head_name(cut), {cut.main.name: cut.main}, [specs[answer], specs[confidence]],
                answers=(answer,), confidence=confidence,
            )  # fmt: skip
            heads[cut.name] = save_part(staging, head, head_file(index, cut))
    return replace(
        spec,
        cuts=blueprint.cuts,
        segments=tuple(save_part(staging, part, f"segments/{part[1].name}.onnx") for part in segments),
        final_head=save_part(staging, final, "final_head.onnx"),
        heads=heads,
    )


def precision_record(precision: str) -> dict[str, str]:
    """Returns what settings and parameters say of a precision: nothing of the usual one, so that a model folder from
    before there were others is not stale."""
    return {} if precision == PRECISIONS[0] else {"precision": precision}


def save_part(staging: Path, part: Part, file: str) -> GraphSpec:
    """Writes a part's file and returns its spec with the file's name."""
    model, spec = part
    (staging / file).parent.mkdir(parents=True, exist_ok=True)
    save_graph(model, staging / file)
    return replace(spec, file=file)


def head_name(cut: Cut) -> str:
    """Returns the graph name of a cut's exit head."""
    return f"exit_{cut.name}"


def head_file(index: int, cut: Cut) -> str:
    """Returns the file of a cut's exit head; names of ONNX tensors may hold anything."""
    return f"heads/{index:02d}_{re.sub(r'[^A-Za-z0-9._-]+', '_', cut.name)[:60]}.onnx"


def is_model_current(run: RunFolder, *, inputs: Mapping[str, str], parameters: Mapping[str, Any]) -> bool:
    """Tells whether the run's model was exported from these inputs and parameters.

    Exit heads that were added since, and their inputs, do not make it stale: only inputs named ``export.*`` count.
    """
    try:
        manifest = open_artifact(run.model, kind="model", remedy="").manifest
    except ArtifactError:
        return False
    return digest_of([export_inputs(manifest), manifest.parameters]) == digest_of([inputs, parameters])


def export_inputs(manifest: Manifest) -> dict[str, str]:
    """Returns the inputs of the export itself, without those of trained heads."""
    return {name: digest for name, digest in manifest.inputs.items() if name.startswith(EXPORT_PREFIX)}


def read_cut_report(model: Model) -> CutReport | None:
    """Returns how the model's cuts were found; ``None`` where there are none."""
    from artifacts import read_json

    if not model.spec.cuts:
        return None
    return read_json(model.artifact.path(CUTS_JSON), CutReport)

"""Writing the model folder: ``full.onnx``, segments, heads, ``model.json``, ``parity.json``, ``cuts.json``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from artifacts import (
    COMMAND,
    FINAL_HEAD_GRAPH,
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
from export.cuts.splitting import CutGraph, PartOutline, extract_part, split_segments
from export.folder.recipe import ExportRecipe, Provenance, precision_record
from export.folder.texts import EXPORT_PREFIX
from export.graphs.files import save_graph
from export.graphs.loading import LoadedGraph
from export.graphs.probing import TOLERANCES
from export.precision.int8 import Int8Report

CUTS_JSON = "cuts.json"
REFERENCE_ONNX = "reference.onnx"

Part = tuple[ir.Model, GraphSpec]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Blueprint:
    """The blueprint of a model folder: everything that it is written from.

    Attributes:
        name: of the run.
        recipe: how it was made.
        loaded: the graph with answers, confidences and, for torch families, the outputs of the exit heads.
        cut: its cuts and the specs of its tensors.
        cuts: those that are used; empty: ``full.onnx`` alone.
        confidence: the output with the confidence, if there is one.
        heads: cut name -> names of the head's outputs (answer, confidence) in ``loaded``.
        precision_loss: how far it is from the same in fp32, where it is of another precision.
        int8: what quantisation did to it; ``None`` in other precisions.
        reference: the network in float32, where its numbers are quantised.
    """

    name: str
    recipe: ExportRecipe
    loaded: LoadedGraph
    cut: CutGraph
    cuts: tuple[Cut, ...]
    confidence: str | None
    heads: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    precision_loss: float = 0.0
    int8: Int8Report | None = None
    reference: Part | None = None


def write_model(run: RunFolder, blueprint: Blueprint) -> Model:
    """Writes the model folder of a run and proves that the parts make the whole.

    Raises:
        GraphError: the chained parts differ from the whole network.
        ArtifactError: the folder cannot be written.
    """
    recipe = blueprint.recipe
    with new_artifact(
        run.model, kind="model", inputs=recipe.provenance.inputs, parameters=recipe.provenance.parameters,
        notes=command_note(recipe.provenance.command),
    ) as staging:  # fmt: skip
        spec = _write_graphs(staging, blueprint)
        limit = TOLERANCES[blueprint.loaded.rounding]
        chain, sensitivity = check_parity(staging, spec, limit=limit, highest=blueprint.loaded.highest)
        report = ParityReport(
            tolerance=limit,
            chain=chain,
            sensitivity=sensitivity,
            source=recipe.source.label,
            source_absolute=recipe.source.absolute,
            source_relative=recipe.source.relative,
            precision_relative=blueprint.precision_loss,
            int8=blueprint.int8,
        )
        write_json(staging / PARITY_JSON, report)
        if blueprint.cuts:
            write_json(staging / CUTS_JSON, blueprint.cut.report)
        if recipe.text is not None:
            recipe.text.copy_into(staging)
        if recipe.extra_files is not None:
            recipe.extra_files(staging)
        write_model_spec(staging, spec)
    return open_run_model(run)


def command_note(command: str | None) -> dict[str, str]:
    """Returns the note of a manifest that holds the command line by which the artifact is made again."""
    return {} if command is None else {COMMAND: command}


def open_run_model(run: RunFolder) -> Model:
    """Opens and verifies the model of a run; errors as ``open_model``."""
    return open_model(run.model, remedy=run.remedy("export"))


def run_of(model: Model) -> RunFolder:
    """Returns the run that a model folder belongs to."""
    return RunFolder(root=model.artifact.folder.parent)


def _write_graphs(staging: Path, blueprint: Blueprint) -> ModelSpec:
    recipe, loaded, specs = blueprint.recipe, blueprint.loaded, blueprint.cut.specs
    decision = () if blueprint.confidence is None else (blueprint.confidence,)
    whole = PartOutline(
        name="full", available={spec.name: spec for spec in loaded.inputs}, confidence=blueprint.confidence,
        outputs=[specs[name] for name in (*recipe.answers, *decision)], answers=recipe.answers,
    )  # fmt: skip
    spec = ModelSpec(
        name=blueprint.name,
        family=recipe.family,
        task=recipe.task,
        full=save_part(staging, extract_part(loaded, whole), "full.onnx"),
        settings={**recipe.settings, **precision_record(loaded.precision)},
        preprocessing=recipe.preprocessing,
        classes=recipe.classes,
        sequence=loaded.sequence,
        reference=None if blueprint.reference is None else save_part(staging, blueprint.reference, REFERENCE_ONNX),
        text=None if recipe.text is None else recipe.text.wanted,
    )
    if not blueprint.cuts:
        return spec
    ending = replace(whole, name=FINAL_HEAD_GRAPH)
    *segments, final = split_segments(loaded, blueprint.cut, blueprint.cuts, ending)
    return replace(
        spec,
        cuts=blueprint.cuts,
        segments=tuple(save_part(staging, part, f"segments/{part[1].name}.onnx") for part in segments),
        final_head=save_part(staging, final, f"{FINAL_HEAD_GRAPH}.onnx"),
        heads=_write_heads(staging, blueprint),
    )


def _write_heads(staging: Path, blueprint: Blueprint) -> dict[str, GraphSpec]:
    specs, heads = blueprint.cut.specs, {}
    for index, cut in enumerate(blueprint.cuts):
        if cut.name in blueprint.heads:
            answer, confidence = blueprint.heads[cut.name]
            outline = PartOutline(
                name=head_name(cut), available={spec.name: spec for spec in cut.tensors},
                outputs=[specs[answer], specs[confidence]], answers=(answer,), confidence=confidence,
            )  # fmt: skip
            heads[cut.name] = save_part(staging, extract_part(blueprint.loaded, outline), head_file(index, cut))
    return heads


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


def is_model_current(run: RunFolder, provenance: Provenance) -> bool:
    """Tells whether the run's model was exported from these inputs and parameters.

    Exit heads that were added since, and their inputs, do not make it stale: only inputs named ``export.*`` count.
    """
    try:
        manifest = open_artifact(run.model, kind="model", remedy="").manifest
    except ArtifactError:
        return False
    found = digest_of([export_inputs(manifest), manifest.parameters])
    return found == digest_of([provenance.inputs, provenance.parameters])


def export_inputs(manifest: Manifest) -> dict[str, str]:
    """Returns the inputs of the export itself, without those of trained heads."""
    return {name: digest for name, digest in manifest.inputs.items() if name.startswith(EXPORT_PREFIX)}

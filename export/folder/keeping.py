"""Keeping cuts: a model folder published again with some of its cuts, its segments merged in between."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import onnx_ir as ir

from artifacts import GraphError, Model, read_json, recorded_command
from export.cuts.parity import PARITY_JSON, ParityReport
from export.cuts.splitting import cut_graph
from export.folder.recipe import ExportRecipe, Provenance, SourceParity
from export.folder.texts import kept_text_source
from export.folder.writing import Blueprint, Part, run_of, write_model
from export.graphs.files import load_graph_file
from export.graphs.loading import load_graph
from export.graphs.probing import settle_integers


def keep_cuts(model: Model, names: Sequence[str], *, settings: Mapping[str, str | int | float | bool]) -> Model:
    """Publishes a model folder again with fewer cuts.

    The whole network is split anew along them, and the parts are proved to make the whole. The folder counts as the
    same export: exporting the same file again does not undo the choice.

    Args:
        model: an imported network without exit heads.
        names: the cuts that stay, in order; the last one is never an exit candidate.
        settings: joins those of ``model.json``.

    Raises:
        GraphError: the model has exit heads, or a name is none of its cuts.
    """
    spec, manifest = model.spec, model.artifact.manifest
    if spec.heads:
        raise GraphError(f"{model.artifact.folder} has exit heads, and the cuts under them cannot change any more")
    loaded = load_graph(model.path(spec.full), lengths=spec.lengths)
    loaded = replace(settle_integers(loaded), pixels=spec.preprocessing)
    cut = cut_graph(loaded, answers=spec.full.answers, wanted=names)
    parity = read_json(model.artifact.path(PARITY_JSON), ParityReport)
    recipe = ExportRecipe(
        family=spec.family,
        settings={**spec.settings, **settings},
        answers=spec.full.answers,
        provenance=Provenance(
            inputs=manifest.inputs,
            parameters=manifest.parameters,
            command=recorded_command(model.artifact.folder),
        ),
        task=spec.task,
        preprocessing=spec.preprocessing,
        classes=spec.classes,
        text=kept_text_source(model),
        source=SourceParity(
            label=parity.source, absolute=parity.source_absolute, relative=parity.source_relative
        ),
    )  # fmt: skip
    blueprint = Blueprint(
        name=spec.name, recipe=recipe, loaded=loaded, cut=cut, cuts=cut.cuts, confidence=spec.full.confidence,
        precision_loss=parity.precision_relative, int8=parity.int8, reference=_read_reference(model),
    )  # fmt: skip
    return write_model(run_of(model), blueprint)


def _read_reference(model: Model) -> Part | None:
    """Returns the network in float32 that a quantised model keeps beside it."""
    spec = model.spec.reference
    if spec is None:
        return None
    graph = load_graph_file(model.path(spec))
    ir.external_data.load_to_model(graph)
    return graph, spec

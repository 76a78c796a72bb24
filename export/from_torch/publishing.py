"""Nets of a family, rebuilt from a model folder and published again once they are trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from artifacts import GraphError, Model, Preprocessing, recorded_command
from export.folder.recipe import Provenance, check_confidence
from export.folder.writing import export_inputs, run_of
from export.from_torch.family import build_net, publish_family, read_net_settings
from export.nets.multi_exit import MultiExitNet
from export.nets.shipped_weights import WEIGHTS_FILE, Recipe
from export.nets.weights import read_weights


def rebuild_net(model: Model) -> MultiExitNet:
    """Rebuilds the torch net of a family's model folder, with heads (trained or not) at every candidate cut.

    Raises:
        GraphError: the model was imported; it has no torch net.
    """
    if model.spec.family == "onnx":
        raise GraphError(
            f"{model.artifact.folder} was imported, so there is no torch net to train. Train its exit heads alone: "
            f"python -m calibration --train frozen --run {run_of(model).root}"
        )
    settings = read_net_settings(model, None)
    file = model.artifact.path(WEIGHTS_FILE)
    net, _, _ = build_net(settings, read_weights(file), where=str(file))
    return net


def publish_net(
    model: Model,
    net: MultiExitNet,
    *,
    inputs: Mapping[str, str],
    trained: Collection[str] | None = None,
    preprocessing: Preprocessing | None = None,
    confidence: str | None = None,
) -> Model:
    """Publishes a family's model folder again from a trained net (end-to-end training moves the backbone too).

    Args:
        model: the model whose settings the net was rebuilt with.
        net: what ``rebuild_net`` returned, trained since.
        inputs: digests of what it was trained from, for the manifest.
        trained: the cuts whose heads are trained; ``None``: all of the net's.
        preprocessing: of the images in training; ``None``: as the model states it.
        confidence: the recipe of its confidences; ``None``: as it is.

    Raises:
        GraphError: the parts do not make the whole.
    """
    manifest, spec = model.artifact.manifest, model.spec
    settings = read_net_settings(model, preprocessing or spec.stated_preprocessing())
    if confidence is not None:
        settings = replace(settings, confidence=check_confidence(confidence, settings.task))
    provenance = Provenance(
        inputs={**export_inputs(manifest), **inputs},
        parameters=manifest.parameters,
        command=recorded_command(model.artifact.folder),
    )
    return publish_family(
        run_of(model), net, settings, trained=net.cut_names if trained is None else trained,
        segments=bool(spec.cuts), provenance=provenance,
    ).model  # fmt: skip


def make_recipe(
    model: Model, *, preprocessing: Preprocessing | None, dataset: str, record: Mapping[str, Any]
) -> Recipe:  # fmt: skip
    """Returns the recipe of weights that were trained for a family's model.

    Args:
        model: the model.
        preprocessing: of the images in training; ``None``: the network takes none.
        dataset: what they were trained on.
        record: ``training``, ``history`` and ``test_metric`` of ``Recipe``.
    """
    spec = model.spec
    settings = read_net_settings(model, preprocessing)
    return Recipe(
        family=spec.family,
        options=settings.family.record(settings.config),
        every=settings.every,
        head=settings.head,
        preprocessing=preprocessing,
        dataset=dataset,
        task=None if spec.task == settings.family.task else spec.task,
        classes=spec.classes,
        **record,
    )

"""The model folder: made, reused, given heads, and turned back into a torch net."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from artifacts import Model, RunFolder
from export.multi_exit import MultiExitNet
from export.options import ExportOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What an export did.

    Attributes:
        model: the model folder.
        reused: it was there already, made from the same inputs.
    """

    model: Model
    reused: bool


def ensure_model(run: RunFolder, options: ExportOptions | None = None) -> Model:
    """Opens the run's model; exports it (saying so) when there is none.

    Args:
        run: the run's folder.
        options: ``None`` takes whatever model is there, and exports the ResNet family when there is none; given
            options must be met, or the model is exported again.
    """
    raise NotImplementedError


def export_model(run: RunFolder, options: ExportOptions) -> ExportResult:
    """Exports a family or an ONNX file into ``run.model``, or reuses what is there if it was made from the same."""
    raise NotImplementedError


def export_torch(
    run: RunFolder,
    module: nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    every: int | None = None,
    head: str | None = None,
) -> ExportResult:
    """Exports any torch module through ``torch.onnx.export`` and cuts it as any ONNX graph."""
    raise NotImplementedError


def add_heads(model: Model, heads: Mapping[str, nn.Module], *, inputs: Mapping[str, str]) -> Model:
    """Publishes the model folder again with these exit heads.

    Args:
        model: the model; heads of other cuts stay.
        heads: cut name -> torch module from the cut's main tensor (B, ...) to logits (B, classes).
        inputs: digests of what the heads were trained from, for the manifest.
    """
    raise NotImplementedError


def publish_net(
    model: Model, net: MultiExitNet, *, inputs: Mapping[str, str], trained: Collection[str] | None = None
) -> Model:
    """Publishes a torch family's model folder again from a trained net (joint training moves the backbone too).

    Args:
        model: the model whose settings the net was rebuilt with.
        net: what ``rebuild_net`` returned, trained since.
        inputs: digests of what it was trained from, for the manifest.
        trained: the cuts whose heads are trained; ``None``: all of the net's.
    """
    raise NotImplementedError


def rebuild_net(model: Model) -> MultiExitNet:
    """Rebuilds the torch net of a family's model folder, with heads (trained or not) at every candidate cut."""
    raise NotImplementedError


def build_missing_heads(model: Model) -> dict[str, nn.Module]:
    """Builds untrained heads for the cuts that should have one and do not: all but the last cut."""
    raise NotImplementedError

"""Export: network -> ONNX graph -> cuts -> segments, exit heads, merged stages.

Importing this package loads neither torch nor onnx: the names below are fetched on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from artifacts import MissingExtraError
from export.options import CALIBRATED, ExportOptions, RowSource

if TYPE_CHECKING:
    from export.cli import (
        SOURCE_HELP,
        add_network_flags,
        find_wanted_family,
        read_command,
        read_name,
        read_options,
    )
    from export.confidence.adding import recipes_like
    from export.confidence.scoring import Scorer
    from export.cuts.parity import ParityReport, check_parity
    from export.cuts.portable import PortableOutline, PortableStage, write_portable
    from export.cuts.separators import CutPlace, find_places
    from export.cuts.splitting import CutReport
    from export.cuts.stages import merge_stage
    from export.cuts.thinning import spread_evenly
    from export.folder.keeping import keep_cuts
    from export.folder.pipeline import ExportResult
    from export.from_torch.heads import HEAD_SIZES, add_heads, build_head_ladders, build_missing_heads, write_heads
    from export.from_torch.modules import export_torch
    from export.from_torch.publishing import make_recipe, publish_net, rebuild_net
    from export.graphs.flow_model import DataFlow
    from export.graphs.loading import load_graph
    from export.nets.family import Family
    from export.nets.heads import answer_reduced, build_head, features_read, mask_of, reduce_features
    from export.nets.multi_exit import MultiExitNet, attach_heads
    from export.nets.resnet import ResNet, ResNetConfig
    from export.nets.shipped_weights import Recipe, pretrained_folder, write_recipe
    from export.nets.table import HEAD_KINDS
    from export.nets.weights import load_weights, read_weights, save_weights
    from export.pixels.statements import read_statement
    from export.sources import ensure_model, export_model

_HOMES = {
    "cli": ("SOURCE_HELP", "add_network_flags", "find_wanted_family", "read_command", "read_name", "read_options"),
    "confidence.adding": ("recipes_like",),
    "confidence.scoring": ("Scorer",),
    "cuts.parity": ("ParityReport", "check_parity"),
    "cuts.separators": ("CutPlace", "find_places"),
    "cuts.portable": ("PortableOutline", "PortableStage", "write_portable"),
    "cuts.splitting": ("CutReport",),
    "cuts.stages": ("merge_stage",),
    "folder.pipeline": ("ExportResult",),
    "folder.keeping": ("keep_cuts",),
    "from_torch.heads": ("HEAD_SIZES", "add_heads", "build_head_ladders", "build_missing_heads", "write_heads"),
    "cuts.thinning": ("spread_evenly",),
    "from_torch.modules": ("export_torch",),
    "from_torch.publishing": ("make_recipe", "publish_net", "rebuild_net"),
    "graphs.flow_model": ("DataFlow",),
    "graphs.loading": ("load_graph",),
    "nets.family": ("Family",),
    "nets.heads": ("answer_reduced", "build_head", "features_read", "mask_of", "reduce_features"),
    "nets.table": ("HEAD_KINDS",),
    "nets.multi_exit": ("MultiExitNet", "attach_heads"),
    "nets.resnet": ("ResNet", "ResNetConfig"),
    "nets.shipped_weights": ("Recipe", "pretrained_folder", "write_recipe"),
    "nets.weights": ("load_weights", "read_weights", "save_weights"),
    "pixels.statements": ("read_statement",),
    "sources": ("ensure_model", "export_model"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    # the model folder
    "CALIBRATED", "ExportOptions", "ExportResult", "HEAD_SIZES", "RowSource", "add_heads", "build_head_ladders",
    "build_missing_heads", "ensure_model", "export_model", "export_torch", "keep_cuts", "publish_net",
    "read_statement", "rebuild_net", "write_heads",
    # cutting, proving, merging
    "CutPlace", "CutReport", "DataFlow", "ParityReport", "PortableOutline", "PortableStage", "check_parity",
    "find_places", "load_graph", "merge_stage", "spread_evenly", "write_portable",
    # torch families
    "HEAD_KINDS", "Family", "MultiExitNet", "Recipe", "ResNet", "ResNetConfig", "answer_reduced", "attach_heads",
    "Scorer", "build_head", "features_read", "load_weights", "make_recipe", "mask_of", "pretrained_folder",
    "read_weights", "recipes_like", "reduce_features", "save_weights", "write_recipe",
    # flags of the command line, for commands that export among other things
    "SOURCE_HELP", "add_network_flags", "find_wanted_family", "read_command", "read_name", "read_options",
]  # fmt: skip

_EXTRAS = {"torch": "train", "safetensors": "train", "onnxscript": "train"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'export' has no attribute '{name}'")
    try:
        return getattr(importlib.import_module(f"export.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in {"", "artifacts", "engines", "export"}:
            raise
        raise MissingExtraError(package, _EXTRAS.get(package, "export")) from error

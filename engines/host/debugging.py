"""Polygraphy, which runs a graph with any of its tensors as outputs: its import."""

from __future__ import annotations

import importlib
from typing import Any

from artifacts import MissingExtraError


def load_polygraphy(module: str) -> Any:
    """Imports a module of Polygraphy; ``MissingExtraError`` names the extra where it is missing."""
    try:
        return importlib.import_module(f"polygraphy.{module}")
    except ModuleNotFoundError as error:
        raise MissingExtraError("polygraphy", "compare") from error

"""Inspecting one engine of a cache: found by its name and described by its backend."""

from __future__ import annotations

from pathlib import Path

from artifacts import UsageError, unknown_name
from engines.backends.table import find_backend
from engines.identity.description import EngineDescription
from engines.identity.keys import open_key


def find_engine(cache: Path, name: str) -> Path:
    """Returns the folder of a cached engine by its name, or the first characters of it.

    Raises:
        UsageError: no engine, or several, have a name that begins so.
    """
    folders = sorted(path for path in cache.glob("*") if path.is_dir() and not path.name.startswith("."))
    found = [path for path in folders if path.name.startswith(name)]
    if len(found) > 1:
        raise UsageError(f"'{name}' begins the names of {len(found)} engines: {', '.join(path.name for path in found)}")
    if not found:
        raise unknown_name("engine", name, [path.name for path in folders])
    return found[0]


def describe_engine(folder: Path) -> EngineDescription:
    """Verifies an engine and describes it.

    Raises:
        ArtifactError: it is missing, damaged, or was not built for this machine.
        EngineError: the backend refuses it.
        UsageError, MissingExtraError: its backend is unknown here or not installed.
    """
    artifact, key = open_key(folder)
    return find_backend(key.backend).describe(artifact, key)

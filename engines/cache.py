"""The cache of engines: a folder with one engine per key, named by the key's digest."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from artifacts import (
    ArtifactError,
    EngineKey,
    GraphSpec,
    PameError,
    read_json,
    read_manifest,
)
from engines.building import build_engine, builder
from engines.keys import ENGINE_JSON, describe_differences, key_digest, open_key, vet_key
from engines.opening import identify_backend

_log = logging.getLogger("pame.engines")


def ensure_engine(
    onnx: Path,
    graph: GraphSpec,
    cache: Path,
    *,
    backend: str,
    max_batch_size: int,
    batch_sizes: Sequence[int] = (),
) -> Path:
    """Returns the folder of the engine of ``onnx``, building it unless it is there and sound.

    Args:
        onnx: the graph's file.
        graph: its interface, for messages.
        cache: the folder of all engines, e.g. ``RunFolder.engines``.
        backend: e.g. ``onnxruntime``.
        max_batch_size: the largest batch.
        batch_sizes: the only batch sizes to build for; () for one engine that takes any.

    Raises:
        UsageError, MissingExtraError: the backend is unknown or not installed, or a batch size is out of range.
        EngineError: the backend refuses the graph.
        ArtifactError: the cache cannot be written.
    """
    key = builder(backend).key(onnx, batch_sizes=batch_sizes, max_batch_size=max_batch_size)
    folder = cache / key_digest(key)
    if is_built(folder, key):
        _log.info("reusing the engine of %s at %s", graph.name, folder)
        return folder
    _log.info("building the engine of %s at %s", graph.name, folder)
    build_engine(onnx, folder, key)
    return folder


def is_built(folder: Path, key: EngineKey) -> bool:
    """Tells whether ``folder`` holds a sound engine with this key; a damaged one is logged and counts as absent."""
    if not folder.exists():
        return False
    try:
        _, found = open_key(folder)
    except ArtifactError as error:
        _log.warning("building again what is damaged: %s", error)
        return False
    return not describe_differences(found, key)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedEngine:
    """One engine of a cache, as it was found.

    Attributes:
        folder: where it lies.
        key: what it was built for; ``None`` when that cannot be read.
        size_bytes: of all its files.
        built: UTC time of its publication, ISO 8601; empty when that cannot be read.
        problem: why it cannot be opened here; ``None`` for a valid engine.
    """

    folder: Path
    key: EngineKey | None
    size_bytes: int
    built: str
    problem: str | None


def list_engines(cache: Path, *, check_bytes: bool = False) -> tuple[CachedEngine, ...]:
    """Looks at every engine of a cache, in the order of their names; an absent cache has none.

    Args:
        cache: the folder of all engines.
        check_bytes: hash every file as opening does, instead of trusting the manifest.
    """
    if not cache.is_dir():
        return ()
    folders = sorted(path for path in cache.iterdir() if path.is_dir() and not path.name.startswith("."))
    return tuple(inspect_engine(folder, check_bytes=check_bytes) for folder in folders)


def inspect_engine(folder: Path, *, check_bytes: bool) -> CachedEngine:
    """Looks at one engine's folder and says what, if anything, keeps it from being opened here."""
    key, problem, built, size = None, None, "", 0
    try:
        manifest = read_manifest(folder)
        size = sum(entry.size for entry in manifest.files)
        built = datetime.fromtimestamp((folder / "manifest.json").stat().st_mtime, UTC).isoformat(timespec="seconds")
        key = open_key(folder)[1] if check_bytes else read_json(folder / ENGINE_JSON, EngineKey)
        vet_key(folder, key, identify_backend(key.backend))
    except PameError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{folder} cannot be read: {error.strerror or error}"
    return CachedEngine(folder=folder, key=key, size_bytes=size, built=built, problem=problem)

"""The cache of engines: a folder with one engine per key, named by the key's digest."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from artifacts import (
    Artifact,
    ArtifactError,
    EngineKey,
    GraphSpec,
    PameError,
    read_json,
    read_manifest,
)
from engines.backends.building import build_engine, builder
from engines.backends.table import find_backend
from engines.identity.keys import BUILD_SECONDS, ENGINE_JSON, describe_differences, key_digest, open_key
from engines.options import BuildOptions

TIMINGS = ".timings"  # beside the engines; hidden, since it is not an engine
_log = logging.getLogger("pame.engines")


def ensure_engine(
    onnx: Path,
    graph: GraphSpec,
    cache: Path,
    *,
    backend: str,
    options: BuildOptions,
) -> Path:
    """Returns the folder of the engine of ``onnx``, building it unless the cache has a sound one.

    Args:
        onnx: the graph's file.
        graph: its interface: the lengths of its rows, and a name for messages.
        cache: the folder of all engines, e.g. ``RunFolder.engines``.
        backend: e.g. ``onnxruntime``.
        options: what to build for; ``timings`` default to a folder in the cache.

    Raises:
        UsageError, MissingExtraError: the backend is unknown or not installed, or a batch size is out of range.
        EngineError: the backend refuses the graph.
        ArtifactError: the cache cannot be written.
    """
    key = builder(backend, replace(options, lengths=graph.lengths)).key(onnx)
    folder = cache / key_digest(key)
    if is_built(folder, key):
        _log.info("reusing the engine of %s at %s", graph.name, folder)
        return folder
    _log.info("building the engine of %s at %s", graph.name, folder)
    build_engine(onnx, folder, key, timings=options.timings or cache / TIMINGS, watch=options.watch)
    return folder


def is_built(folder: Path, key: EngineKey) -> bool:
    """Returns whether ``folder`` holds a sound engine with this key; a damaged one is logged and counts as absent."""
    if not folder.exists():
        return False
    try:
        _, found = open_key(folder)
    except ArtifactError as error:
        _log.warning("rebuilding a damaged engine: %s", error)
        return False
    return not describe_differences(found, key)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedEngine:
    """One engine of a cache, in the state in which it was found.

    Attributes:
        folder: its folder.
        key: what it was built for; ``None`` when that cannot be read.
        size_bytes: of all its files.
        built: UTC time of its publication, ISO 8601; empty when that cannot be read.
        build_s: how many seconds its build took; ``None`` where that was not recorded.
        problem: why it cannot be opened here; ``None`` for a valid engine.
        unverified: what could not be checked on this machine; ``None`` where everything was.
    """

    folder: Path
    key: EngineKey | None
    size_bytes: int
    built: str
    build_s: float | None
    problem: str | None
    unverified: str | None


def list_engines(cache: Path, *, check_bytes: bool = False) -> tuple[CachedEngine, ...]:
    """Inspects every engine of a cache, in the order of their names; an absent cache has none.

    Args:
        cache: the folder of all engines.
        check_bytes: hash every file, as opening does, instead of trusting the manifest.
    """
    if not cache.is_dir():
        return ()
    folders = sorted(path for path in cache.iterdir() if path.is_dir() and not path.name.startswith("."))
    return tuple(inspect_engine(folder, check_bytes=check_bytes) for folder in folders)


def inspect_engine(folder: Path, *, check_bytes: bool) -> CachedEngine:
    """Inspects one engine's folder; ``problem`` of the result is what would prevent opening it here, if anything."""
    key, problem, unverified, built, size, build_s = None, None, None, "", 0, None
    try:
        manifest = read_manifest(folder)
        size = sum(entry.size for entry in manifest.files)
        built = datetime.fromtimestamp((folder / "manifest.json").stat().st_mtime, UTC).isoformat(timespec="seconds")
        seconds = manifest.environment.get(BUILD_SECONDS)
        build_s = None if seconds is None else float(seconds)
        key = open_key(folder)[1] if check_bytes else read_json(folder / ENGINE_JSON, EngineKey)
        unverified = find_backend(key.backend).vet(Artifact(folder=folder, manifest=manifest), key)
    except PameError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{folder} cannot be read: {error.strerror or error}"
    return CachedEngine(
        folder=folder, key=key, size_bytes=size, built=built, build_s=build_s, problem=problem, unverified=unverified
    )

"""The cache of engines: a folder with one engine per key, named by the key's digest."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
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
from engines.backends.opening import identify_backend
from engines.build_progress import UNWATCHED, BuildWatch
from engines.identity.keys import (
    BUILD_SECONDS,
    ENGINE_JSON,
    TENSORRT_FLAVOURS,
    describe_differences,
    key_digest,
    open_key,
    vet_key,
)

TIMINGS = ".timings"  # beside the engines; hidden, since it is none
_log = logging.getLogger("pame.engines")


def ensure_engine(
    onnx: Path,
    graph: GraphSpec,
    cache: Path,
    *,
    backend: str,
    max_batch_size: int,
    batch_sizes: Sequence[int] = (),
    profiles: str | None = None,
    watch: BuildWatch = UNWATCHED,
) -> Path:
    """Returns the folder of the engine of ``onnx``, building it unless it is there and sound.

    Args:
        onnx: the graph's file.
        graph: its interface, for messages.
        cache: the folder of all engines, e.g. ``RunFolder.engines``.
        backend: e.g. ``onnxruntime``.
        max_batch_size: the largest batch.
        batch_sizes: the only batch sizes to build for; () for one engine that takes any, where the backend has such.
        profiles, watch: as for ``builder``.

    Raises:
        UsageError, MissingExtraError: the backend is unknown or not installed, or a batch size is out of range.
        EngineError: the backend refuses the graph.
        ArtifactError: the cache cannot be written.
    """
    key = builder(backend, profiles=profiles).key(onnx, batch_sizes=batch_sizes, max_batch_size=max_batch_size)
    folder = cache / key_digest(key)
    if is_built(folder, key):
        _log.info("reusing the engine of %s at %s", graph.name, folder)
        return folder
    _log.info("building the engine of %s at %s", graph.name, folder)
    build_engine(onnx, folder, key, timings=cache / TIMINGS, watch=watch)
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
        build_s: how many seconds its build took; ``None`` where that was not recorded.
        problem: why it cannot be opened here; ``None`` for a valid engine.
        untold: what could not be checked on this machine; ``None`` where everything was.
    """

    folder: Path
    key: EngineKey | None
    size_bytes: int
    built: str
    build_s: float | None
    problem: str | None
    untold: str | None


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
    key, problem, untold, built, size, build_s = None, None, None, "", 0, None
    try:
        manifest = read_manifest(folder)
        size = sum(entry.size for entry in manifest.files)
        built = datetime.fromtimestamp((folder / "manifest.json").stat().st_mtime, UTC).isoformat(timespec="seconds")
        seconds = manifest.environment.get(BUILD_SECONDS)
        build_s = None if seconds is None else float(seconds)
        key = open_key(folder)[1] if check_bytes else read_json(folder / ENGINE_JSON, EngineKey)
        untold = _vet(Artifact(folder=folder, manifest=manifest), key)
    except PameError as error:
        problem = str(error)
    except OSError as error:
        problem = f"{folder} cannot be read: {error.strerror or error}"
    return CachedEngine(
        folder=folder, key=key, size_bytes=size, built=built, build_s=build_s, problem=problem, untold=untold
    )


def _vet(artifact: Artifact, key: EngineKey) -> str | None:
    """Vets an engine as opening does, as far as that goes without its graph; returns what cannot be told here."""
    identity = identify_backend(key.backend)
    if key.backend not in TENSORRT_FLAVOURS:
        vet_key(artifact.folder, key, identity)
        return None
    from engines.trt.library import NO_GPU
    from engines.trt.vetting import untold, vet_trt_engine

    missing = untold(key)
    if identity.device == NO_GPU:
        identity = dataclasses.replace(identity, device=key.device)
    vet_key(artifact.folder, key, identity)
    vet_trt_engine(artifact, key, None)
    return missing

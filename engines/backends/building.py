"""Building engines: the builder of a backend, and the artifact that one build makes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from artifacts import EngineKey, new_artifact, to_plain, write_json
from engines.backends.table import find_backend
from engines.build_progress import UNWATCHED, BuildWatch
from engines.identity.keys import BUILD_SECONDS, ENGINE_JSON, KIND
from engines.options import BuildOptions
from engines.protocols import EngineBuilder


def builder(backend: str, options: BuildOptions) -> EngineBuilder:
    """Returns the builder of a backend.

    Args:
        backend: one of ``BACKENDS``.
        options: what to build for.

    Raises:
        UsageError: no such backend or profile layout, or the backend has no profiles.
    """
    return find_backend(backend).builder(options)


def fixed_batch_sizes(backend: str, options: BuildOptions) -> tuple[int, ...]:
    """Returns the batch sizes to build for, of those of the options: all of them where the engines of the backend take
    no others, none where one engine takes any.

    Raises:
        UsageError: no such backend or profile layout.
    """
    return find_backend(backend).fixed_batch_sizes(options)


def build_engine(
    onnx: Path, folder: Path, key: EngineKey, *, timings: Path | None = None, watch: BuildWatch = UNWATCHED
) -> None:
    """Compiles ``onnx`` and publishes the engine as ``folder``, whole or not at all.

    Args:
        onnx: the graph.
        folder: where the engine will be.
        key: of the engine, from the ``builder`` of its backend.
        timings, watch: as in ``BuildOptions``.

    Raises:
        EngineError: the backend refuses the graph.
        ArtifactError: the folder cannot be written.
        UsageError, MissingExtraError: the backend is unknown or not installed.
    """
    made_by = builder(key.backend, replace(BuildOptions.of(key), timings=timings, watch=watch))
    inputs, notes, started = {"onnx": key.onnx_digest}, dict[str, str](), time.monotonic()
    with new_artifact(folder, kind=KIND, inputs=inputs, parameters=to_plain(key), notes=notes) as staging:
        made_by.build(onnx, staging, key)
        notes[BUILD_SECONDS] = f"{time.monotonic() - started:.3f}"
        write_json(staging / ENGINE_JSON, key)

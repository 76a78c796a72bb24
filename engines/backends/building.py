"""Building engines: the builders by name, and the artifact that one build makes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from artifacts import EngineKey, UsageError, new_artifact, to_plain, unknown_name, write_json
from engines.build_progress import UNWATCHED, BuildWatch
from engines.identity.keys import (
    BACKENDS,
    BUILD_SECONDS,
    ENGINE_JSON,
    KIND,
    ONNXRUNTIME,
    ONNXRUNTIME_CUDA,
    TENSORRT_FLAVOURS,
)
from engines.protocols import EngineBuilder


def builder(
    backend: str, *, profiles: str | None = None, timings: Path | None = None, watch: BuildWatch = UNWATCHED
) -> EngineBuilder:
    """Returns the builder of a backend.

    Args:
        backend: one of ``BACKENDS``.
        profiles: how TensorRT's shape profiles are laid out (``trt_options``); ``None`` for the backend's own way.
        timings: where TensorRT keeps what it measured from build to build; ``None`` keeps nothing.
        watch: is told how far a build is, and may end it; TensorRT only.

    Raises:
        UsageError: no such backend or profile way, or the backend has no profiles.
    """
    if backend in (ONNXRUNTIME, ONNXRUNTIME_CUDA) and profiles is not None:
        raise UsageError(f"--profiles {profiles}: {backend} has no shape profiles; leave it away")
    if backend == ONNXRUNTIME:
        from engines.ort.build import OrtBuilder

        return OrtBuilder()
    if backend == ONNXRUNTIME_CUDA:
        from engines.ort.cuda_build import OrtCudaBuilder

        return OrtCudaBuilder()
    if backend in TENSORRT_FLAVOURS:
        from engines.trt.build import TrtBuilder

        return TrtBuilder(backend, profiles=profiles, timings=timings, watch=watch)
    raise unknown_name("engine backend", backend, BACKENDS)


def profiles_of(key: EngineKey) -> str | None:
    """Returns the profile way that an engine was built with, to build another one like it; ``None`` without one."""
    return key.options.get("profiles")


def fixed_batch_sizes(backend: str, profiles: str | None, sizes: Sequence[int]) -> tuple[int, ...]:
    """Returns the batch sizes to build for, of those that will be run: all of them where engines take no others, none
    where one engine takes any.

    Raises:
        UsageError: no such profile way.
    """
    if backend not in TENSORRT_FLAVOURS:
        return ()
    from engines.trt.profiles import RANGE, choose_profiles

    return () if choose_profiles(backend, profiles) == RANGE else tuple(sizes)


def build_engine(
    onnx: Path, folder: Path, key: EngineKey, *, timings: Path | None = None, watch: BuildWatch = UNWATCHED
) -> None:
    """Compiles ``onnx`` and publishes the engine as ``folder``, whole or not at all.

    Args:
        onnx: the graph.
        folder: where the engine will be.
        key: of the engine, from the ``builder`` of its backend.
        timings, watch: as for ``builder``.

    Raises:
        EngineError: the backend refuses the graph.
        ArtifactError: the folder cannot be written.
        UsageError, MissingExtraError: the backend is unknown or not installed.
    """
    made_by = builder(key.backend, profiles=profiles_of(key), timings=timings, watch=watch)
    inputs, notes, started = {"onnx": key.onnx_digest}, dict[str, str](), time.monotonic()
    with new_artifact(folder, kind=KIND, inputs=inputs, parameters=to_plain(key), notes=notes) as staging:
        made_by.build(onnx, staging, key)
        notes[BUILD_SECONDS] = f"{time.monotonic() - started:.3f}"
        write_json(staging / ENGINE_JSON, key)

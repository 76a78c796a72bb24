"""Opening engines: verified, vetted, then handed to their backend. Reaches nothing that builds."""

from __future__ import annotations

from pathlib import Path

from artifacts import EngineError, EngineKey, GraphSpec, unknown_name
from engines.keys import BACKENDS, ONNXRUNTIME, TENSORRT_FLAVOURS, BackendIdentity, open_key, vet_key
from engines.onnx_facts import read_onnx_facts
from engines.protocols import Engine


def open_engine(folder: Path, graph: GraphSpec, *, threads: int, onnx: Path | None = None) -> Engine:
    """Opens the engine in ``folder``, whatever its backend.

    Args:
        folder: an engine from ``ensure_engine`` or from a bundle.
        graph: the interface that it must have.
        threads: threads of a run on the processor, the caller's included.
        onnx: the graph that it must have been built from, to be checked as well; ``None`` where that is not at hand.

    Raises:
        MissingArtifactError, CorruptArtifactError, SchemaError: the folder is not what its manifest says.
        StaleArtifactError: it was built for another graph, backend version or machine, or with other options; the
            message says which.
        UsageError: its backend is unknown here, or ``threads`` is below 1.
        EngineError: the backend refuses it, or its interface is not that of ``graph``.
        MissingExtraError: its backend is not installed.
    """
    artifact, key = open_key(folder)
    identity = identify_backend(key.backend)
    vet_key(folder, key, identity, onnx=None if onnx is None else read_onnx_facts(onnx))
    if key.backend == ONNXRUNTIME:
        from engines.ort_run import open_ort_engine

        return open_ort_engine(artifact.folder, key, graph, threads=threads)
    if key.backend in TENSORRT_FLAVOURS:
        from engines.trt_vetting import vet_trt_engine

        vet_trt_engine(artifact, key, graph)
        return _open_trt(artifact.folder, key, graph)
    raise unknown_name("engine backend", key.backend, BACKENDS)


def _open_trt(folder: Path, key: EngineKey, graph: GraphSpec) -> Engine:
    try:
        from engines.trt_run import open_trt_engine  # type: ignore[import-not-found]
    except ModuleNotFoundError as error:
        if error.name != "engines.trt_run":
            raise
        raise EngineError(
            f"the engine at {folder} is sound, but this PAME cannot run {key.backend} engines yet; it builds, verifies "
            "and inspects them. Serve with --engine onnxruntime"
        ) from error
    engine: Engine = open_trt_engine(folder, key, graph)
    return engine


def identify_backend(backend: str) -> BackendIdentity:
    """Returns version and device of a backend on this machine.

    Raises:
        UsageError: no such backend.
        MissingExtraError: it is not installed.
        EngineError: it is, but cannot be loaded.
    """
    if backend == ONNXRUNTIME:
        from engines.ort_common import identify_onnxruntime

        return identify_onnxruntime()
    if backend in TENSORRT_FLAVOURS:
        from engines.trt_common import identify_tensorrt

        return identify_tensorrt(backend)
    raise unknown_name("engine backend", backend, BACKENDS)

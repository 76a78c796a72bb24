"""Opening engines: verified, vetted, then handed to their backend. Reaches nothing that builds."""

from __future__ import annotations

from pathlib import Path

from artifacts import GraphSpec, unknown_name
from engines.keys import BACKENDS, ONNXRUNTIME, BackendIdentity, open_key, vet_key
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
        StaleArtifactError: it was built for another graph, backend version or machine; the message says which.
        UsageError: its backend is unknown here, or ``threads`` is below 1.
        EngineError: the backend refuses it, or its interface is not that of ``graph``.
        MissingExtraError: its backend is not installed.
    """
    artifact, key = open_key(folder)
    identity = identify_backend(key.backend)
    vet_key(folder, key, identity, onnx_digest=None if onnx is None else read_onnx_facts(onnx).digest)
    if key.backend == ONNXRUNTIME:
        from engines.ort_run import open_ort_engine

        return open_ort_engine(artifact.folder, key, graph, threads=threads)
    raise unknown_name("engine backend", key.backend, BACKENDS)


def identify_backend(backend: str) -> BackendIdentity:
    """Returns version and device of a backend on this machine.

    Raises:
        UsageError: no such backend.
        MissingExtraError: it is not installed.
    """
    if backend == ONNXRUNTIME:
        from engines.ort_common import identify_onnxruntime

        return identify_onnxruntime()
    raise unknown_name("engine backend", backend, BACKENDS)

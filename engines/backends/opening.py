"""Opening engines: verified, vetted, then passed to their backend. Imports nothing that builds."""

from __future__ import annotations

from pathlib import Path

from artifacts import GraphSpec
from engines.backends.table import find_backend
from engines.identity.keys import BackendIdentity, open_key, refuse_differences, vet_key
from engines.identity.onnx_facts import read_onnx_facts
from engines.protocols import Device, Engine


def open_engine(
    folder: Path, graph: GraphSpec, *, threads: int, onnx: Path | None = None, device: Device | None = None
) -> Engine:
    """Opens the engine in ``folder``, whatever its backend.

    Args:
        folder: an engine from ``ensure_engine`` or from a bundle.
        graph: the interface that it must have.
        threads: threads of a run on the processor, the caller's included.
        onnx: the graph that it must have been built from, to be checked as well; ``None`` where that is not at hand.
        device: from ``open_device`` of its backend; engines on the processor need none.

    Raises:
        MissingArtifactError, CorruptArtifactError, SchemaError: the folder is not what its manifest says.
        StaleArtifactError: it was built for another graph, backend version or machine, or with other options; the
            message says which.
        UsageError: its backend is unknown here, ``threads`` is below 1, or its engines do not run on ``device``.
        EngineError: the backend refuses it, or its interface is not that of ``graph``.
        MissingExtraError: its backend is not installed.
    """
    artifact, key = open_key(folder)
    if tuple(key.lengths) != graph.lengths:
        refuse_differences(folder, [f"lengths is {tuple(key.lengths)}, here {graph.lengths}"])
    identity = identify_backend(key.backend, 0 if device is None else device.index)
    vet_key(folder, key, identity, onnx=None if onnx is None else read_onnx_facts(onnx))
    return find_backend(key.backend).open(artifact, key, graph, threads=threads, device=device)


def identify_backend(backend: str, index: int = 0) -> BackendIdentity:
    """Returns version and device of a backend on this machine; ``index`` is the ordinal of the GPU where one is used.

    Raises:
        UsageError: no such backend.
        MissingExtraError: it is not installed.
        EngineError: it is, but cannot be loaded.
    """
    return find_backend(backend).identify(index)

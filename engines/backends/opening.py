"""Opening engines: verified, vetted, then handed to their backend. Reaches nothing that builds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from artifacts import EngineKey, GraphSpec, UsageError, unknown_name
from engines.identity.keys import (
    BACKENDS,
    ONNXRUNTIME,
    ONNXRUNTIME_CUDA,
    TENSORRT_FLAVOURS,
    BackendIdentity,
    open_key,
    vet_key,
)
from engines.identity.onnx_facts import read_onnx_facts
from engines.protocols import Device, Engine

if TYPE_CHECKING:
    from engines.gpu.cuda_device import CudaDevice


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
        UsageError: its backend is unknown here, ``threads`` is below 1, or ``device`` is none that it runs on.
        EngineError: the backend refuses it, or its interface is not that of ``graph``.
        MissingExtraError: its backend is not installed.
    """
    artifact, key = open_key(folder)
    identity = identify_backend(key.backend, getattr(device, "index", 0))
    vet_key(folder, key, identity, onnx=None if onnx is None else read_onnx_facts(onnx))
    if key.backend == ONNXRUNTIME:
        from engines.ort.run import open_ort_engine

        return open_ort_engine(artifact.folder, key, graph, threads=threads)
    if key.backend == ONNXRUNTIME_CUDA:
        from engines.ort.cuda_run import open_ort_cuda_engine

        return open_ort_cuda_engine(artifact.folder, key, graph, device=_find_cuda_device(key, device))
    if key.backend in TENSORRT_FLAVOURS:
        from engines.trt.run import open_trt_engine
        from engines.trt.vetting import vet_trt_engine

        files = vet_trt_engine(artifact, key, graph)
        return open_trt_engine(artifact.folder, key, graph, files, device=_find_cuda_device(key, device))
    raise unknown_name("engine backend", key.backend, BACKENDS)


def _find_cuda_device(key: EngineKey, device: Device | None) -> CudaDevice:
    from engines.gpu.cuda_device import CudaDevice

    if not isinstance(device, CudaDevice):
        where = "none" if device is None else device.name
        raise UsageError(
            f"an engine of {key.backend} runs on a GPU, got device {where}; pass device=open_device('{key.backend}')"
        )
    return device


def identify_backend(backend: str, index: int = 0) -> BackendIdentity:
    """Returns version and device of a backend on this machine; ``index`` is the ordinal of the GPU where one is used.

    Raises:
        UsageError: no such backend.
        MissingExtraError: it is not installed.
        EngineError: it is, but cannot be loaded.
    """
    if backend == ONNXRUNTIME:
        from engines.ort.session import identify_onnxruntime

        return identify_onnxruntime()
    if backend == ONNXRUNTIME_CUDA:
        from engines.ort.cuda_session import identify_onnxruntime_cuda

        return identify_onnxruntime_cuda(index)
    if backend in TENSORRT_FLAVOURS:
        from engines.trt.library import identify_tensorrt

        return identify_tensorrt(backend, index)
    raise unknown_name("engine backend", backend, BACKENDS)

"""Building engines: the builders by name, and the artifact that one build makes."""

from __future__ import annotations

from pathlib import Path

from artifacts import EngineKey, new_artifact, to_plain, unknown_name, write_json
from engines.keys import BACKENDS, ENGINE_JSON, KIND, ONNXRUNTIME, ONNXRUNTIME_CUDA
from engines.protocols import EngineBuilder


def builder(backend: str) -> EngineBuilder:
    """Returns the builder of a backend.

    Raises:
        UsageError: no such backend; the message suggests the nearest.
    """
    if backend == ONNXRUNTIME:
        from engines.ort_build import OrtBuilder

        return OrtBuilder()
    if backend == ONNXRUNTIME_CUDA:
        from engines.ort_cuda_build import OrtCudaBuilder

        return OrtCudaBuilder()
    raise unknown_name("engine backend", backend, BACKENDS)


def build_engine(onnx: Path, folder: Path, key: EngineKey) -> None:
    """Compiles ``onnx`` and publishes the engine as ``folder``, whole or not at all.

    Raises:
        EngineError: the backend refuses the graph.
        ArtifactError: the folder cannot be written.
        UsageError, MissingExtraError: the backend is unknown or not installed.
    """
    made_by = builder(key.backend)
    with new_artifact(folder, kind=KIND, inputs={"onnx": key.onnx_digest}, parameters=to_plain(key)) as staging:
        made_by.build(onnx, staging, key)
        write_json(staging / ENGINE_JSON, key)

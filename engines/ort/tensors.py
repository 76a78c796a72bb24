"""Looking at the tensors of a graph on ONNX Runtime, by Polygraphy's own runner."""

from __future__ import annotations

from typing import Any

from engines.host.debugging import load_polygraphy
from engines.protocols import ModelLoader


def make_ort_runner(model: ModelLoader, label: str) -> Any:
    """Returns a runner on the processor."""
    backend = load_polygraphy("backend.onnxrt")
    return backend.OnnxrtRunner(backend.SessionFromOnnx(model), name=label)

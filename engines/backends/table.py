"""The table of backends: every backend that PAME knows, one line each.

A new backend is a folder with a ``backend.py`` beside ``ort``, ``ov`` and ``trt``, a line here, and an extra of its
name.
"""

from __future__ import annotations

from artifacts import unknown_name
from engines.ort.backend import ONNXRUNTIME_BACKEND, ONNXRUNTIME_CUDA_BACKEND
from engines.ov.backend import OPENVINO_BACKEND, OPENVINO_BF16_BACKEND
from engines.protocols import Backend
from engines.trt.backend import TENSORRT_BACKEND, TENSORRT_RTX_BACKEND

TABLE = (
    ONNXRUNTIME_BACKEND,
    ONNXRUNTIME_CUDA_BACKEND,
    TENSORRT_BACKEND,
    TENSORRT_RTX_BACKEND,
    OPENVINO_BACKEND,
    OPENVINO_BF16_BACKEND,
)
BACKENDS = tuple(backend.name for backend in TABLE)
DEFAULT_BACKEND = TABLE[0].name
_BY_NAME = {backend.name: backend for backend in TABLE}


def find_backend(name: str) -> Backend:
    """Returns a backend by its name.

    Raises:
        UsageError: there is no such backend; the message names the nearest one.
    """
    if name not in _BY_NAME:
        raise unknown_name("engine backend", name, BACKENDS)
    return _BY_NAME[name]

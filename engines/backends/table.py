"""The table of backends: every backend that PAME knows, one line each.

A new backend is a folder with a ``backend.py`` beside ``ort``, ``ov`` and ``trt``, a line here, and an extra of its
name.
"""

from __future__ import annotations

from artifacts import PRECISIONS, UsageError, unknown_name
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
_BF16 = "bf16"
_BY_NAME = {backend.name: backend for backend in TABLE}


def find_backend(name: str) -> Backend:
    """Returns a backend by its name.

    Raises:
        UsageError: there is no such backend; the message names the nearest one.
    """
    if name not in _BY_NAME:
        raise unknown_name("engine backend", name, BACKENDS)
    return _BY_NAME[name]


def arithmetic_of(name: str) -> str:
    """Returns the precision that a backend computes in where a graph says float32: ``fp32``, or that of its name."""
    find_backend(name)
    return PRECISIONS[0] if in_float32(name) == name else _BF16


def in_float32(name: str) -> str:
    """Returns the backend of the same library that computes in float32 where a graph says so."""
    base = name.removesuffix(f"-{_BF16}")
    return base if base in _BY_NAME else name


def choose_backend(name: str, precision: str | None) -> tuple[str, str | None]:
    """Returns the backend and the precision of the graph that ``--engine`` and ``--precision`` mean together.

    A precision may be arithmetic that a backend computes in, whatever the graph: ``openvino`` and ``bf16`` are
    ``openvino-bf16``. Every other one is a property of the graph, and is returned as it is; ``int8+bf16`` is a graph in
    int8 on a backend that computes in bfloat16 what the graph leaves in float32.

    Raises:
        UsageError: no engines of this backend compute in it, but those of another one do.
    """
    if name.endswith(f"-{precision}"):
        return name, None
    if f"{name}-{precision}" in _BY_NAME:
        return f"{name}-{precision}", None
    graph, plus, arithmetic = (precision or "").partition("+")
    if plus:
        backend, left = choose_backend(name, arithmetic)
        if left is not None:
            raise UsageError(f"--precision {precision}: {name} has no arithmetic '{arithmetic}'; use {graph}, or "
                             f"{graph}+{_BF16} on a backend that computes in it")  # fmt: skip
        return backend, graph
    others = [other for other in BACKENDS if precision is not None and other.endswith(f"-{precision}")]
    if others:
        raise UsageError(f"--precision {precision}: {name} does not compute in it; use --engine {others[0]}")
    return name, precision

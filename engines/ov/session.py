"""OpenVINO on the processor: the import, the properties of a compiled model, identity, and the translation of errors.

Left alone, OpenVINO computes in bfloat16 wherever the processor can, which moves confidences and with them decisions.
So the arithmetic is part of a backend's name, it is always said, and what OpenVINO then reports is compared with it.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Mapping
from typing import Any

from artifacts import EngineError, MissingExtraError, UsageError, cpu_features_digest, cpu_name
from engines.host.forks import outlive_forks
from engines.identity.keys import BackendIdentity

OPENVINO, OPENVINO_BF16 = "openvino", "openvino-bf16"
HINTS: Mapping[str, str] = {OPENVINO: "f32", OPENVINO_BF16: "bf16"}
"""The arithmetic of each backend, as OpenVINO calls it."""
_REPORTED = {"f32": "float32", "bf16": "bfloat16"}
_DEVICE = "CPU"
_TELEMETRY = "openvino_telemetry"
_CAPABILITY = "BF16"


@functools.cache
def load_openvino() -> Any:
    """Imports openvino, without its telemetry; ``MissingExtraError`` names the extra where it is missing.

    The import would send an event to its makers, from a process that it starts. What the host decided about that stays:
    it imported openvino, or the package that sends, before.
    """
    silenced = sys.modules.setdefault(_TELEMETRY, None) is None  # type: ignore[arg-type]  # None: it cannot be imported
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise MissingExtraError("openvino", "openvino") from error
    finally:
        if silenced:
            del sys.modules[_TELEMETRY]


@functools.cache
def _core() -> Any:
    return outlive_forks(load_openvino().Core())


def translate_error(error: Exception, what: str) -> EngineError:
    """Returns an ``EngineError`` for an error of OpenVINO; the only place that makes them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return EngineError(f"openvino {version()} failed to {what}: {' '.join(lines[-2:])}")


def version() -> str:
    """Returns OpenVINO's version, without the name of its build."""
    return str(load_openvino().__version__).partition("-")[0]


def identify_openvino(_: int = 0) -> BackendIdentity:
    """Returns the identity of OpenVINO: compiled models are for one version and one instruction set."""
    return BackendIdentity(version=version(), device=f"{cpu_name()} (features {cpu_features_digest()})")


def properties(backend: str, threads: int) -> dict[str, Any]:
    """Returns the properties of a model that is one of several in a guest's process.

    One stream: the stages of a chain follow one another. No thread is pinned to a core, since the cores are the host's.

    Raises:
        UsageError: fewer than one thread.
    """
    if threads < 1:
        raise UsageError(f"threads={threads}: an engine needs at least 1")
    return {
        "INFERENCE_PRECISION_HINT": HINTS[backend], "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }  # fmt: skip


def check_arithmetic(backend: str) -> None:
    """Refuses bfloat16 where the processor has none: OpenVINO would compute in float32 without a word.

    Raises:
        EngineError: it has none.
    """
    capabilities = _core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    if HINTS[backend] == "bf16" and _CAPABILITY not in capabilities:
        raise EngineError(
            f"{backend}: this processor has no instructions for bfloat16 (OpenVINO reports {', '.join(capabilities)}); "
            f"use --engine {OPENVINO}"
        )


def read_model(file: str, *, what: str) -> Any:
    """Reads an ONNX file.

    Raises:
        EngineError: OpenVINO refuses it.
    """
    try:
        return _core().read_model(file)
    except (RuntimeError, ValueError, TypeError) as error:
        raise translate_error(error, what) from error


def compile_model(model: Any, backend: str, *, what: str) -> Any:
    """Compiles a model for this processor; one thread.

    Raises:
        EngineError: OpenVINO refuses it, or would compute in another arithmetic.
    """
    check_arithmetic(backend)
    try:
        compiled = _core().compile_model(model, _DEVICE, properties(backend, 1))
    except (RuntimeError, ValueError, TypeError) as error:
        raise translate_error(error, what) from error
    return _checked(compiled, backend, what)


def import_model(blob: Any, backend: str, *, threads: int, what: str) -> Any:
    """Opens what a compiled model exported.

    Args:
        blob: uint8, writable as far as OpenVINO can tell; it must outlive the model.
        backend: decides the arithmetic.
        threads: threads of a run.
        what: for messages, e.g. "open stage_00".

    Raises:
        EngineError: OpenVINO refuses it, or would compute in another arithmetic.
    """
    try:
        tensor = load_openvino().Tensor(blob, shared_memory=True)
        compiled = _core().import_model(tensor, _DEVICE, properties(backend, threads))
    except (RuntimeError, ValueError, TypeError) as error:
        raise translate_error(error, what) from error
    return outlive_forks(_checked(compiled, backend, what))


def _checked(compiled: Any, backend: str, what: str) -> Any:
    found = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if found not in (HINTS[backend], _REPORTED[HINTS[backend]]):
        raise EngineError(f"{backend}: OpenVINO would {what} to compute in {found}; please report it")
    return compiled

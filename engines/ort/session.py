"""Sessions of ONNX Runtime on the processor: the import, the options, the engine key, and the translation of errors."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import EngineError, GraphSpec, MissingExtraError, UsageError, cpu_features_digest, cpu_name
from engines.gpu.arrays import DeviceArray
from engines.host.forks import outlive_forks
from engines.identity.keys import BackendIdentity
from engines.ort.forks import import_for_forks
from engines.ort.scratch import scratch_entries

ONNXRUNTIME = "onnxruntime"
PROVIDERS = ["CPUExecutionProvider"]
SPINNING = {"session.force_spinning_stop": "1", "session.intra_op.spin_duration_us": "50"}
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_ERROR_NAMES = (
    "DeviceReset", "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf",
    "ModelLoadCanceled", "ModelLoaded", "ModelRequiresCompilation", "NoModel", "NoSuchFile", "NotFound",
    "NotImplemented", "RuntimeException",
)  # fmt: skip
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


@functools.cache
def load_onnxruntime() -> Any:
    """Imports onnxruntime; ``MissingExtraError`` names the extra where it is missing."""
    try:
        return import_for_forks(ONNXRUNTIME)
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "onnxruntime") from error


@functools.cache
def ort_errors() -> tuple[type[Exception], ...]:
    """Returns the types of errors that onnxruntime raises; its own types have no common base."""
    state = load_onnxruntime().capi.onnxruntime_pybind11_state
    own = [getattr(state, name) for name in _ERROR_NAMES if hasattr(state, name)]
    return (*own, RuntimeError, ValueError)


def translate_error(error: Exception, what: str) -> EngineError:
    """Returns an ``EngineError`` for an error of onnxruntime; the only place that makes them."""
    message = _PREFIX.sub("", str(error)).strip()
    return EngineError(f"onnxruntime {load_onnxruntime().__version__} failed to {what}: {message}")


def identify_onnxruntime() -> BackendIdentity:
    """Returns the identity of ONNX Runtime: optimised graphs have layouts for one version and one instruction set."""
    return BackendIdentity(
        version=load_onnxruntime().__version__, device=f"{cpu_name()} (features {cpu_features_digest()})"
    )


def session_options(threads: int | None) -> Any:
    """Returns options for a session that is one of several in a guest's process.

    A session has a pool of threads of its own. With the defaults of ONNX Runtime an idle pool goes on spinning and
    takes the cores from the next session of the chain; without any spinning every operator of a small network waits
    for a thread to wake. ``SPINNING`` lies between: threads spin from one operator to the next, briefly, and stop with
    the run. docs/adr/0003-onnxruntime-engines.md has figures.

    Args:
        threads: threads of a run, the caller's included; ``None``: as many as onnxruntime chooses.

    Raises:
        UsageError: fewer than one thread.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads={threads}: an engine needs at least 1")
    ort = load_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors only; warnings about layouts are expected
    for name, value in {**SPINNING, **scratch_entries(ort, ort_errors())}.items():
        options.add_session_config_entry(name, value)
    options.enable_mem_pattern = False  # one block per run and session, twice what its tensors need at once
    return options


def bind_addresses(
    session: Any,
    graph: GraphSpec,
    arrays: Mapping[str, np.ndarray] | Mapping[str, DeviceArray],
    *,
    device: str,
    index: int,
) -> Any:
    """Binds the inputs and outputs of a session to the memory of arrays, which must outlive the binding.

    Args:
        session: of the engine of ``graph``.
        graph: its interface.
        arrays: name -> what it reads or writes.
        device: ``cpu`` or ``cuda``.
        index: the ordinal of the device.

    Returns:
        The binding, for ``run_with_iobinding``.

    Raises:
        EngineError: onnxruntime refuses an array.
    """
    try:
        binding = session.io_binding()
        for bind, specs in ((binding.bind_input, graph.inputs), (binding.bind_output, graph.outputs)):
            for spec in specs:
                array = arrays[spec.name]
                address = array.ctypes.data if isinstance(array, np.ndarray) else array.pointer
                bind(spec.name, device, index, array.dtype.type, array.shape, address)
    except ort_errors() as error:
        raise translate_error(error, f"bind {graph.name}") from error
    return binding


def open_unchanged(onnx: Path, *, threads: int, what: str) -> Any:
    """Opens a graph that is to run as it is, without any optimisation; arguments and errors as for ``open_session``."""
    options = session_options(threads)
    options.graph_optimization_level = load_onnxruntime().GraphOptimizationLevel.ORT_DISABLE_ALL
    return open_session(str(onnx), options, what=what)


def open_session(model: str | bytes, options: Any, *, what: str) -> Any:
    """Opens a session on the processor.

    Raises:
        EngineError: onnxruntime refuses the graph.
    """
    ort = load_onnxruntime()
    try:
        return outlive_forks(ort.InferenceSession(model, options, providers=PROVIDERS))
    except ort_errors() as error:
        raise translate_error(error, what) from error

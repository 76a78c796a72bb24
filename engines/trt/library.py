"""The TensorRT library, in either flavour: its import, its log, its identity on this machine, and deserialisation.

TensorRT and TensorRT-RTX are two products with one Python API, as far as this room uses it: names that exist in
TensorRT 10.16, 11.4 and TensorRT-RTX 1.7 alike. A test checks each of them against the real bindings.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import importlib.util
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from artifacts import EngineError, MissingExtraError
from engines.gpu.detection import Gpu, find_gpu
from engines.identity.keys import BackendIdentity, rebuild_command
from engines.trt.profiles import TENSORRT, TENSORRT_RTX

PACKAGES = {TENSORRT: "tensorrt", TENSORRT_RTX: "tensorrt_rtx"}
PRODUCTS = {TENSORRT: "TensorRT", TENSORRT_RTX: "TensorRT-RTX"}
# the GPUs that TensorRT-RTX compiles for by default, and the string that stands for them in a key
PORTABLE_CAPABILITIES = ((8, 0), (8, 6), (8, 9))
PORTABLE_FROM = (12, 0)
PORTABLE_DEVICE = "GPUs of compute capability 8.0, 8.6, 8.9 and from 12.0"
NO_GPU = "no GPU"
_RTX_BINDINGS, _RTX_LIBRARIES = "tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx"
_SOURCE = re.compile(r"\s?\bIn \S+ at /[^\s)]+")
_log = logging.getLogger("pame.engines")


@functools.cache
def load_tensorrt(flavour: str) -> Any:
    """Imports a flavour of TensorRT.

    TensorRT-RTX comes in two forms: NVIDIA's ``tensorrt_rtx``, or its bindings beside the libraries that ONNX Runtime's
    plug-in contains, both plain wheels. For the second the libraries are loaded here, by their own names, so that the
    bindings find them; the plug-in itself, which would import ONNX Runtime and change the environment, is not.

    Raises:
        MissingExtraError: it is not installed.
        EngineError: it is, but its libraries cannot be loaded or are of another version.
    """
    try:
        return importlib.import_module(PACKAGES[flavour])
    except ModuleNotFoundError as error:
        if error.name != PACKAGES[flavour]:
            raise EngineError(f"{PACKAGES[flavour]} is installed but lacks '{error.name}'; install it again") from error
        if flavour != TENSORRT_RTX or not importlib.util.find_spec(_RTX_BINDINGS):
            raise MissingExtraError(PACKAGES[flavour], flavour) from error
    except (ImportError, OSError) as error:
        raise _broken(flavour, error) from error
    return _load_rtx_bindings()


def _load_rtx_bindings() -> Any:
    spec = importlib.util.find_spec(_RTX_LIBRARIES)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(_RTX_LIBRARIES, TENSORRT_RTX)
    folder = Path(next(iter(spec.submodule_search_locations)))
    try:
        for pattern in ("libcudart.so.*", "libtensorrt_rtx.so.*.*.*", "libtensorrt_onnxparser_rtx.so.*.*.*"):
            for library in sorted(folder.glob(pattern))[-1:]:
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        trt = importlib.import_module(_RTX_BINDINGS)
    except (ImportError, OSError) as error:
        raise _broken(TENSORRT_RTX, error) from error
    libraries = {path.name.rpartition(".so.")[2] for path in folder.glob("libtensorrt_rtx.so.*.*.*")}
    if not any(f"{trt.__version__}.".startswith(f"{version}.") for version in libraries):
        raise EngineError(
            f"the bindings are of TensorRT-RTX {trt.__version__}, the libraries in {folder} of "
            f"{', '.join(sorted(libraries)) or 'none'}; install both of one version: pip install 'pame[tensorrt-rtx]'"
        )
    return trt


def _broken(flavour: str, error: Exception) -> EngineError:
    return EngineError(
        f"{PRODUCTS[flavour]} is installed but cannot be loaded: {error}. "
        f"Install it again with: pip install --force-reinstall 'pame[{flavour}]'"
    )


def identify_tensorrt(flavour: str, index: int = 0) -> BackendIdentity:
    """Returns the identity of TensorRT on this machine; ``index`` is the ordinal of the GPU.

    An engine of TensorRT belongs to one GPU model and driver, so without a GPU its device is ``NO_GPU``. An engine of
    TensorRT-RTX belongs to a list of compute capabilities, which a machine is assumed to have unless its GPU does not.

    Raises:
        MissingExtraError, EngineError: as ``load_tensorrt``.
    """
    version, gpu = str(load_tensorrt(flavour).__version__), find_gpu(index)
    if flavour == TENSORRT_RTX:
        if gpu is None or is_portable_target(gpu):
            return BackendIdentity(version=version, device=PORTABLE_DEVICE)
        obstacle = (
            f"TensorRT-RTX {version} does not run on {gpu.description}, only on {PORTABLE_DEVICE}. "
            "Plan for this GPU with --engine tensorrt or onnxruntime-cuda"
        )
        return BackendIdentity(version=version, device=gpu.description, obstacle=obstacle)
    return BackendIdentity(version=version, device=NO_GPU if gpu is None else gpu.description)


def is_portable_target(gpu: Gpu) -> bool:
    """Returns whether TensorRT-RTX's portable engines are compiled for this GPU."""
    return gpu.capability in PORTABLE_CAPABILITIES or gpu.capability >= PORTABLE_FROM


class LogRecords:
    """TensorRT's log: forwarded to Python's logging, and recorded for error messages on demand."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recorded: list[tuple[str, str]] | None = None

    def add(self, severity: str, message: str) -> None:
        """Adds a line; TensorRT calls this from threads of its own."""
        level = {"INTERNAL_ERROR": logging.DEBUG, "ERROR": logging.DEBUG, "WARNING": logging.INFO}
        _log.log(level.get(severity, logging.DEBUG), "%s", message)
        with self._lock:
            if self._recorded is not None:
                self._recorded.append((severity, message))

    @contextlib.contextmanager
    def record(self) -> Iterator[list[tuple[str, str]]]:
        """Yields a list that grows by the (severity, message) of every line that is logged in the block."""
        lines: list[tuple[str, str]] = []
        with self._lock:
            before, self._recorded = self._recorded, lines
        try:
            yield lines
        finally:
            with self._lock:
                self._recorded = before


@functools.cache
def trt_logger(flavour: str) -> tuple[Any, LogRecords]:
    """Returns the one logger of a flavour for this process, and its records.

    TensorRT holds a pointer to the first logger that it gets, so that logger must never be freed.
    """
    trt: Any = load_tensorrt(flavour)
    records = LogRecords()

    class Logger(trt.ILogger):  # type: ignore[misc]  # the bindings have no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            records.add(severity.name, message)

    return Logger(), records


def error_text(lines: list[tuple[str, str]]) -> str:
    """Returns the errors among some log lines in one line, without positions in TensorRT's sources."""
    errors = [message for severity, message in lines if severity in ("INTERNAL_ERROR", "ERROR")]
    shown = [clean_message(message) for message in errors]
    return "; ".join(dict.fromkeys(text for text in shown if text)) or "it gave no reason"


def deserialise_engine(flavour: str, runtime: Any, file: Path) -> Any:
    """Returns the engine in a file that was verified and vetted.

    Args:
        flavour: ``tensorrt`` or ``tensorrt-rtx``.
        runtime: TensorRT's, made with the logger of ``trt_logger``.
        file: in an engine's folder.

    Raises:
        EngineError: TensorRT refuses it; the message has its reason.
    """
    trt, (_, records) = load_tensorrt(flavour), trt_logger(flavour)
    with records.record() as logged:
        engine = runtime.deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise EngineError(
            f"{PRODUCTS[flavour]} {trt.__version__} refuses {file}: {error_text(logged)}. "
            f"Build it again with: {rebuild_command(file.parent)}"
        )
    return engine


def clean_message(message: str) -> str:
    """Returns a message of TensorRT without the position in its sources."""
    return " ".join(_SOURCE.sub("", " ".join(message.split())).split())

"""What building, vetting and running with TensorRT share: the import of either flavour, its log, what it is here.

TensorRT and TensorRT-RTX are two products with one Python API, as far as this room uses it: names that exist in
TensorRT 10.16, 11.4 and TensorRT-RTX 1.7 alike. A test checks every one of them against the real bindings.
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
# what TensorRT-RTX compiles for when it is not told, and the one string that stands for it in a key
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

    TensorRT-RTX comes in two ways: NVIDIA's ``tensorrt_rtx``, or its bindings beside the libraries that ONNX Runtime's
    plug-in carries, both plain wheels. For the second the libraries are loaded here, by their own names, so that the
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
    """Returns what TensorRT is here.

    An engine of TensorRT belongs to one GPU model and driver; without a GPU there is none that it could belong to. One
    of TensorRT-RTX belongs to a list of compute capabilities, and here is one of them unless the GPU says otherwise.
    ``index`` is the ordinal of the GPU.

    Raises:
        MissingExtraError, EngineError: as ``load_tensorrt``.
    """
    version, gpu = str(load_tensorrt(flavour).__version__), find_gpu(index)
    if flavour == TENSORRT_RTX:
        device = PORTABLE_DEVICE if gpu is None or is_portable_target(gpu) else gpu.description
        return BackendIdentity(version=version, device=device)
    return BackendIdentity(version=version, device=NO_GPU if gpu is None else gpu.description)


def is_portable_target(gpu: Gpu) -> bool:
    """Tells whether TensorRT-RTX's portable engines are compiled for this GPU."""
    return gpu.capability in PORTABLE_CAPABILITIES or gpu.capability >= PORTABLE_FROM


class LogRecords:
    """What TensorRT logged: errors and warnings for messages, all lines on demand."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[tuple[str, str]] | None = None

    def add(self, severity: str, message: str) -> None:
        """Takes a line; TensorRT calls from threads of its own."""
        level = {"INTERNAL_ERROR": logging.DEBUG, "ERROR": logging.DEBUG, "WARNING": logging.INFO}
        _log.log(level.get(severity, logging.DEBUG), "%s", message)
        with self._lock:
            if self._kept is not None:
                self._kept.append((severity, message))

    @contextlib.contextmanager
    def keep(self) -> Iterator[list[tuple[str, str]]]:
        """Yields the list into which (severity, message) of everything that is logged in the block goes."""
        kept: list[tuple[str, str]] = []
        with self._lock:
            before, self._kept = self._kept, kept
        try:
            yield kept
        finally:
            with self._lock:
                self._kept = before


@functools.cache
def trt_logger(flavour: str) -> tuple[Any, LogRecords]:
    """Returns the one logger of a flavour for this process, and what it records.

    TensorRT keeps a pointer to the first logger it is given, so it must never be freed.
    """
    trt: Any = load_tensorrt(flavour)
    records = LogRecords()

    class Logger(trt.ILogger):  # type: ignore[misc]  # the bindings have no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            records.add(severity.name, message)

    return Logger(), records


def error_text(kept: list[tuple[str, str]]) -> str:
    """Returns the errors among some log lines, without TensorRT's own source positions, in one line."""
    errors = [message for severity, message in kept if severity in ("INTERNAL_ERROR", "ERROR")]
    shown = [clean_message(message) for message in errors]
    return "; ".join(dict.fromkeys(text for text in shown if text)) or "it gave no reason"


def deserialise_engine(flavour: str, runtime: Any, file: Path) -> Any:
    """Returns the engine in a file that was verified and vetted.

    Args:
        flavour: ``tensorrt`` or ``tensorrt-rtx``.
        runtime: TensorRT's, made with the logger of ``trt_logger``.
        file: in an engine's folder.

    Raises:
        EngineError: TensorRT refuses it; with its reason.
    """
    trt, (_, records) = load_tensorrt(flavour), trt_logger(flavour)
    with records.keep() as logged:
        engine = runtime.deserialize_cuda_engine(file.read_bytes())
    if engine is None:
        raise EngineError(
            f"{PRODUCTS[flavour]} {trt.__version__} refuses {file}: {error_text(logged)}. "
            f"Build it again with: {rebuild_command(file.parent)}"
        )
    return engine


def clean_message(message: str) -> str:
    """Drops from a message of TensorRT where in its sources it came from."""
    return " ".join(_SOURCE.sub("", " ".join(message.split())).split())

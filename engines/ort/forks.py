"""The import of ONNX Runtime, so that a process which is forked later ends by itself.

Its telemetry, whose thread starts with the import and whose destructor runs at the end of the process, is not destroyed
in a child. ``import_for_forks`` does not let it start; where the host imported onnxruntime first, the child leaves out
all exit handlers that were registered before the fork, as ``multiprocessing`` does. ``engines.host.forks`` has what
holds for sessions. https://github.com/microsoft/onnxruntime/pull/27379 has the telemetry.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
from typing import Any

_TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"


def import_for_forks(module: str) -> Any:
    """Imports ONNX Runtime so that forked processes end by themselves, and without its telemetry.

    What the host decided about telemetry stays: it imported the module before, or set ``ORT_DISABLE_TELEMETRY``.

    Args:
        module: its name.

    Raises:
        ImportError: it is not installed.
    """
    decided = module in sys.modules or _TELEMETRY_SWITCH in os.environ
    if not decided:
        os.environ[_TELEMETRY_SWITCH] = "1"
    try:
        found = importlib.import_module(module)
    finally:
        if not decided:
            del os.environ[_TELEMETRY_SWITCH]
    if decided and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_skip_inherited_exit_handlers)
    return found


def _skip_inherited_exit_handlers() -> None:
    """Has this process end when it comes to the exit handlers that it inherited; handlers run last in, first out."""
    library = ctypes.CDLL(None)
    if hasattr(library, "on_exit"):  # glibc
        library.on_exit(library._exit, None)  # gets the exit status as its first argument
        library.__cxa_atexit(library.fflush, None, None)  # registered last, so it runs first

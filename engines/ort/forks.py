"""Forks: what becomes of ONNX Runtime in a process that was forked from the one that loaded it.

A fork copies the memory of a process and one of its threads. The threads of ONNX Runtime stay behind in the parent, and
the child is left with what belongs to them: a run waits for the work of a session's pool, and destructors wait for its
threads to leave a condition variable (``pthread_cond_destroy``), both for ever. So in the child

- no session of the parent is run: ``check_process`` refuses;
- none is destroyed: each is made immortal; its memory is the parent's, shared until somebody writes to it;
- ONNX Runtime's telemetry, whose thread starts with the import and whose destructor runs at the end of the process, is
  not destroyed either. ``import_for_forks`` does not let it start; where the host imported onnxruntime first, the child
  leaves out all exit handlers that were registered before the fork, as ``multiprocessing`` does.

https://github.com/microsoft/onnxruntime/pull/31961 has the pool, https://github.com/microsoft/onnxruntime/pull/27379
the telemetry.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import sys
import weakref
from typing import Any

from artifacts import EngineError

_TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"
_opened: weakref.WeakSet[Any] = weakref.WeakSet()


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
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=functools.partial(_abandon_inherited, telemetry=decided))
    return found


def outlive_forks(session: Any) -> Any:
    """Returns a session that was just opened; a child of this process will never destroy it."""
    _opened.add(session)
    return session


def check_process(opened_in: int, name: str) -> None:
    """Refuses to run sessions in another process than the one that opened them.

    Args:
        opened_in: ``os.getpid()`` at the opening.
        name: of the graph, for the message.

    Raises:
        EngineError: this process is a fork of that one.
    """
    if os.getpid() != opened_in:
        raise EngineError(
            f"{name}: this engine was opened in process {opened_in}, whose threads were not copied when this one was "
            "forked: a run would wait for them for ever. Open it again after the fork, or start processes with 'spawn'"
        )


def _abandon_inherited(*, telemetry: bool) -> None:
    for session in _opened:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
    _opened.clear()
    if telemetry:
        _skip_inherited_exit_handlers()


def _skip_inherited_exit_handlers() -> None:
    """Has this process end when it comes to the exit handlers that it inherited; handlers run last in, first out."""
    library = ctypes.CDLL(None)
    if hasattr(library, "on_exit"):  # glibc
        library.on_exit(library._exit, None)  # gets the exit status as its first argument
        library.__cxa_atexit(library.fflush, None, None)  # registered last, so it runs first

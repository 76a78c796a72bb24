"""Forks: what becomes of engines in a process that was forked from the one that opened them.

A fork copies the memory of a process and one of its threads. The threads of a backend stay behind in the parent, and
the child is left with what belongs to them: a run waits for the work of a pool that has none, and destructors wait for
its threads to leave a condition variable (``pthread_cond_destroy``), both for ever. So in the child

- nothing that the parent opened is run: ``check_process`` refuses;
- nothing of it is destroyed: each is made immortal; its memory is the parent's, shared until somebody writes to it.

https://github.com/microsoft/onnxruntime/pull/31961 has the pool of ONNX Runtime.
"""

from __future__ import annotations

import ctypes
import functools
import os
import weakref
from typing import Any

from artifacts import EngineError

_opened: weakref.WeakSet[Any] = weakref.WeakSet()


def outlive_forks(opened: Any) -> Any:
    """Returns what a backend has just opened; a child of this process will never destroy it."""
    _watch_forks()
    _opened.add(opened)
    return opened


def check_process(opened_in: int, name: str) -> None:
    """Refuses to run an engine in another process than the one that opened it.

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


@functools.cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_abandon_inherited)


def _abandon_inherited() -> None:
    for opened in _opened:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(opened))
    _opened.clear()

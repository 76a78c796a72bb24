"""The CUDA driver: the only module that calls it, and turns each of its errors into an ``EngineError``.

The driver is reached through cuda-bindings, whose functions return ``(status, *results)`` and release the interpreter's
lock while they wait. docs/adr/0007-cuda-layer.md explains why it is neither PyCUDA nor the runtime API.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from artifacts import EngineError, MissingExtraError

_watchers: list[Callable[[str], None]] = []


@functools.cache
def load_driver() -> Any:
    """Imports cuda-bindings' driver module; needs no GPU.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise MissingExtraError("cuda-bindings", "cuda") from error
    return driver


def call(name: str, *arguments: Any) -> Any:
    """Calls a function of the driver and returns its result: ``None``, one value, or a tuple of several.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        EngineError: there is no NVIDIA driver, or the call failed; the message has the driver's own words.
    """
    status, results = _try_call(name, arguments)
    if status != 0:
        raise EngineError(f"CUDA: {name} failed with {_describe(status)}")
    if not results:
        return None
    return results[0] if len(results) == 1 else tuple(results)


def call_unless_pending(name: str, *arguments: Any) -> Any:
    """As ``call``, but returns ``None`` where the work is not done yet, and True where the call has no other result."""
    status, results = _try_call(name, arguments)
    if status == load_driver().CUresult.CUDA_ERROR_NOT_READY:
        return None
    if status != 0:
        raise EngineError(f"CUDA: {name} failed with {_describe(status)}")
    return results[0] if results else True


def _try_call(name: str, arguments: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    for watch in _watchers:
        watch(name)
    try:
        status, *results = getattr(load_driver(), name)(*arguments)
    except (RuntimeError, OSError) as error:  # libcuda itself is missing
        raise EngineError(
            f"there is no NVIDIA driver on this machine ({error}); install one, or plan for a CPU"
        ) from error
    return status, results


def watch_calls(watcher: Callable[[str], None]) -> Callable[[], None]:
    """Calls ``watcher`` with the name of every driver call, for measurements; returns the call that ends it."""
    _watchers.append(watcher)
    return lambda: _watchers.remove(watcher)


def _describe(status: Any) -> str:
    """Returns name and meaning of a status; asks the driver itself, without going through ``call``."""
    found, text = load_driver().cuGetErrorString(status)
    meaning = text.decode(errors="replace") if found == 0 and text else "unknown to this driver"
    return f"{getattr(status, 'name', status)}: {meaning}"

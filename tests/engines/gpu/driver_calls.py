"""``record_calls``: the names of the CUDA driver's functions that some code calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from engines.gpu import driver


@contextlib.contextmanager
def record_calls() -> Iterator[list[str]]:
    """Yields a list that grows by the name of every driver call within the block."""
    seen: list[str] = []
    original = driver._try_call

    def recording(name: str, arguments: tuple[Any, ...]) -> tuple[Any, list[Any]]:
        seen.append(name)
        return original(name, arguments)

    driver._try_call = recording
    try:
        yield seen
    finally:
        driver._try_call = original

"""``record_calls``: the names of the CUDA driver's functions that some code calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from engines.gpu.driver import watch_calls


@contextlib.contextmanager
def record_calls() -> Iterator[list[str]]:
    """Yields a list that grows by the name of every driver call within the block."""
    seen: list[str] = []
    stop = watch_calls(seen.append)
    try:
        yield seen
    finally:
        stop()

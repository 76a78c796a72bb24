"""The timing cache of classic TensorRT: the kernel times that it measured, reused from build to build.

It saves most of the time of a second profile or engine with the same layers. TensorRT-RTX measures nothing while it
builds, so it has no such cache.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.trt.cache_files import blob_path, read_blob, update_blob

_log = logging.getLogger("pame.engines")


def timing_file(folder: Path, *, version: str, device: str) -> Path:
    """Returns the file of the timing cache for a version of TensorRT and a GPU with its driver."""
    return blob_path(folder, "timing", version=version, device=device)


@contextlib.contextmanager
def stored_timings(config: Any, path: Path | None) -> Iterator[None]:
    """Gives a build the stored times, and stores those that it measured, unless the block raises.

    Args:
        config: an ``IBuilderConfig``.
        path: of the cache; ``None``: no cache.
    """
    if path is None:
        yield
        return
    cache = config.create_timing_cache(read_blob(path) or b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        _log.warning("TensorRT does not take the timing cache %s; starting an empty one", path)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    yield
    update_blob(path, lambda stored: _merge(config, stored))


def _merge(config: Any, stored: bytes | None) -> bytes:
    """Adds the times that another process stored meanwhile to those of this build."""
    ours = config.get_timing_cache()
    if stored is not None:
        other = config.create_timing_cache(stored)
        if other is not None:
            ours.combine(other, ignore_mismatch=False)
    return bytes(memoryview(ours.serialize()))

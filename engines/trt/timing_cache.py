"""The timing cache of classic TensorRT: what it measured of kernels, kept from build to build.

It saves most of the time of a second profile or engine with the same layers. TensorRT-RTX times nothing while it
builds, so there it does not exist.
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
def keep_timings(config: Any, path: Path | None) -> Iterator[None]:
    """Gives a build the times that are kept, and keeps those that it measured, unless the block raises.

    Args:
        config: an ``IBuilderConfig``.
        path: of the cache; ``None`` keeps nothing.
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
    update_blob(path, lambda kept: _merge(config, kept))


def _merge(config: Any, kept: bytes | None) -> bytes:
    """Adds to our times those that another process kept meanwhile."""
    ours = config.get_timing_cache()
    if kept is not None:
        other = config.create_timing_cache(kept)
        if other is not None:
            ours.combine(other, ignore_mismatch=False)
    return bytes(memoryview(ours.serialize()))

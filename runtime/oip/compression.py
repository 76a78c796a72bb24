"""Compression of HTTP bodies: gzip and deflate (zlib), with a limit on what a body grows to."""

from __future__ import annotations

import zlib
from functools import lru_cache

from artifacts import InputError, RefusedError

_EITHER = 47  # zlib's own number for "gzip or zlib, as the first bytes say"
_WINDOWS = {"gzip": 31, "deflate": 15}
_LEVEL = 1


def decompress(body: bytes, encoding: str, limit: int) -> bytes:
    """Returns a body as it was before it was compressed.

    Args:
        body: compressed.
        encoding: the header ``Content-Encoding``.
        limit: of the bytes that it may grow to.

    Raises:
        InputError: it is not of that encoding.
        RefusedError: the encoding is unknown, or the body grows beyond the limit.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOWS:
        raise RefusedError(f"content encoding '{encoding[:50]}': expected gzip or deflate", reason="unsupported")
    reader = zlib.decompressobj(_EITHER)
    try:
        found = reader.decompress(body, limit + 1)
    except zlib.error as error:
        raise InputError(f"the body is not compressed by {encoding}: {error}") from error
    if len(found) > limit:
        message = f"the body grows beyond {limit} bytes; send less, or raise --max-body-mb"
        raise RefusedError(message, reason="too_large")
    if not reader.eof or reader.unused_data:
        raise InputError(f"the body is not a whole {encoding} stream, or has bytes behind it")
    return found


def compress(parts: list[bytes | memoryview], encoding: str) -> bytes:
    """Returns the parts of a body as one, compressed by ``gzip`` or ``deflate``."""
    writer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOWS[encoding])
    return b"".join([*(writer.compress(part) for part in parts), writer.flush()])


@lru_cache(64)  # clients send the same header with every request
def choose_encoding(accepted: str | None) -> str | None:
    """Returns the encoding for a header ``Accept-Encoding``: gzip before deflate; ``None``: as it is."""
    if not accepted:
        return None
    allowed = set()
    for item in accepted.lower().split(","):
        name, _, weight = item.partition(";")
        if weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            allowed.add(name.strip())
    return next((name for name in _WINDOWS if name in allowed), None)

"""Cache files that processes share: TensorRT's timing caches and TensorRT-RTX's runtime caches, as opaque bytes.

A file is named by the versions and devices that its content is valid for, begins with the SHA-256 of the rest, and is
replaced as a whole and under a lock. A damaged file counts as absent: such a cache only saves time, and its bytes go
into a parser of NVIDIA's that trusts them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from artifacts import digest_of, hold_lock

_DIGEST_BYTES = 32
_log = logging.getLogger("pame.engines")


def blob_path(folder: Path, kind: str, **valid_for: str) -> Path:
    """Returns the file of the blob that is valid for these versions, devices and so on.

    Args:
        folder: of the blobs.
        kind: e.g. ``timing`` or ``runtime``; becomes part of the name.
        valid_for: everything that must be the same for the blob to be usable.
    """
    return folder / f"{kind}-{digest_of({'kind': kind, **valid_for})[:16]}.cache"


def read_blob(path: Path) -> bytes | None:
    """Returns the content of a blob, or ``None`` where it is absent or damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        _log.warning("cannot read %s: %s; continuing without it", path, error.strerror or error)
        return None
    digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        _log.warning("%s is damaged; continuing without it", path)
        return None
    return content


def update_blob(path: Path, merge: Callable[[bytes | None], bytes]) -> bool:
    """Replaces the content of a blob, one process at a time.

    Args:
        path: of the blob; its folder is made where it is missing.
        merge: the present content (``None``: absent) to the new one.

    Returns:
        False where it cannot be written, which is logged and costs only time.
    """
    staging = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(path.with_name(f".{path.name}.lock"), what=str(path)):
            content = merge(read_blob(path))
            staging.write_bytes(hashlib.sha256(content).digest() + content)
            staging.replace(path)
    except OSError as error:
        _log.warning("cannot write %s: %s", path, error.strerror or error)
        return False
    finally:
        with contextlib.suppress(OSError):
            staging.unlink()
    return True

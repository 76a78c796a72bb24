"""Replacing a single file: whole or not at all."""

from __future__ import annotations

import secrets
from pathlib import Path


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file so that it is never seen half-written; a pipe or a device is written to as it is.

    Raises:
        OSError: it cannot be written; what was there is untouched.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    target = path.resolve()  # a link keeps leading to the file
    staging = target.with_name(f".{target.name}.new-{secrets.token_hex(4)}")
    try:
        staging.write_bytes(content)
        staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)

"""Replacing a single file: whole or not at all.

The new content goes into a hidden file beside it, which its writer holds locked, and takes the name at once. What a
killed writer left behind is not locked; the next one removes it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import BinaryIO

_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EROFS)


def replace_file(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Writes a file so that it is never seen half-written; a pipe or a device is written to as it is.

    Args:
        path: the file.
        content: all of it.
        sync: wait for the disk, so that the file outlives a loss of power.

    Raises:
        OSError: it cannot be written; what was there is untouched.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    target = path.resolve()  # a link keeps leading to the file
    clear_interrupted(target.parent, target.name)
    staging = target.with_name(f".{target.name}.new-{secrets.token_hex(4)}")
    try:
        with _create(staging) as stream:
            stream.write(content)
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
            staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)


def try_replacing(path: Path) -> None:
    """Finds out whether ``replace_file`` could write a file now: makes the hidden file beside it, and removes it.

    Raises:
        OSError: it could not, for instance since ``path`` is a folder; its ``filename`` is the file, or the folder
            that may not be written to.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return
    target = path.resolve()
    clear_interrupted(target.parent, target.name)
    staging = target.with_name(f".{target.name}.new-try{secrets.token_hex(3)[:5]}")
    try:
        _create(staging).close()
    except OSError as error:
        error.filename = str(target.parent if error.errno in _NOT_OURS else path)
        raise
    finally:
        staging.unlink(missing_ok=True)


def clear_interrupted(folder: Path, name: str = "*") -> None:
    """Removes what killed writers of files left behind.

    Args:
        folder: where the files are.
        name: of a file, or a pattern (``*``: of all).
    """
    for path in folder.glob(f".{name}.new-????????"):
        with contextlib.suppress(OSError), path.open("rb") as stream:  # another's, or one that is gone
            if _lock(stream):
                path.unlink()


def _create(staging: Path) -> BinaryIO:
    """Opens a new file that is locked, so that nobody takes it for a killed writer's."""
    while True:
        stream = staging.open("xb")
        _lock(stream)
        if os.fstat(stream.fileno()).st_nlink:
            return stream
        stream.close()  # removed by another before it was locked


def _lock(stream: BinaryIO) -> bool:
    from fcntl import LOCK_EX, LOCK_NB, flock

    try:
        flock(stream, LOCK_EX | LOCK_NB)
    except OSError:  # held, or a file system without locks
        return False
    return True

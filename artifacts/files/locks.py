"""Locks: one writer at a time, among all processes and containers that share a folder.

A lock is a file that is held open under the kernel's own lock (``flock``). It ends with the process that holds it,
however that ends, and it means the same in every namespace, where a process id does not. The file goes with the lock;
who takes a lock makes sure that the file is still the one at its path.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_log = logging.getLogger("pame.artifacts")


@contextlib.contextmanager
def hold_lock(path: Path, *, wait: bool = True, what: str = "") -> Iterator[bool]:
    """Holds a lock while the block runs.

    Args:
        path: of the lock's file; its folder exists.
        wait: until whoever holds it is done, which is logged; otherwise go on without it at once.
        what: is worked on, for that message.

    Yields:
        Whether it is held; False without ``wait``, or on a file system that has no locks (which is logged).

    Raises:
        OSError: the file cannot be made.
    """
    descriptor = _take(path, wait=wait, what=what or str(path))
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                path.unlink()
            _release(descriptor)


def _take(path: Path, *, wait: bool, what: str) -> int | None:
    """Returns the open lock file; ``None`` where the lock is not held."""
    from fcntl import LOCK_EX, LOCK_NB, flock

    while True:
        descriptor = _open(path)
        try:
            try:
                flock(descriptor, LOCK_EX | LOCK_NB)
            except BlockingIOError:
                if not wait:
                    os.close(descriptor)
                    return None
                _log.warning("waiting for %s, which works on %s", _read_holder(descriptor), what)
                flock(descriptor, LOCK_EX)
        except OSError as error:
            os.close(descriptor)
            if error.errno not in _WITHOUT_LOCKS:
                raise
            _log.warning("%s: the file system has no locks; let one process at a time work there", what)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        if _is_at(path, descriptor):
            _write_holder(descriptor)
            return descriptor
        _release(descriptor)  # of one that was removed meanwhile


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError as error:
        try:
            return os.open(path, os.O_RDONLY)  # another user's, who holds it
        except FileNotFoundError:
            raise error from None  # the folder is not ours to write


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _release(descriptor: int) -> None:
    """Unlocks and closes; a forked child may hold a copy of the descriptor, which must not keep the lock."""
    from fcntl import LOCK_UN, flock

    flock(descriptor, LOCK_UN)
    os.close(descriptor)


def _write_holder(descriptor: int) -> None:
    holder = f"process {os.getpid()} on {socket.gethostname()} (since {datetime.now(UTC):%H:%M:%S} UTC)"
    with contextlib.suppress(OSError):  # for the message of others alone
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, holder.encode(), 0)


def _read_holder(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"

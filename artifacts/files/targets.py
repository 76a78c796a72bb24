"""Files that a flag names for results: found out before the work whether they can be written after it."""

from __future__ import annotations

import errno
from pathlib import Path

from artifacts.errors import PameError, UsageError
from artifacts.files.disk_errors import describe_failure
from artifacts.files.replacing import replace_file, try_replacing

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # the place is a good one


def check_target(flag: str, path: Path) -> None:
    """Tries, before the work, whether its result can be written to a file.

    Args:
        flag: that names the file, for the message.
        path: the file.

    Raises:
        UsageError: it cannot be there: no such folder, a folder itself, no permission.
        PameError: the disk is full.
    """
    if path.is_dir():
        raise UsageError(f"{flag} {path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise UsageError(f"{flag} {path}: there is no folder {path.parent}; make it first")
    try:
        try_replacing(path)
    except OSError as error:
        kind = PameError if error.errno in _FULL else UsageError
        raise kind(f"cannot write {flag} {path}: {describe_failure(error)}") from error


def write_target(flag: str, path: Path, content: bytes) -> None:
    """Writes a result to the file that a flag names, whole or not at all.

    Raises:
        PameError: it cannot be written.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise PameError(f"cannot write {flag} {path}: {describe_failure(error)}") from error

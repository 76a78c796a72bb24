"""Errors of disks: what one means, and what to do about it."""

from __future__ import annotations

import errno
import os
import re
import shutil

_REMEDIES = {
    errno.ENOSPC: ("no space left on the disk", "free some"),
    errno.EDQUOT: ("the quota of the disk is used up", "free some space"),
    errno.EFBIG: ("a file grew beyond what is allowed here", "raise the limit (ulimit -f) or take another disk"),
    errno.EROFS: ("the file system is read-only", "name a place that can be written"),
    errno.EACCES: ("permission denied", "fix the permissions or name another place"),
    errno.EPERM: ("operation not permitted", "fix the permissions or name another place"),
}


def describe_failure(error: OSError) -> str:
    """Returns what an error of the system means, and what to do about it where that can be told.

    Of the list that copying a folder ends with, it is the first one.
    """
    if isinstance(error, BrokenPipeError):
        return "whoever read the output has closed it"
    if isinstance(error, shutil.Error) and isinstance(error.args[0], list):
        _, target, reason = error.args[0][0]  # the reason in words alone
        number = re.match(r"\[Errno (\d+)\] ", str(reason))
        if number is None:
            return str(reason)
        return describe_failure(OSError(int(number[1]), os.strerror(int(number[1])), str(target)))
    where = f": {error.filename}" if error.filename else ""
    if error.errno in _REMEDIES:
        words, remedy = _REMEDIES[error.errno]
        return f"{words}{where}; {remedy}, then run the command again"
    return f"{error.strerror or error}{where}"

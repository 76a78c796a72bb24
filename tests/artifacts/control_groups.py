"""Control groups for tests: the files that Linux tells of them in, and real ones of this machine."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

GIB = 1 << 30
GROUPS = Path("/sys/fs/cgroup")


def write_machine(root: Path, *, free: int = 8 * GIB, group: str = "0::/\n") -> dict[str, Path]:
    """Writes what Linux tells of a machine with this much free memory, and of this process's groups."""
    proc, groups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable:  {free // 1024} kB\n")
    (proc / "self" / "cgroup").write_text(group)
    return {"proc": proc, "groups": groups}


def limit_group(folder: Path, **files: str) -> None:
    """Writes files of a group; two underscores stand for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@contextlib.contextmanager
def real_group(controller: str, **files: str) -> Iterator[Path]:
    """Makes a real group of version 1 below the mount of a controller, with files as for ``limit_group``; skips where
    this machine does not allow it."""
    folder = GROUPS / controller / f"pame-test-{secrets.token_hex(4)}"
    if not (GROUPS / controller / "cgroup.procs").exists():
        pytest.skip(f"no control groups of version 1 with the controller {controller} at {GROUPS}")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made at {folder}: {os.strerror(error.errno or 0)}")
    try:
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)
        yield folder
    finally:
        folder.rmdir()

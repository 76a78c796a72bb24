"""Faults at the writes of a command: it is run in a fork whose n-th write fails, or ends the process.

A write is what Python's audit hooks see of it: a file opened for writing, a folder made, something renamed or linked.
Of writes to places of the same kind (two segments, two engines) the first stands for all. The modules are imported
once; every run is a fork on a copy of the same folder.
"""

from __future__ import annotations

import errno
import importlib
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FULL, CUT, KILLED, TERMINATED = "full", "cut", "killed", "terminated"
"""No space from this write on; a file that ends after 32 bytes; SIGKILL and SIGTERM just before the write."""
_MAKING = ("open", "os.mkdir", "os.rename", "os.link", "os.symlink")
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_LONGEST = 32  # bytes of a file that is cut


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended: exit code, negative for a signal; what it printed; the writes that it made, in order."""

    code: int
    text: str
    writes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A kind of fault at the first write to a place of some kind."""

    kind: str
    write: str


def find_faults(writes: Sequence[str], kinds: Sequence[str]) -> list[Fault]:
    """Returns the faults worth trying: every kind at every write, but only opened files can be cut."""
    return [
        Fault(kind=kind, write=write) for write in writes for kind in kinds if kind != CUT or write.startswith("open ")
    ]


def run_forked(module: str, argv: Sequence[str], folder: Path, fault: Fault | None = None) -> Ending:
    """Runs a command's ``main`` in a fork with ``folder`` as working directory, ``folder/tmp`` for temporary files."""
    main = importlib.import_module(module).main
    (taken, output), (noted, record) = os.pipe(), os.pipe()  # a limit of files does not hold for pipes
    child = os.fork()
    if child == 0:
        code = 70  # of an error that nobody caught
        try:
            code = _run(main, argv, folder, fault, output=output, record=record)
        except BaseException:  # noqa: BLE001 - the parent looks for its stack
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(output)
    os.close(record)
    with os.fdopen(taken, "rb") as text, os.fdopen(noted, "rb") as writes:
        printed, written = text.read(), writes.read()
    _, status = os.waitpid(child, 0)
    return Ending(
        code=os.waitstatus_to_exitcode(status),
        text=printed.decode(errors="replace"),
        writes=tuple(written.decode().splitlines()),
    )


def _run(main: Any, argv: Sequence[str], folder: Path, fault: Fault | None, *, output: int, record: int) -> int:
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    os.chdir(folder)
    (folder / "tmp").mkdir(exist_ok=True)
    tempfile.tempdir = str(folder / "tmp")
    os.environ.update(TMPDIR=tempfile.tempdir, HOME=str(folder), OMP_NUM_THREADS="1")
    sys.addaudithook(_Hook(folder, fault, record))
    try:
        return int(main(list(argv)))
    except SystemExit as error:
        return int(error.code or 0)


class _Hook:
    """The audit hook that notes writes within a folder and brings about the fault."""

    def __init__(self, folder: Path, fault: Fault | None, record: int) -> None:
        self._folder, self._fault, self._record = folder, fault, record
        self._seen: set[str] = set()
        self._full = False

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in _MAKING or not isinstance(args[0], (str, bytes, os.PathLike)):
            return
        if event == "open" and not args[2] & _FOR_WRITING:
            return
        place = args[1] if event in ("os.rename", "os.link", "os.symlink") else args[0]
        path = self._folder / os.fsdecode(place)
        if not path.is_relative_to(self._folder):
            return
        if self._full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(place))
        write = f"{event} {_kind_of(str(path.relative_to(self._folder)))}"
        if write in self._seen:
            return
        self._seen.add(write)
        os.write(self._record, f"{write}\n".encode())
        if self._fault is not None and self._fault.write == write:
            self._strike(self._fault.kind, os.fsdecode(place))

    def _strike(self, kind: str, place: str) -> None:
        if kind == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        elif kind == TERMINATED:
            os.kill(os.getpid(), signal.SIGTERM)
        elif kind == CUT:
            resource.setrlimit(resource.RLIMIT_FSIZE, (_LONGEST, _LONGEST))
        else:
            self._full = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), place)


def _kind_of(path: str) -> str:
    """Returns a path without what differs from run to run, and from one of its like to the next."""
    path = re.sub(r"(new|old)-[0-9a-f]{8}", r"\1-*", path)
    path = re.sub(r"new-try[0-9a-f]{5}", "new-try*", path)
    path = re.sub(r"\b[0-9a-f]{16}\b", "<key>", path)
    path = re.sub(r"^tmp/.*", "tmp/*", path)
    path = re.sub(r"(\.timing-|\.portable-)[a-z0-9_]{8}", r"\1*", path)
    path = re.sub(r"\d+_[a-z]\w*\.", "N.", path)
    return re.sub(r"\d+", "N", path)


def copy_world(source: Path, target: Path) -> Path:
    """Returns a copy of a folder, with links to its files: whoever writes replaces them."""
    shutil.copytree(source, target, copy_function=os.link)
    return target

"""Locks: one writer at a time over processes and namespaces of process ids; they end with who holds them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts import MissingArtifactError, RunFolder, hold_lock, new_artifact, open_artifact, work_alone

WRITER = """
import sys
from pathlib import Path
from artifacts import new_artifact
with new_artifact(Path(sys.argv[1]), kind="thing") as staging:
    (staging / "a").write_bytes(b"from the other")
    print("writing", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def other_writer(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes the artifact and does not get done before its stdin closes; where that is allowed, with
    process ids of its own."""
    apart = ["unshare", "--pid", "--fork", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        apart = []
    words = [*apart, sys.executable, "-c", WRITER, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process
        process.kill()


def content(folder: Path) -> bytes:
    return open_artifact(folder, kind="thing", remedy="make").path("a").read_bytes()


def test_what_a_living_writer_of_another_namespace_has_begun_is_left_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "thing"
    with other_writer(folder) as other:
        with pytest.raises(MissingArtifactError):
            open_artifact(folder, kind="thing", remedy="make")  # a reader, which would clear up after the dead
        other.communicate("")
        assert other.returncode == 0
    assert content(folder) == b"from the other"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_second_writer_waits_and_says_for_whom(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, began = tmp_path / "thing", threading.Event()

    def write() -> None:
        with new_artifact(folder, kind="thing") as staging:
            began.set()
            (staging / "a").write_bytes(b"ours")

    with other_writer(folder) as other, caplog.at_level(logging.WARNING, "pame.artifacts"):
        ours = threading.Thread(target=write)
        ours.start()
        assert not began.wait(0.3)
        assert "waiting for process" in caplog.text
        assert str(folder) in caplog.text
        other.communicate("")
        ours.join(20)
    assert content(folder) == b"ours"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_killed_writer_holds_up_nobody(tmp_path: Path) -> None:
    folder = tmp_path / "thing"
    with other_writer(folder) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        for _ in range(2):  # the first clears up
            with new_artifact(folder, kind="thing") as staging:
                (staging / "a").write_bytes(b"ours")
    assert list(tmp_path.iterdir()) == [folder]


def test_a_lock_is_taken_without_waiting_or_not_at_all(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with hold_lock(lock) as first, hold_lock(lock, wait=False) as second:
        assert (first, second) == (True, False)
    with hold_lock(lock, wait=False) as third:
        assert third
    assert not lock.exists()


def test_a_forked_process_does_not_keep_a_lock(tmp_path: Path) -> None:
    with hold_lock(tmp_path / ".lock"):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # has a copy of the open lock file
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
    with hold_lock(tmp_path / ".lock", wait=False) as free:
        assert free
    os.close(writer)
    os.waitpid(child, 0)
    os.close(reader)


def test_a_file_system_without_locks_is_told_and_nothing_of_others_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".thing.new-00aa").mkdir()
    with new_artifact(tmp_path / "thing", kind="thing") as staging:
        (staging / "a").write_bytes(b"ours")
    assert "has no locks" in caplog.text
    assert (tmp_path / ".thing.new-00aa").is_dir()


STEP = """
import sys
from pathlib import Path
from artifacts import RunFolder, work_alone
@work_alone
def step(run):
    print("in", flush=True)
    sys.stdin.read()
step(RunFolder(root=Path(sys.argv[1])))
"""


def test_the_second_of_two_steps_in_one_run_finds_the_work_of_the_first(tmp_path: Path) -> None:
    @work_alone
    def inner(run: RunFolder) -> bool:
        return (run.root / "made").exists()

    @work_alone
    def outer(run: RunFolder) -> bool:
        return inner(run)  # one that contains another waits for nobody

    run = RunFolder(root=tmp_path)
    assert not outer(run)
    found: list[bool] = []
    words = [sys.executable, "-c", STEP, str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        ours = threading.Thread(target=lambda: found.append(outer(run)))
        ours.start()
        ours.join(0.2)
        assert not found
        (tmp_path / "made").touch()
        other.communicate("")
        ours.join(20)
    assert found == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_step_in_a_folder_that_cannot_be_locked_uses_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("artifacts.files.locks._open", refuse)
    assert work_alone(lambda run: run.name)(RunFolder(root=tmp_path)) == tmp_path.name


def test_a_folder_that_is_not_ours_to_write_is_refused_as_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError), hold_lock(tmp_path / ".lock"):
        pass

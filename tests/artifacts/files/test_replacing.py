"""Tests of files that are replaced whole: what a killed writer left behind goes, what a living one writes stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

from artifacts import clear_interrupted, replace_file


def test_what_a_killed_writer_left_behind_goes_with_the_next_write(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    replace_file(target, b"before")
    script = f"""
        import os, signal
        from pathlib import Path
        from artifacts import replace_file
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        replace_file(Path({str(target)!r}), b"half")
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2, "nothing was left behind to clear"
    assert target.read_bytes() == b"before"
    replace_file(target, b"after")
    assert target.read_bytes() == b"after"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_living_writer_has_begun_stays(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    sync = os.fsync

    def write_another(descriptor: int) -> None:
        os.fsync = sync
        clear_interrupted(tmp_path)
        replace_file(target, b"another")
        sync(descriptor)

    os.fsync = write_another
    try:
        replace_file(target, b"mine")
    finally:
        os.fsync = sync
    assert target.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [target]


def test_other_files_are_not_cleared(tmp_path: Path) -> None:
    kept = tmp_path / ".y.json.new-01234567"
    kept.write_bytes(b"of another file")
    clear_interrupted(tmp_path, "x.json")
    assert kept.exists()
    clear_interrupted(tmp_path)
    assert not kept.exists()

"""Cache files that processes share."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from engines.trt.cache_files import blob_path, read_blob, update_blob


def test_stored_bytes_come_back(tmp_path: Path) -> None:
    path = blob_path(tmp_path / "caches", "timing", version="11.4", device="A10")
    assert read_blob(path) is None
    assert update_blob(path, lambda content: b"one" if content is None else b"?")
    assert update_blob(path, lambda content: (content or b"") + b" two")
    assert read_blob(path) == b"one two"
    assert [item.name for item in path.parent.iterdir() if not item.name.endswith(".lock")] == [path.name]


def test_the_name_depends_on_what_the_blob_is_valid_for(tmp_path: Path) -> None:
    paths = {
        blob_path(tmp_path, kind, version=version, device=device)
        for kind in ("timing", "runtime")
        for version in ("11.4", "10.16")
        for device in ("A10", "L4")
    }
    assert len(paths) == 8


def test_damage_counts_as_absence(
    flip: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.cache"
    update_blob(path, lambda _: bytes(100))
    flip(path)
    with caplog.at_level(logging.WARNING, "pame.engines"):
        assert read_blob(path) is None
    assert "damaged" in caplog.text
    for size in range(0, 40, 7):
        path.write_bytes(path.read_bytes()[:size])
        assert read_blob(path) is None or size == 0


def test_an_unwritable_cache_costs_only_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "pame.engines"):
        assert not update_blob(tmp_path / "file" / "x.cache", lambda _: b"")
    assert "cannot write" in caplog.text


def _add_many(path: Path) -> None:
    for _ in range(20):
        update_blob(path, lambda content: (content or b"") + b".")


def test_processes_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "x.cache"
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_add_many, args=(path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert read_blob(path) == b"." * 60

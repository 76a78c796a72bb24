"""``HostReaders``: a large array is read in pieces, by threads that a forked or closed device no longer has."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from engines.gpu import staging
from engines.gpu.staging import HostReaders

LARGE = np.zeros((13, 1 << 18), np.float32)


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostReaders]:
    monkeypatch.setattr(staging, "allowed_processors", lambda: 3)
    made = HostReaders()
    yield made
    made.close()


def read(readers: HostReaders, array: np.ndarray) -> list[int]:
    """Returns the number of rows of each piece, which together are all rows, in order."""
    found = list(readers.map(lambda rows: rows.stop - rows.start, array))
    assert [row for rows, _ in found for row in range(rows.start, rows.stop)] == list(range(len(array)))
    return [count for _, count in found]


def test_pieces_are_all_rows_in_order_and_a_small_array_is_one(readers: HostReaders) -> None:
    assert read(readers, LARGE) == [3, 3, 3, 3, 1]
    assert read(readers, LARGE[:1]) == [1]
    assert read(readers, LARGE[:, :4]) == [13]


def test_a_closed_one_reads_by_itself(readers: HostReaders) -> None:
    assert len(read(readers, LARGE)) > 1
    readers.close()
    assert read(readers, LARGE) == [13]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_reads_by_itself_and_does_not_hang(readers: HostReaders) -> None:
    read(readers, LARGE)  # the threads run
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    child = context.Process(target=lambda: answers.put(read(readers, LARGE)))
    child.start()
    child.join(30)
    hung = child.is_alive()
    child.kill()
    assert not hung
    assert answers.get() == [13]

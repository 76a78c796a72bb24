"""Commands on more samples than may be in memory: tracing, planning and the benchmark hold a few batches at a time."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest

from artifacts import RunFolder
from calibration import ArrayImages, BatchReader
from runtime.bench.command import main as bench
from tests.planner.dense_worlds import plan, write_data

pytestmark = pytest.mark.slow
IMAGES = 4000  # 800 to calibrate, 800 to test
LARGEST = 256  # rows that may be asked for at once
ALIVE = 300


class Alive:
    """Counts the rows that were read and are still referred to."""

    def __init__(self) -> None:
        self.rows = self.most = self.read = 0

    def add(self, array: np.ndarray) -> None:
        assert len(array) <= LARGEST
        self.read += len(array)
        self.rows += len(array)
        self.most = max(self.most, self.rows)
        weakref.finalize(array, self._drop, len(array))

    def _drop(self, rows: int) -> None:
        self.rows -= rows


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Alive:
    counted, read = Alive(), ArrayImages.inputs

    def inputs(samples: ArrayImages, indices: np.ndarray, /) -> dict[str, np.ndarray]:
        found = read(samples, indices)
        for array in found.values():
            counted.add(array)
        return found

    monkeypatch.setattr(ArrayImages, "inputs", inputs)
    monkeypatch.setitem(BatchReader.__init__.__kwdefaults__, "keep_bytes", 100 * 256)  # 100 rows of 64 float32
    return counted


def test_planning_and_the_benchmark_hold_a_few_batches(run: RunFolder, tmp_path: Path, alive: Alive) -> None:
    write_data(run, IMAGES, seed=1)
    code, _ = plan(run, tmp_path, "--tolerance", "0.9")
    assert code == 0
    assert alive.read > 800 + 512
    assert bench(["--run", str(run.root), "--rounds", "2"]) == 0
    assert alive.read > 800 + 512 + 2 * 700
    assert alive.most < ALIVE

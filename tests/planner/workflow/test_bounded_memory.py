"""Commands on more samples than may be in memory: tracing, planning and the benchmark hold a few batches at a time."""

from __future__ import annotations

import weakref
from pathlib import Path

import numpy as np
import pytest

from artifacts import TRACE_NPZ, RunFolder, Trace, load_arrays, open_artifact
from calibration import ArrayImages, BatchReader
from calibration.cli import main as calibrate
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


def test_a_trace_of_some_samples_is_remembered(run: RunFolder, tmp_path: Path) -> None:
    data = str(run.root / "data.npz")
    words = ["--run", str(run.root), "--data", data, "--threads", "1", "--force"]
    assert calibrate([*words, "--trace-samples", "20"]) == 0
    artifact = open_artifact(run.trace, kind="trace", remedy="")
    kept, drawn = load_arrays(artifact.path("indices.npz")), Trace.load(artifact.path(TRACE_NPZ))
    assert drawn.sample_count == 20
    assert len(kept["traced"]) == 20
    assert set(kept["traced"]) < set(kept["calibrate"])
    assert plan(run, tmp_path, "--tolerance", "0.9")[0] == 0
    assert open_artifact(run.trace, kind="trace", remedy="").digest == artifact.digest
    assert calibrate([*words, "--trace-samples", "100000"]) == 0
    whole = Trace.load(run.trace / TRACE_NPZ)
    assert whole.sample_count == len(kept["calibrate"])
    places = np.searchsorted(kept["calibrate"], kept["traced"])
    np.testing.assert_allclose(whole.confidence[:, places], drawn.confidence, atol=1e-6)
    assert calibrate([*words, "--trace-samples", "0"]) == 2

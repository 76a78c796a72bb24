"""Batches that are gone through several times: the first that fit are read once, the others every time."""

from __future__ import annotations

import numpy as np

from calibration import BatchReader, image_input
from calibration.data.arrays import make_samples


class Counted:
    """Samples that note which indices they were asked for."""

    def __init__(self) -> None:
        parts = {"train": np.arange(0), "calibrate": np.arange(12), "test": np.arange(0)}
        self._samples = make_samples("some", np.arange(12 * 4, dtype=np.uint8).reshape(12, 1, 2, 2), None, (), parts)
        self.read: list[list[int]] = []
        self.row_bytes = 4 * int(np.prod(image_input((1, 2, 2)).row_shape))

    def inputs(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        self.read.append(indices.tolist())
        return self._samples.inputs(indices)


def test_the_first_batches_stay_and_the_others_are_read_again() -> None:
    samples = Counted()
    batches = np.arange(12).reshape(4, 3)
    reader = BatchReader(samples, list(batches), keep_bytes=2 * 3 * samples.row_bytes + 1)
    first, second = ([inputs["images"].copy() for inputs in reader] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert len(reader) == 4
    assert samples.read == [*batches.tolist(), *batches[2:].tolist()]

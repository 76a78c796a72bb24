"""BatchReader: batches of samples that are gone through several times, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from calibration.data.samples import Samples

KEPT_BYTES = 32 << 20


class BatchReader:
    """Batches of samples, read when they are asked for; the first ones, as far as they fit, are read once.

    Whoever goes through all batches again and again reads the others again: of a cycle, keeping any other part would
    not save more.
    """

    def __init__(self, samples: Samples, batches: Sequence[np.ndarray], *, keep_bytes: int = KEPT_BYTES) -> None:
        """Reads nothing yet.

        Args:
            samples: the data.
            batches: the indices of each batch.
            keep_bytes: how much may stay in memory.
        """
        self._samples = samples
        self._batches = batches
        self._free = keep_bytes
        self._kept: dict[int, Mapping[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        """Returns the inputs of a batch: input name -> (B, ...)."""
        if index in self._kept:
            return self._kept[index]
        inputs = self._samples.inputs(self._batches[index])
        size = sum(array.nbytes for array in inputs.values())
        if size <= self._free:
            self._free -= size
            self._kept[index] = inputs
        return inputs

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        return (self[index] for index in range(len(self)))

"""Queries of a benchmark: the test part of the samples, in seeded random order, cut into batches."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from artifacts import UsageError
from calibration import BatchReader, Samples


class Queries:
    """Batches of test samples, which are read when they are asked for; few of them stay in memory.

    Attributes:
        rows: (N,) the samples, in the order in which they form batches.
        batch_size: queries per batch; the last batch may be smaller.
    """

    def __init__(self, samples: Samples, *, batch_size: int, count: int | None, seed: int) -> None:
        """Draws the order.

        Args:
            samples: have a test part.
            batch_size: queries per batch.
            count: how many of the test samples; ``None``: all.
            seed: of the order.

        Raises:
            UsageError: there is no test part, or it has fewer samples.
        """
        test = samples.indices_of("test")
        if len(test) == 0:
            raise UsageError(f"{samples.name} has no test part; name data that has one with --data")
        if count is not None and count > len(test):
            raise UsageError(f"--samples {count}: {samples.name} has {len(test)} test samples")
        self.rows = np.random.default_rng(seed).permutation(test)[:count]
        self.batch_size = batch_size
        self._samples = samples
        self._batches = BatchReader(samples, [self._batch_rows(batch) for batch in range(self.batch_count)])

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.rows)

    @property
    def batch_count(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def inputs(self, batch: int) -> Mapping[str, np.ndarray]:
        """Returns the inputs of a batch by name, (B, ...) each."""
        return self._batches[batch]

    def targets(self, batch: int) -> np.ndarray | None:
        """Returns the true answers to a batch, (B, ...); ``None`` without labels."""
        return self._samples.targets(self._batch_rows(batch)) if self._samples.labelled else None

    def _batch_rows(self, batch: int) -> np.ndarray:
        rows: np.ndarray = self.rows[batch * self.batch_size : (batch + 1) * self.batch_size]
        return rows

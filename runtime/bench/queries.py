"""Queries of a benchmark: the test part of a data set, in seeded random order, cut into batches.

The only place of the benchmark that knows how data is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from artifacts import TensorSpec, UsageError
from calibration import Dataset


class Queries:
    """Batches of test samples; their inputs are made batch by batch.

    Attributes:
        rows: (N,) the samples, in the order in which they form batches.
        batch_size: queries per batch; the last batch may be smaller.
    """

    def __init__(
        self, dataset: Dataset, inputs: Sequence[TensorSpec], *, batch_size: int, samples: int | None, seed: int
    ) -> None:
        """Draws the order.

        Args:
            dataset: has a test part.
            inputs: those of the network.
            batch_size: queries per batch.
            samples: how many of the test samples; ``None``: all.
            seed: of the order.

        Raises:
            UsageError: there is no test part, or it has fewer samples.
        """
        test = dataset.split("test")
        if len(test) == 0:
            raise UsageError(f"{dataset.name} has no test part; name data that has one with --data")
        if samples is not None and samples > len(test):
            raise UsageError(f"--samples {samples}: {dataset.name} has {len(test)} test samples")
        self.rows = np.random.default_rng(seed).permutation(test)[:samples]
        self.batch_size = batch_size
        self._dataset = dataset
        self._names = [tensor.name for tensor in inputs]

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.rows)

    @property
    def batch_count(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def inputs(self, batch: int) -> Mapping[str, np.ndarray]:
        """Returns the inputs of a batch by name, (B, ...) each.

        Raises:
            UsageError: the network has several inputs, but the data is a single array.
        """
        made: np.ndarray | Mapping[str, np.ndarray] = self._dataset.inputs(self._batch_rows(batch))
        if isinstance(made, Mapping):
            return made
        if len(self._names) != 1:
            raise UsageError(
                f"{self._dataset.name} has one array per sample, but the network takes the inputs "
                f"{', '.join(self._names)}; name data with all of them with --data"
            )
        return {self._names[0]: made}

    def targets(self, batch: int) -> np.ndarray | None:
        """Returns the true answers to a batch, (B, ...); ``None`` without labels."""
        return self._dataset.labels_of(self._batch_rows(batch)) if self._dataset.labelled else None

    def _batch_rows(self, batch: int) -> np.ndarray:
        rows: np.ndarray = self.rows[batch * self.batch_size : (batch + 1) * self.batch_size]
        return rows

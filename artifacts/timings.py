"""The inference time matrix (ITM): measured milliseconds per engine and batch size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from artifacts.errors import InputError, unknown_name


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceTimeMatrix:
    """Rows are engines (segments, heads, stages, the full network), columns are batch sizes.

    Attributes:
        backend: the backend and its version.
        threads: how many threads an engine used.
        batch_sizes: ascending; the first is 1 wherever single queries are served.
        median_ms: row name -> median wall time per batch size, in milliseconds.
        spread_ms: row name -> interquartile range per batch size, in milliseconds.
        fixed: True where an engine runs at these batch sizes only (others are padded or split), False where it
            takes any batch size and the matrix is a sample of its time.
        environment: the fingerprint of the machine that was timed.
    """

    backend: str
    threads: int
    batch_sizes: tuple[int, ...]
    median_ms: Mapping[str, tuple[float, ...]]
    spread_ms: Mapping[str, tuple[float, ...]]
    fixed: bool
    environment: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.batch_sizes or list(self.batch_sizes) != sorted(set(self.batch_sizes)) or self.batch_sizes[0] < 1:
            raise InputError(f"inference time matrix: batch sizes {self.batch_sizes} must ascend from at least 1")
        if set(self.median_ms) != set(self.spread_ms):
            raise InputError("inference time matrix: medians and spreads name different rows")
        for name, row in [*self.median_ms.items(), *self.spread_ms.items()]:
            if len(row) != len(self.batch_sizes):
                raise InputError(
                    f"inference time matrix: row '{name}' has {len(row)} of {len(self.batch_sizes)} entries"
                )
            if not np.isfinite(row).all() or min(row) < 0:
                raise InputError(f"inference time matrix: row '{name}' has an entry that is not a time: {row}")

    def row_ms(self, name: str) -> tuple[float, ...]:
        """Returns the medians of one row."""
        if name not in self.median_ms:
            raise unknown_name("row of the inference time matrix", name, self.median_ms)
        return self.median_ms[name]

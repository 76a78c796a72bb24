"""The inference time matrix (ITM): measured milliseconds per engine and batch size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from artifacts.codec import OPTIONAL
from artifacts.errors import InputError, unknown_name


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthTimes:
    """The rows of a matrix where the rows of a batch have another length than its largest.

    Attributes:
        median_ms, spread_ms: as in ``InferenceTimeMatrix``.
    """

    median_ms: Mapping[str, tuple[float, ...]]
    spread_ms: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceTimeMatrix:
    """Rows are engines (segments, heads, stages, the full network), columns are batch sizes; where rows of a batch may
    have several lengths, that is a third axis.

    Attributes:
        backend: the backend and its version.
        threads: how many threads an engine used.
        batch_sizes: ascending; the first is 1 wherever single queries are served.
        median_ms: row name -> median wall time per batch size, in milliseconds.
        spread_ms: row name -> interquartile range per batch size, in milliseconds.
        fixed: True where an engine runs at these batch sizes only (others are padded or split), False where it
            takes any batch size and the matrix is a sample of its time.
        environment: the fingerprint of the machine that was timed.
        largest_length: the length that ``median_ms`` and ``spread_ms`` are for; 0 where all rows have one shape.
        shorter: length -> the same rows for that length, for every other length.
    """

    backend: str
    threads: int
    batch_sizes: tuple[int, ...]
    median_ms: Mapping[str, tuple[float, ...]]
    spread_ms: Mapping[str, tuple[float, ...]]
    fixed: bool
    environment: Mapping[str, str]
    largest_length: int = field(default=0, metadata=OPTIONAL)
    shorter: Mapping[str, LengthTimes] = field(default_factory=dict, metadata=OPTIONAL)

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

        for length, times in self.shorter.items():
            if not length.isdigit() or not 0 < int(length) < self.largest_length:
                raise InputError(f"inference time matrix: '{length}' is no length below {self.largest_length}")
            if set(times.median_ms) != set(self.median_ms):
                raise InputError(f"inference time matrix: length {length} names other rows than {self.largest_length}")
            self.at_length(int(length))  # which checks its rows

    @property
    def lengths(self) -> tuple[int, ...]:
        """The lengths that were timed, ascending; none where all rows have one shape."""
        return (*sorted(map(int, self.shorter)), self.largest_length) if self.largest_length else ()

    def at_length(self, length: int) -> InferenceTimeMatrix:
        """Returns the matrix of batches whose rows are ``length`` long."""
        times = self.shorter.get(str(length))
        if times is None and length != self.largest_length:
            raise unknown_name("length of the inference time matrix", str(length), list(map(str, self.lengths)))
        rows = self if times is None else times
        return replace(self, median_ms=rows.median_ms, spread_ms=rows.spread_ms, largest_length=0, shorter={})

    def row_ms(self, name: str) -> tuple[float, ...]:
        """Returns the medians of one row."""
        if name not in self.median_ms:
            raise unknown_name("row of the inference time matrix", name, self.median_ms)
        return self.median_ms[name]

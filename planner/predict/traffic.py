"""The load: how many queries enter together.

A host that collects queries for a few milliseconds serves batches of many sizes. A *load* gives every batch size its
share of the batches. What a plan is expected to cost is then a mixture: a query meets a batch size in proportion to
the queries that such batches hold, so a mean over queries weighs size ``b`` by ``share(b) * b``, and a mean over
batches by ``share(b)``.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from artifacts import InputError, UsageError

_FORM = 'a JSON object such as {"1": 0.5, "8": 0.3, "32": 0.2}, or CSV lines "batch_size,share"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Batch size -> share of the batches.

    Attributes:
        batch_sizes: ascending, from at least 1.
        shares: of the batches, one per size, above 0; counts will do, they are scaled to add up to 1.
    """

    batch_sizes: tuple[int, ...]
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes, shares = self.batch_sizes, self.shares
        if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)) or len(shares) != len(sizes):
            raise InputError(f"batch distribution: batch sizes {sizes} must ascend from at least 1, each with a share")
        if not all(math.isfinite(share) and share > 0 for share in shares):
            raise InputError(f"batch distribution: shares {shares} must be above 0; leave out sizes that do not occur")
        total = math.fsum(shares)
        object.__setattr__(self, "shares", tuple(share / total for share in shares))

    @classmethod
    def of(cls, batch_size: int) -> Load:
        """Returns the load of batches that all have the same size."""
        return cls(batch_sizes=(batch_size,), shares=(1.0,))

    @property
    def largest(self) -> int:
        return self.batch_sizes[-1]

    def to_plain(self) -> dict[str, float]:
        """Returns batch size -> share, as in a file of the JSON form."""
        return {str(size): share for size, share in zip(self.batch_sizes, self.shares, strict=True)}

    @property
    def query_shares(self) -> tuple[float, ...]:
        """Of the queries, the share that enters in a batch of each size."""
        rows = [size * share for size, share in zip(self.batch_sizes, self.shares, strict=True)]
        return tuple(part / math.fsum(rows) for part in rows)


def read_load(path: Path) -> Load:
    """Reads a batch distribution from a file.

    JSON: an object, batch size -> share or count of the batches. CSV: two columns, batch size and share or count, with
    or without a line of headings. The ending of the name decides.

    Raises:
        UsageError: the file cannot be read, or is of another form.
        InputError: the numbers are no distribution.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--batch-distribution {path}: cannot be read ({error}); expected {_FORM}") from error
    try:
        pairs = _parse_csv(text) if path.suffix.lower() == ".csv" else _parse_json(text)
    except ValueError as error:
        raise UsageError(f"--batch-distribution {path}: {error}; expected {_FORM}") from error
    if len(dict(pairs)) != len(pairs):
        raise UsageError(f"--batch-distribution {path}: a batch size comes twice; add their shares up")
    ordered = sorted(pairs)
    return Load(batch_sizes=tuple(size for size, _ in ordered), shares=tuple(share for _, share in ordered))


def _parse_json(text: str) -> list[tuple[int, float]]:
    plain = json.loads(text)
    if not isinstance(plain, Mapping) or not all(type(share) in (int, float) for share in plain.values()):
        raise ValueError("not an object of numbers")
    return [(int(size), float(share)) for size, share in plain.items()]


def _parse_csv(text: str) -> list[tuple[int, float]]:
    lines = [[cell.strip() for cell in line] for line in csv.reader(text.splitlines()) if line]
    if lines and not lines[0][0].isdigit():
        lines = lines[1:]
    if any(len(line) != 2 for line in lines):
        raise ValueError("a line does not have two columns")
    return [(int(size), float(share)) for size, share in lines]

"""The load: the sizes of the batches that enter the network.

A host that collects queries for a few milliseconds serves batches of many sizes. A *load* gives every batch size its
share of the batches. What a plan is expected to cost is then a mixture: a query meets a batch size in proportion to
the queries that such batches hold, so a mean over queries weighs size ``b`` by ``share(b) * b``, and a mean over
batches by ``share(b)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from artifacts import InputError


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

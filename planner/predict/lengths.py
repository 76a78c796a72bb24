"""Lengths: what a plan costs where the rows of a batch have several lengths, and a batch is as long as its longest row.

Theory. A batch of ``b`` rows drawn at random is at most ``l`` long with the chance ``F(l)^b``, where ``F(l)`` is the
share of all samples that are; and given that, its rows are drawn at random from these samples, of which the share
``s_k(l)`` survives past exit ``k``. With ``E_l[c]`` for the expectation of ``planner.predict.costs`` over batches of
such samples, what depends on the survivors and costs ``c_l`` in a batch of length ``l`` is expected to be

    sum over the lengths l of   F(l)^b E_l[c_l] - F(l')^b E_l'[c_l],        l' the next shorter length:

a mixture of the known expectations in which some weights are negative. So all stays exact, without Monte Carlo, and
long rows may be harder than short ones. The distribution of a query's latency is the same mixture.

A search that tries thousands of plans goes by costs that are averaged over the lengths of batches (``average_costs``):
there, how long a batch is and who leaves it are taken to be independent. Plans that are shown, compared or committed
are priced exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from artifacts import InputError
from planner.predict.traffic import Load


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthMix:
    """The lengths of rows.

    Attributes:
        lengths: those that there are engines for, ascending.
        shares: of the samples, one per length: those that fit in it and in none before it.
    """

    lengths: tuple[int, ...]
    shares: tuple[float, ...]

    @classmethod
    def of(cls, row_lengths: np.ndarray | None, lengths: tuple[int, ...]) -> LengthMix:
        """Returns the mix of some samples.

        Args:
            row_lengths: (N,) how long each is.
            lengths: those that there are engines for, ascending.

        Raises:
            InputError: the lengths of the samples are not known, or one is longer than the largest.
        """
        places = find_buckets(row_lengths, lengths)
        counts = np.bincount(places, minlength=len(lengths))
        return cls(lengths=lengths, shares=tuple((counts / len(places)).tolist()))

    def batch_shares(self, rows: int) -> np.ndarray:
        """Returns the share of the batches of ``rows`` rows that are as long as each length: (lengths,) float64."""
        reached = np.minimum(np.cumsum(self.shares), 1.0) ** rows
        return np.diff(reached, prepend=0.0)


def find_buckets(row_lengths: np.ndarray | None, lengths: tuple[int, ...]) -> np.ndarray:
    """Returns the place of the smallest length that holds each sample: (N,) int64; errors as ``LengthMix.of``."""
    if row_lengths is None:
        raise InputError("the trace does not say how long its samples are. Collect it again: python -m calibration")
    places: np.ndarray = np.searchsorted(lengths, row_lengths)
    if places.max(initial=0) >= len(lengths):
        raise InputError(f"a sample of the trace is {row_lengths.max()} long, the largest length is {lengths[-1]}")
    return places


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LengthCosts:
    """The costs of the stages of a plan at every length.

    Attributes:
        by_length: length, ascending -> per stage (B + 1,) milliseconds for 0..B rows.
    """

    by_length: Mapping[int, Sequence[np.ndarray]]

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(self.by_length)

    @property
    def batch_size(self) -> int:
        """B."""
        return len(next(iter(self.by_length.values()))[0]) - 1

    def stacked(self) -> list[np.ndarray]:
        """Returns per stage the costs by length: (lengths, B + 1)."""
        return [np.stack(stage) for stage in zip(*self.by_length.values(), strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One term of the mixture.

    Attributes:
        costs: of the stages, at one length.
        survival: per stage the share of the samples up to a length that enter it.
        chances: its weight per batch size of the load; may be negative.
    """

    costs: Sequence[np.ndarray]
    survival: np.ndarray
    chances: np.ndarray


def split_by_length(
    costs: LengthCosts, leaves_at: np.ndarray, row_lengths: np.ndarray | None, load: Load
) -> Iterator[Part]:
    """Yields the terms of the mixture.

    Args:
        costs: of the K + 1 stages.
        leaves_at: (N,) where each sample leaves; K for the final head.
        row_lengths: (N,) how long each sample is.
        load: the batches that enter.
    """
    buckets, rows = find_buckets(row_lengths, costs.lengths), np.array(load.batch_sizes)
    before: tuple[np.ndarray, np.ndarray] | None = None
    for place, stages in enumerate(costs.by_length.values()):
        left = leaves_at[buckets <= place]
        if not len(left):
            continue
        entering = np.array([(left >= stage).mean() for stage in range(len(stages))])
        chances = (len(left) / len(leaves_at)) ** rows
        yield Part(costs=stages, survival=entering, chances=chances)
        if before is not None:
            yield Part(costs=stages, survival=before[0], chances=-before[1])
        before = (entering, chances)


def average_costs(costs: LengthCosts, mix: LengthMix, load: Load) -> tuple[np.ndarray, ...]:
    """Returns the costs of the stages averaged over the lengths of batches, as queries meet them."""
    weights = np.dot(load.query_shares, [mix.batch_shares(rows) for rows in load.batch_sizes])
    return tuple(np.tensordot(weights, stage, axes=1) for stage in costs.stacked())


def stay_by_length(costs: LengthCosts, mix: LengthMix, load: Load) -> float:
    """Returns the mean query's latency in batches of which no row leaves before the end."""
    whole = np.sum(costs.stacked(), axis=0)  # (lengths, B + 1)
    by_size = [np.dot(mix.batch_shares(rows), whole[:, rows]) for rows in load.batch_sizes]
    return float(np.dot(load.query_shares, by_size))


def batch_places(row_lengths: np.ndarray | None, lengths: tuple[int, ...], batch_size: int) -> np.ndarray:
    """Returns the place of the length of each of the trace's own batches in order: (batches,) int64."""
    buckets = find_buckets(row_lengths, lengths)
    batches = -(-len(buckets) // batch_size)
    places: np.ndarray = np.resize(buckets, (batches, batch_size)).max(axis=1)
    return places

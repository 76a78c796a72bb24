"""Survivors: how many rows of a batch go on past an exit, and the batching pattern matrix (BPM).

Theory. Under a plan, the exit of a sample is a deterministic function of its confidences: the first planned exit
whose confidence is at least its threshold (compared in float32, as the runtime does). Let ``s_k`` be the share of
samples that survive past exit ``k``. In a batch of ``B`` queries drawn at random each survives independently with
probability ``s_k``, so the number of survivors is exactly

    N_k ~ Binomial(B, s_k)                              and, since survivors of exit k survived exit k - 1,
    N_k | N_(k-1) ~ Binomial(N_(k-1), s_k / s_(k-1)).

The PAME paper (ICS'22) draws its matrix as a histogram of batches; a histogram of the trace's own batches in their
order is kept beside the exact one as ``recorded``, because queries that arrive together may resemble each other.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from artifacts import CorruptArtifactError, InputError
from calibration import binomial_pmf, log_factorial

_ARRAYS = ("thresholds", "probability", "recorded")


def survivor_transition(batch_size: int, share: float) -> np.ndarray:
    """Returns the law of the survivors from one exit to the next: (B + 1, B + 1), row n: P(Binomial(n, share) = m).

    Args:
        batch_size: B.
        share: the share of the rows that arrive which go on, ``s_k / s_(k-1)``.
    """
    rows, choose = np.arange(batch_size + 1), _log_choose(batch_size)
    with np.errstate(divide="ignore"):
        log_on, log_off = np.log(share), np.log1p(-share)
    staying = np.where(rows == 0, 0.0, rows * log_on if share > 0 else -np.inf)
    leaving = np.where(rows == 0, 0.0, rows * log_off if share < 1 else -np.inf)
    step: np.ndarray = np.exp(choose + staying + leaving[np.maximum(rows[:, None] - rows, 0)])
    return step


@functools.lru_cache(maxsize=8)
def _log_choose(trials: int) -> np.ndarray:
    """Logarithms of the binomial coefficients (n, k) for n, k = 0..trials; -inf where k is above n."""
    n = np.arange(trials + 1)
    factorial = log_factorial(n)
    return np.where(n[:, None] >= n, factorial[:, None] - factorial - factorial[np.maximum(n[:, None] - n, 0)], -np.inf)


def count_survivors(leaves_at: np.ndarray, *, exit_count: int, batch_size: int) -> np.ndarray:
    """Returns the survivors of the trace's own batches in order: (batches, exit_count) int64.

    Args:
        leaves_at: (N,) the position of the exit where each sample leaves; ``exit_count`` for the final head.
        exit_count: how many exits there are before the final head.
        batch_size: rows per batch; the last batch is filled up from the start of the trace.
    """
    batches = -(-len(leaves_at) // batch_size)
    batched = np.resize(leaves_at, (batches, batch_size))
    survivors: np.ndarray = (batched[:, :, None] > np.arange(exit_count)).sum(axis=1)
    return survivors


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchingPatternMatrix:
    """Exit x survivor count -> probability.

    Attributes:
        exits: names, one per row; K of them.
        batch_size: B, the rows that enter the network together.
        thresholds: (K,) float64, one per row.
        probability: (K, B + 1) float64, batches drawn at random.
        recorded: (K, B + 1) float64, shares of the trace's own batches in order.
    """

    exits: tuple[str, ...]
    batch_size: int
    thresholds: np.ndarray
    probability: np.ndarray
    recorded: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.exits), self.batch_size + 1)
        if self.probability.shape != shape or self.recorded.shape != shape or self.thresholds.shape != shape[:1]:
            raise InputError(f"batching pattern matrix: expected shape {shape}, got {self.probability.shape}")

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the matrix as named arrays, as in ``bpm.npz``."""
        arrays: dict[str, np.ndarray] = {name: getattr(self, name) for name in _ARRAYS}
        return {"exits": np.array(self.exits, np.str_), "batch_size": np.array(self.batch_size), **arrays}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> BatchingPatternMatrix:
        """Returns the matrix of ``to_arrays``.

        Raises:
            CorruptArtifactError: an array is missing.
            InputError: the shapes do not belong together.
        """
        missing = sorted({"exits", "batch_size", *_ARRAYS} - set(arrays))
        if missing:
            raise CorruptArtifactError(f"the batching pattern matrix lacks the arrays {missing}")
        named = {name: arrays[name] for name in _ARRAYS}
        return cls(exits=tuple(map(str, arrays["exits"])), batch_size=int(arrays["batch_size"]), **named)


def draw_patterns(
    leaves: np.ndarray, *, exits: tuple[str, ...], thresholds: np.ndarray, batch_size: int
) -> BatchingPatternMatrix:
    """Returns the matrix of some exits, each taken by itself.

    Args:
        leaves: (K, N) bool: does the sample leave at this exit?
        exits: K names.
        thresholds: (K,) by which ``leaves`` was decided, for the record.
        batch_size: B.
    """
    share = 1 - leaves.mean(axis=1)
    recorded = np.zeros((len(exits), batch_size + 1))
    for row, leaving in enumerate(leaves):
        survivors = count_survivors(1 - leaving.astype(np.int64), exit_count=1, batch_size=batch_size)[:, 0]
        recorded[row] = np.bincount(survivors, minlength=batch_size + 1) / len(survivors)
    return BatchingPatternMatrix(
        exits=exits, batch_size=batch_size, thresholds=np.asarray(thresholds, np.float64),
        probability=binomial_pmf(batch_size, share), recorded=recorded,
    )  # fmt: skip

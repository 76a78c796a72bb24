"""Threshold grids: what every exit candidate would do at every threshold, for any tolerance.

For one candidate and threshold, the samples that are still in the network fall into those that leave and those that
move on. Three sums tell everything the planner asks: how many leave, the sum of their metric at the candidate, and
the sum of the metric that the final head would have given them. They follow for all thresholds at once: each
confidence is put into its slot of the sorted grid, and reversed cumulative sums over the slots are the sums over
``confidence >= threshold``.

The grid of the first exit covers all samples. A further exit is evaluated on the samples that earlier exits let
through, so its grid is kept under those earlier exits (its *prefix*). None of them depends on the tolerance, so another
tolerance needs no new pass over the trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from artifacts import CorruptArtifactError, Trace, UsageError
from planner.predict.replay import NO_EXITS, Exits, evaluate_exits, exit_rows

DEFAULT_STEP = 0.05
_SUMS = ("leaving", "metric_sum", "final_sum")


def threshold_grid(step: float = DEFAULT_STEP) -> np.ndarray:
    """Returns the thresholds 0, step, 2 step .. 1 as (T,) float32, ascending.

    Raises:
        UsageError: ``step`` lies outside [0.0001, 1].
    """
    if not 1e-4 <= step <= 1:
        raise UsageError(f"--grid-step {step}: expected a number from 0.0001 to 1, e.g. {DEFAULT_STEP}")
    steps = np.arange(0, int(1 / step + 1e-9) + 1, dtype=np.float64) * step
    return np.unique(np.append(steps, 1.0).round(9).astype(np.float32))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ThresholdGrid:
    """Candidate x threshold, over the samples that the exits of ``prefix`` let through.

    Attributes:
        prefix: the exits that were fixed before; candidates at or before the last of them hold zeros.
        thresholds: (T,) float32, ascending.
        samples: how many samples come this far.
        final_total: sum of the final head's metric over them.
        leaving: (E, T) int64, how many of them leave.
        metric_sum: (E, T) float64, sum of their metric at the candidate.
        final_sum: (E, T) float64, sum of the metric that the final head gives to those that leave.
    """

    prefix: Exits
    thresholds: np.ndarray
    samples: int
    final_total: float
    leaving: np.ndarray
    metric_sum: np.ndarray
    final_sum: np.ndarray

    @property
    def overall_metric(self) -> np.ndarray:
        """(E, T) float64: mean metric of the samples that come this far, those that leave and the others together."""
        total: np.ndarray = self.metric_sum + (self.final_total - self.final_sum)
        return total / max(self.samples, 1)

    @property
    def move_on(self) -> np.ndarray:
        """(E, T) float64: share of the samples that come this far and move on."""
        share: np.ndarray = (self.samples - self.leaving) / max(self.samples, 1)
        return share

    @property
    def leaver_metric(self) -> np.ndarray:
        """(E, T) float64: mean metric of those that leave; 0 where none does."""
        mean: np.ndarray = self.metric_sum / np.maximum(self.leaving, 1)
        return mean


def evaluate_grid(trace: Trace, thresholds: np.ndarray, prefix: Exits = NO_EXITS) -> ThresholdGrid:
    """Evaluates all candidates behind ``prefix`` at all thresholds in one pass over the trace.

    Args:
        trace: E candidates, N samples.
        thresholds: (T,) float32, ascending.
        prefix: the exits that are fixed already.
    """
    left = evaluate_exits(trace, prefix).leaves_at < len(prefix.cuts)
    going = np.flatnonzero(~left)
    first = exit_rows(trace, prefix.cuts)[-1] + 1 if prefix.cuts else 0
    shape = (len(trace.exits), len(thresholds))
    leaving, metric_sum, final_sum = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape)
    final = trace.metric[-1, going].astype(np.float64)
    for row in range(first, len(trace.exits)):
        slot = np.searchsorted(thresholds, trace.confidence[row, going], side="right")
        leaving[row] = _sums_from(slot, None, shape[1])
        metric_sum[row] = _sums_from(slot, trace.metric[row, going].astype(np.float64), shape[1])
        final_sum[row] = _sums_from(slot, final, shape[1])
    return ThresholdGrid(
        prefix=prefix, thresholds=thresholds, samples=len(going), final_total=float(final.sum()),
        leaving=leaving, metric_sum=metric_sum, final_sum=final_sum,
    )  # fmt: skip


def _sums_from(slot: np.ndarray, weights: np.ndarray | None, count: int) -> np.ndarray:
    """Sums over the samples at or above each threshold; slot i holds those that reach i thresholds."""
    per_slot = np.bincount(slot, weights=weights, minlength=count + 1)
    reached: np.ndarray = per_slot[::-1].cumsum()[::-1][1:]
    return reached


@dataclass(slots=True, kw_only=True)
class KeptGrids:
    """The grids of one trace by their prefix: evaluated when first asked for, then kept.

    Attributes:
        thresholds: (T,) float32, of every grid.
        grids: by prefix.
        evaluations: how often the trace had to be read since this object was made.
    """

    thresholds: np.ndarray
    grids: dict[Exits, ThresholdGrid] = field(default_factory=dict)
    evaluations: int = 0

    def grid(self, trace: Trace, prefix: Exits) -> ThresholdGrid:
        """Returns the grid behind ``prefix``."""
        if prefix not in self.grids:
            self.grids[prefix] = evaluate_grid(trace, self.thresholds, prefix)
            self.evaluations += 1
        return self.grids[prefix]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns all grids as named arrays, as in ``grid.npz``."""
        arrays: dict[str, np.ndarray] = {"thresholds": self.thresholds}
        for index, (prefix, grid) in enumerate(self.grids.items()):
            arrays[f"{index}.cuts"] = np.array(prefix.cuts, np.str_)
            arrays[f"{index}.at"] = np.array(prefix.thresholds, np.float64)
            arrays[f"{index}.totals"] = np.array([grid.samples, grid.final_total], np.float64)
            arrays |= {f"{index}.{name}": getattr(grid, name) for name in _SUMS}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> KeptGrids:
        """Returns the grids of ``to_arrays``.

        Raises:
            CorruptArtifactError: an array is missing.
        """
        try:
            thresholds = arrays["thresholds"]
            indices = sorted({name.partition(".")[0] for name in arrays if name != "thresholds"}, key=int)
            grids = [_unpack(arrays, index, thresholds) for index in indices]
        except (KeyError, ValueError) as error:
            raise CorruptArtifactError(f"these arrays are no threshold grids ({error})") from error
        return cls(thresholds=thresholds, grids={grid.prefix: grid for grid in grids})


def _unpack(arrays: Mapping[str, np.ndarray], index: str, thresholds: np.ndarray) -> ThresholdGrid:
    cuts, at = arrays[f"{index}.cuts"], arrays[f"{index}.at"]
    samples, final_total = arrays[f"{index}.totals"].tolist()
    return ThresholdGrid(
        prefix=Exits(cuts=tuple(map(str, cuts)), thresholds=tuple(at.tolist())),
        thresholds=thresholds, samples=int(samples), final_total=final_total,
        **{name: arrays[f"{index}.{name}"] for name in _SUMS},
    )  # fmt: skip

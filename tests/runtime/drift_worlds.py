"""Exit plans with a reference, and streams of rows that follow it or do not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from artifacts import ExitPlan, PlannedExit, PredictedLatency, StreamReference
from runtime.monitor.drift_events import BlockCounts

CELLS = np.array([
    [0, 0, 0, 0, 0, 0, 0, 2, 10, 48],
    [0, 0, 0, 0, 0, 0, 0, 5, 7, 8],
    [0, 1, 2, 3, 3, 3, 3, 2, 2, 1],
]) / 100  # fmt: skip
DISAGREEMENT = np.array([0.03, 0.1, 0.0])


def make_plan(reference: StreamReference | None, *, exits: int = 2, **changed: object) -> ExitPlan:
    planned = tuple(
        PlannedExit(cut=f"cut_{index}", threshold=0.7, leaving_share=0.3, metric=1.0, arrival_ms=1.0)
        for index in range(exits)
    )
    values = {
        "model_digest": "m", "trace_digest": "t", "search": "greedy", "tolerance": 0.05, "delta": None, "batch_size": 8,
        "backend": "fake", "threads": 1, "exits": planned, "full_metric": 1.0, "predicted_metric": 1.0,
        "predicted": PredictedLatency(full_ms=2.0, mean_ms=1.0, batch_ms=2.0, oracle_mean_ms=1.0),
        "reference": reference,
    }  # fmt: skip
    return ExitPlan(**{**values, **changed})


def draw_block(
    random: np.random.Generator, rows: int, cells: np.ndarray, *, shadow: float = 0.0, disagreement: np.ndarray
) -> BlockCounts:
    """Draws rows by exit and confidence from ``cells``, shadows some, and lets some of those disagree."""
    drawn = random.multinomial(rows, cells.ravel()).reshape(cells.shape)
    left = drawn.sum(axis=1)
    left[-1] = 0
    shadowed = random.binomial(left, shadow)
    return BlockCounts(cells=drawn, shadowed=shadowed, disagreements=random.binomial(shadowed, disagreement))


def draw_reference(
    random: np.random.Generator,
    samples: int,
    cells: np.ndarray = CELLS,
    disagreement: Sequence[float] | np.ndarray = DISAGREEMENT,
) -> StreamReference:
    """Draws the calibration samples of a stream."""
    drawn = random.multinomial(samples, cells.ravel()).reshape(cells.shape)
    left = drawn.sum(axis=1)
    agreements = left - random.binomial(left, disagreement)
    return StreamReference(
        samples=samples,
        confidence_counts=tuple(tuple(row) for row in drawn.tolist()),
        agreements=tuple(agreements.tolist()),
    )

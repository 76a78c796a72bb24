"""Stream reference: what the calibration samples do under a plan, for the runtime to compare a live stream with."""

from __future__ import annotations

import numpy as np

from artifacts import StreamReference, Trace
from planner.predict.replay import Exits, evaluate_exits, exit_rows
from runtime import CONFIDENCE_BINS, count_cells


def describe_reference(trace: Trace, exits: Exits) -> StreamReference:
    """Counts where the samples of a trace leave, with which confidence, and how many agree with the final head.

    Args:
        trace: the calibration samples.
        exits: of the plan.
    """
    rows, heads = [*exit_rows(trace, exits.cuts), -1], len(exits.cuts) + 1
    left, samples = evaluate_exits(trace, exits).leaves_at, np.arange(trace.sample_count)
    cells = count_cells(left, trace.confidence[rows][left, samples], heads=heads, bins=CONFIDENCE_BINS)
    agreements = np.bincount(left[trace.agrees[rows][left, samples]], minlength=heads)
    return StreamReference(
        samples=trace.sample_count,
        confidence_counts=tuple(tuple(row) for row in cells.tolist()),
        agreements=tuple(agreements.tolist()),
    )

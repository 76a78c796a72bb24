"""The kept grids against loops, and that they are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import CorruptArtifactError, Trace, UsageError, save_arrays
from planner import NO_EXITS, Exits, KeptGrids, evaluate_grid, threshold_grid
from planner.workflow.record import read_grids, write_grids
from tests.planner.planning_worlds import make_trace, traces


@given(traces(), st.booleans())
def test_grid_equals_a_loop_over_thresholds(trace: Trace, behind: bool) -> None:
    prefix = Exits(cuts=trace.exits[:1], thresholds=(0.6,)) if behind and trace.exits else NO_EXITS
    thresholds = threshold_grid(0.1)
    grid = evaluate_grid(trace, thresholds, prefix)
    here = np.ones(trace.sample_count, bool)
    if prefix.cuts:
        here = ~(trace.confidence[0] >= np.float32(0.6))
    assert grid.samples == here.sum()
    for row in range(len(prefix.cuts), len(trace.exits)):
        for column, threshold in enumerate(thresholds):
            leaves = here & (trace.confidence[row] >= threshold)
            stays = here & ~leaves
            assert grid.leaving[row, column] == leaves.sum()
            if not here.any():
                continue
            total = trace.metric[row, leaves].sum(dtype=float) + trace.metric[-1, stays].sum(dtype=float)
            assert grid.overall_metric[row, column] == pytest.approx(total / here.sum())
            assert grid.move_on[row, column] == pytest.approx(stays.sum() / here.sum())
            if leaves.any():
                mean = trace.metric[row, leaves].mean(dtype=float)
                assert grid.leaver_metric[row, column] == pytest.approx(mean)
    assert not grid.leaving[: len(prefix.cuts)].any()


@pytest.mark.parametrize("step", [0.05, 0.1, 0.3, 0.001, 1.0])
def test_thresholds_reach_from_0_to_1(step: float) -> None:
    found = threshold_grid(step)
    assert found.dtype == np.float32
    assert (found[0], found[-1]) == (0, 1)
    assert (np.diff(found) > 0).all()
    assert np.float32(step) in found


@pytest.mark.parametrize("step", [0.0, -0.1, 1.5, float("nan")])
def test_a_step_that_gives_no_grid_is_refused(step: float) -> None:
    with pytest.raises(UsageError, match="--grid-step"):
        threshold_grid(step)


def test_grids_come_back_from_their_file(tmp_path: Path) -> None:
    trace = make_trace(0)
    kept = KeptGrids(thresholds=threshold_grid())
    prefix = Exits(cuts=("cut0",), thresholds=(0.35,))
    kept.grid(trace, NO_EXITS)
    kept.grid(trace, prefix)
    write_grids(tmp_path / "grid.npz", kept)
    found = read_grids(tmp_path / "grid.npz")
    assert list(found.grids) == [NO_EXITS, prefix]
    for key, grid in kept.grids.items():
        np.testing.assert_array_equal(found.grid(trace, key).overall_metric, grid.overall_metric)
        np.testing.assert_array_equal(found.grid(trace, key).move_on, grid.move_on)
        np.testing.assert_array_equal(found.grid(trace, key).leaver_metric, grid.leaver_metric)
    assert found.evaluations == 0


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_arrays(tmp_path / "grid.npz", {"thresholds": np.zeros(2, np.float32), "0.cuts": np.array(["a"])})
    with pytest.raises(CorruptArtifactError, match="run the planner again"):
        read_grids(tmp_path / "grid.npz")

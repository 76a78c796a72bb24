"""Steps of one batch: every row leaves once, in order, where its own confidences say, shadowed or not."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from runtime.scheduling import batch_steps
from runtime.scheduling.batch_steps import (
    BatchState,
    LeavingRows,
    ShadowState,
    StageCall,
    StageOutcome,
    next_step,
    record_outcome,
)

STRIDE = 100  # places from a stage's first answer to the next stage's


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    """Rows with one confident/unconfident flag per stage, some of them shadowed."""
    stage_count, row_count = draw(st.integers(1, 5)), draw(st.integers(1, 12))
    flags = st.lists(st.booleans(), min_size=stage_count, max_size=stage_count)
    return {
        "stage_count": stage_count,
        "confident": [draw(flags) for _ in range(row_count)],
        "shadowed": draw(st.sets(st.integers(0, row_count - 1))),
        "moves": draw(st.randoms(use_true_random=False)),
    }


def execute(call: StageCall, rows: Sequence[int], batch: dict[str, Any]) -> StageOutcome:
    """Plays engines and device: rows leave by their flag, and survivors move in any order."""
    last = call.stage == batch["stage_count"] - 1
    left = [place for place, row in enumerate(rows) if last or batch["confident"][row][call.stage]]
    stayed = [] if last else [place for place in range(call.count) if place not in left or place in call.held]
    if left:
        batch["moves"].shuffle(stayed)
    return StageOutcome(left, stayed, call.stage * STRIDE, 1.0)


def run_batch(batch: dict[str, Any]) -> tuple[BatchState, list[LeavingRows], list[StageCall]]:
    rows = list(range(len(batch["confident"])))
    state = BatchState(rows, ShadowState(batch["shadowed"]) if batch["shadowed"] else None)
    found, calls, places = [], [], {}
    while (call := next_step(state, batch["stage_count"])) is not None:
        assert call.count == len(state.rows)
        calls.append(call)
        places |= {(call.stage, row): call.stage * STRIDE + place for place, row in enumerate(state.rows)}
        leaving = record_outcome(state, execute(call, state.rows, batch))
        if leaving is not None:
            found.append(leaving)
            assert leaving.exit_index == call.stage
            assert leaving.places == [places[call.stage, row] for row in leaving.rows]
    if state.shadow is not None:
        for row in state.shadow.finished:
            assert row.places == [places[stage, row.row] for stage in range(batch["stage_count"])]
    return state, found, calls


def exit_of(confident: Sequence[bool], stage_count: int) -> int:
    """Where one row leaves: at its first confident stage, at the latest at the last."""
    return next((stage for stage in range(stage_count - 1) if confident[stage]), stage_count - 1)


@given(batch=batches())
def test_every_row_leaves_exactly_once_where_its_own_confidences_say(batch: dict[str, Any]) -> None:
    _, found, _ = run_batch(batch)
    left = {row: leaving.exit_index for leaving in found for row in leaving.rows}
    assert sum(len(leaving.rows) for leaving in found) == len(left)
    assert left == {row: exit_of(flags, batch["stage_count"]) for row, flags in enumerate(batch["confident"])}


@given(batch=batches())
def test_rows_leave_in_the_order_of_the_stages_and_stages_run_once(batch: dict[str, Any]) -> None:
    _, found, calls = run_batch(batch)
    order = [leaving.exit_index for leaving in found]
    assert order == sorted(set(order))
    assert all(leaving.rows for leaving in found)
    assert [call.stage for call in calls] == list(range(len(calls)))


@given(batch=batches())
def test_a_stage_runs_over_the_rows_that_stay_and_the_shadowed_ones(batch: dict[str, Any]) -> None:
    state, _, calls = run_batch(batch)
    exits = [exit_of(flags, batch["stage_count"]) for flags in batch["confident"]]
    for call in calls:
        standing = [row for row, exit_index in enumerate(exits) if exit_index >= call.stage or row in batch["shadowed"]]
        assert call.count == len(standing)
        assert len(call.held) == len(batch["shadowed"])
    assert len(calls) == (batch["stage_count"] if batch["shadowed"] else max(exits) + 1)
    assert state.engine_s == len(calls)
    assert state.rows == []


@given(batch=batches())
def test_shadowed_rows_are_seen_at_every_stage_wherever_they_leave(batch: dict[str, Any]) -> None:
    state, _, _ = run_batch(batch)
    finished = [] if state.shadow is None else state.shadow.finished
    exits = {row: exit_of(batch["confident"][row], batch["stage_count"]) for row in batch["shadowed"]}
    assert len(finished) == len(exits)
    assert {row.row: row.exit_index for row in finished} == exits


def test_a_batch_without_rows_is_done() -> None:
    assert next_step(BatchState([]), 3) is None


def test_the_scheduler_imports_the_standard_library_alone() -> None:
    tree = ast.parse(Path(batch_steps.__file__).read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported <= {"__future__", "collections", "dataclasses"}

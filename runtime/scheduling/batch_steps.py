"""Steps of one batch through the stages: which stage runs next, over which rows, and which rows leave. Pure.

A batch goes through its stages in a loop of three: decide, run, record::

    while (call := next_step(state, stage_count)) is not None:
        outcome = execute(call)                      # engines and device; the only part that is not here
        leaving = record_outcome(state, outcome)

``BatchState.rows`` says which row of the batch stands at each place of the buffers. After every stage the rows whose
confidence reaches the threshold leave, and survivors move up into the places before them::

    rows    0 1 2 3 4 5 6 7        stage 0 runs over 8 rows
            . 1 . . 4 5 . .        rows 1, 4 and 5 stay; the last survivors move into the places that are free
            4 1 5                  stage 1 runs over 3 rows
            4 . .
            4                      stage 2 runs over 1 row; it leaves, whatever its confidence

A *shadowed* row leaves like every other, with the answer of its exit, but is carried on to the last stage, so that its
answer can be compared with the final head's. Until then it stands in the buffers; it leaves only once.

What Python does between two engines runs with cold caches, where every array call costs tens of microseconds, however
small the array. So rows are counted in plain lists, and the values below are not frozen: making a frozen dataclass
takes about five times as long.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class StageCall:
    """A decision: run a stage.

    Attributes:
        stage: its index.
        count: how many rows stand in the first places of its buffers.
        held: places of rows that must not give up their place, whatever their confidence.
    """

    stage: int
    count: int
    held: Sequence[int]


@dataclass(slots=True)
class StageOutcome:
    """The result of a ``StageCall``.

    Attributes:
        left: places of the rows whose confidence reached the threshold, ascending; all of them after the last stage.
        stayed: the row at place ``i`` now is the one that was at place ``stayed[i]``. Held rows stay even if they left.
            While no row leaves, none moves.
        first_answer: where the answer to the row at place 0 lies; that to place ``i`` lies ``i`` further.
        engine_s: seconds spent inside engines.
    """

    left: Sequence[int]
    stayed: Sequence[int]
    first_answer: int
    engine_s: float


@dataclass(slots=True)
class LeavingRows:
    """Rows that leave the batch after one stage.

    Attributes:
        exit_index: the stage after which they leave.
        rows: their positions in the batch, in any order; at least one.
        places: where their answers lie, for ``StageChain.answers``.
    """

    exit_index: int
    rows: list[int]
    places: list[int]


@dataclass(slots=True)
class ShadowedRow:
    """A row that was carried to the end, wherever it left.

    Attributes:
        row: its position in the batch.
        exit_index: where it left.
        places: where the answers of all stages to it lie, for ``StageChain.answers``.
    """

    row: int
    exit_index: int
    places: list[int]


@dataclass(slots=True)
class ShadowState:
    """The shadowed rows of one batch on their way.

    Attributes:
        rows: those that are carried on to the end.
        exits: row -> where it has left.
        places: row -> where the answers of the stages lie that have run.
        finished: rows that have reached the end.
    """

    rows: Collection[int]
    exits: dict[int, int] = field(default_factory=dict)
    places: dict[int, list[int]] = field(default_factory=dict)
    finished: list[ShadowedRow] = field(default_factory=list)


@dataclass(slots=True)
class BatchState:
    """One batch on its way.

    Attributes:
        rows: the row of the batch that stands at each place of the buffers.
        shadow: its shadowed rows; ``None`` where there are none.
        stage: the stage that runs next.
        engine_s: seconds spent inside engines so far.
    """

    rows: list[int]
    shadow: ShadowState | None = None
    stage: int = 0
    engine_s: float = 0.0


def next_step(state: BatchState, stage_count: int) -> StageCall | None:
    """Returns the stage to run next; ``None`` when the batch is done."""
    rows = state.rows
    if not rows or state.stage == stage_count:
        return None
    shadow = state.shadow
    held = () if shadow is None else [place for place, row in enumerate(rows) if row in shadow.rows]
    return StageCall(state.stage, len(rows), held)


def record_outcome(state: BatchState, outcome: StageOutcome) -> LeavingRows | None:
    """Moves a batch past the stage that has run.

    Returns:
        The rows that leave; ``None`` where there are none.
    """
    rows, exit_index, first = state.rows, state.stage, outcome.first_answer
    left = outcome.left if state.shadow is None else _record_shadowed(state, state.shadow, outcome)
    state.stage = exit_index + 1
    state.engine_s += outcome.engine_s
    if outcome.left:
        state.rows = [rows[place] for place in outcome.stayed]
    if not left:
        return None
    return LeavingRows(exit_index, [rows[place] for place in left], [first + place for place in left])


def _record_shadowed(state: BatchState, shadow: ShadowState, outcome: StageOutcome) -> list[int]:
    """Records shadowed rows that leave or arrive; returns the places of the rows that leave now, for the first time."""
    for place, row in enumerate(state.rows):
        if row in shadow.rows:
            shadow.places.setdefault(row, []).append(outcome.first_answer + place)
    leaving = []
    for place in outcome.left:
        row = state.rows[place]
        if row not in shadow.exits:
            leaving.append(place)
            if row in shadow.rows:
                shadow.exits[row] = state.stage
    if not outcome.stayed:  # held rows stay until the last stage
        shadow.finished += [ShadowedRow(row, shadow.exits[row], places) for row, places in shadow.places.items()]
    return leaving

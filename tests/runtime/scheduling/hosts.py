"""A host made of lists: arenas that hold the names of rows, moved as the scheduler says and a device would."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from runtime.scheduling.decisions import Admitted, Done, Idle, Rejected, Run
from runtime.scheduling.machine import Scheduler
from runtime.scheduling.tables import StageCosts


def affine_costs(
    stage_count: int,
    largest: int,
    *,
    fixed_s: float = 0.004,
    row_s: float = 0.0001,
    staying: float = 0.5,
    lines: int = 1,
) -> StageCosts:
    """Returns stages of equal times, ``fixed_s + row_s n``; in line ``l``, ``row_s`` is ``l + 1`` times as long."""
    tables = [[0.0, *(fixed_s + row_s * (line + 1) * n for n in range(1, largest + 1))] for line in range(lines)]
    shares = [staying] * (stage_count - 1) + [0.0]
    return StageCosts([table for table in tables for _ in range(stage_count)], shares * lines, lines)


def line_of(ticket: int, index: int, lines: int) -> int:
    """Returns the line of a row: arbitrary, but always the same."""
    return (ticket * 31 + index * 17) // 3 % lines


def exit_of(ticket: int, index: int, stage_count: int) -> int:
    """Returns where a row leaves: arbitrary, but always the same."""
    return (ticket * 7919 + index * 104729) // 13 % stage_count


@dataclass
class ListHost:
    """Plays device and clients. Every step checks what must always hold.

    Attributes:
        stage_count: of a line.
        lines: how many lines of stages there are.
        now: its clock.
        open: tickets that are admitted and not done -> number of rows.
        done: how often each ticket was done, and with which outcome.
        left: rows that have left, of tickets that are open or answered.
    """

    scheduler: Scheduler
    stage_count: int
    lines: int = 1
    now: float = 0.0
    open: dict[int, int] = field(default_factory=dict)
    done: dict[int, Done] = field(default_factory=dict)
    left: Counter[tuple[int, int]] = field(default_factory=Counter)
    run: Run | None = None
    rejected: list[Rejected] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.arenas: list[list[tuple[int, int] | None]] = [
            [None] * self.scheduler.capacity for _ in range(self.stage_count * self.lines)
        ]

    def submit(self, ticket: int, rows: int, *, deadline: float | None = None, priority: int = 0) -> None:
        lines = [line_of(ticket, index, self.lines) for index in range(rows)] if self.lines > 1 else []
        found = self.scheduler.submit(ticket, rows, deadline, priority, self.now, lines)
        if isinstance(found, Admitted):
            self.open[ticket] = rows
        else:
            self.rejected.append(found)

    def end(self, done: list[Done]) -> None:
        for ended in done:
            assert ended.ticket not in self.done
            rows = self.open.pop(ended.ticket)
            self.done[ended.ticket] = ended
            answers = [self.left[ended.ticket, index] for index in range(rows)]
            assert max(answers) <= 1
            if ended.outcome == "answered":
                assert min(answers) == 1

    def cancel(self, ticket: int) -> None:
        waiting = self.scheduler.waiting_rows
        self.end(self.scheduler.cancel(ticket, self.now))
        assert self.scheduler.waiting_rows <= waiting
        assert ticket not in self.open

    def expire(self) -> None:
        self.end(self.scheduler.expire(self.now))

    def next(self) -> Run | Idle:
        found = self.scheduler.next(self.now)
        if isinstance(found, Idle):
            assert not self.open
            return found
        self.run = found
        for arrangement in found.arrangements:
            arena, places = self.arenas[arrangement.stage], arrangement.places
            assert arrangement.stage % self.stage_count > 0
            assert arrangement.stage // self.stage_count == found.stage // self.stage_count
            assert len(set(places)) == len(places)
            arena[: len(places)] = [arena[place] for place in places]
            arena[len(places) :] = [None] * (len(arena) - len(places))
        rows, arena = found.rows, self.arenas[found.stage]
        if found.stage % self.stage_count == 0:
            arena[: len(rows)] = rows
            longest = max(line_of(*row, self.lines) for row in rows)
            assert found.stage // self.stage_count == longest, "the smallest length that holds all rows"
        assert arena[: len(rows)] == rows
        assert len(set(rows)) == len(rows)
        assert all(ticket in self.open for ticket, _ in rows)
        assert not any(self.left[row] for row in rows)
        return found

    def finish(self) -> None:
        run = self.run
        assert run is not None
        stage = run.stage % self.stage_count
        last = stage == self.stage_count - 1
        left = [
            place
            for place, row in enumerate(run.rows)
            if last or (run.may_leave and exit_of(*row, self.stage_count) == stage)
        ]
        stayed = [row for place, row in enumerate(run.rows) if place not in left]
        if stayed:
            onward = self.arenas[run.stage + 1]
            places = range(run.offset, run.offset + len(stayed))
            assert places.stop <= len(onward), "an arena is too small"
            for place, row in zip(places, stayed, strict=True):
                onward[place] = row
        for place in left:
            ticket, index = run.rows[place]
            if ticket in self.open:
                self.left[ticket, index] += 1
        self.arenas[run.stage][: len(run.rows)] = [None] * len(run.rows)
        self.run = None
        self.end(self.scheduler.finished(run, left, self.now))

    def fail(self) -> None:
        run = self.run
        assert run is not None
        hit = {ticket for ticket, _ in run.rows if ticket in self.open}
        self.arenas[run.stage][: len(run.rows)] = [None] * len(run.rows)
        self.run = None
        done = self.scheduler.failed(run, "the engine broke", self.now)
        assert {ended.ticket for ended in done} == hit
        self.end(done)

    def check(self) -> None:
        """Every waiting row of an open ticket stands at exactly one place."""
        scheduler = self.scheduler
        assert scheduler.open_tickets == len(self.open)
        snapshot = scheduler.snapshot(self.now)
        standing: Counter[tuple[int, int]] = Counter()
        running = set() if self.run is None else set(self.run.rows)
        for stage in range(1, self.stage_count):
            standing_here = [row for arena in self.arenas[stage :: self.stage_count] for row in arena]
            here = [row for row in standing_here if row is not None and row[0] in self.open and row not in running]
            assert snapshot.waiting_rows[stage] == len(here)
            standing.update(here)
        assert not standing or max(standing.values()) == 1
        assert snapshot.waiting_rows[0] + len(standing) <= scheduler.capacity

    def run_to_the_end(self) -> None:
        while True:
            if self.run is None and isinstance(self.next(), Idle):
                return
            assert self.run is not None
            self.now += self.run.expected_s
            self.finish()
            self.check()

"""``Scheduler``: the state of a serving host, moved on by events and answering with decisions. Pure.

The host is a loop; times come from its clock, and nothing here reads one, waits, or knows what a row holds::

    submit(ticket, rows, ...)         -> Admitted or Rejected       whenever a request comes
    cancel(ticket) / expire(now)      -> [Done]                     whenever a client leaves / a deadline passes
    next(now)                         -> Run or Idle                whenever the device is free
    finished(run, left) / failed(run) -> [Done]                     when the run has come to its end
    expect(staying)                                                 when rows leave at other thresholds from now on

What holds, whatever happens in whatever order:

* every admitted request is done exactly once: answered, cancelled, expired or failed;
* a row stands at one place of one arena, and no two rows stand at the same place;
* a request that is done gives its waiting rows' room back at once; rows of it that are in a run go through with it, and
  its places are free for others at the next arrangement. Its neighbours notice nothing;
* at most ``max_waiting_rows`` rows wait, and for the rows of one run more; so arenas of a fixed size are enough;
* the same events give the same decisions (``replay``).

Rows are scheduled one by one. A request is answered when the last of its rows has left.

Where rows have several lengths, there is a line of stages for each (``runtime.scheduling.lines``), and ``Run.stage``
counts through them. Rows wait at the entry of the line of their own length, and go on in the line that they ran in.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Sequence

from runtime.scheduling.decisions import (
    ANSWERED,
    CANCELLED,
    DRAINING,
    EXPIRED,
    FAILED,
    FULL,
    OUTCOMES,
    QUEUE_FULL,
    REASONS,
    TOO_LATE,
    TOO_MANY_ROWS,
    Admitted,
    Arrangement,
    Done,
    Idle,
    Rejected,
    Run,
    SchedulerConfig,
    Snapshot,
)
from runtime.scheduling.lines import check_lines, take_entering, weigh_rows, weigh_waiting
from runtime.scheduling.load import LoadMeter, PoolingSwitch
from runtime.scheduling.policies import Group, PoolingRule, choose_chain, choose_pooled
from runtime.scheduling.queues import Row, StageQueue, Ticket
from runtime.scheduling.tables import StageCosts

_CONFIG = SchedulerConfig()
_DEFAULT_SLO_CHAINS = 10
_DEFAULT_WAITING_BATCHES = 4


class Scheduler:
    """Shares the stages of a network among requests; not thread-safe.

    Attributes:
        capacity: the most places that an arena needs, padding of covers not counted.
        draining: whether it admits no more.
    """

    def __init__(self, costs: StageCosts, config: SchedulerConfig = _CONFIG) -> None:
        self._may_leave = config.policy.kind != FULL
        self._costs = costs if self._may_leave else costs.without_leaving()
        self._config = config
        self._limit = config.max_waiting_rows or _DEFAULT_WAITING_BATCHES * costs.largest
        self._adapts = config.max_waiting_rows is None
        self._slo_s = config.slo_s or _DEFAULT_SLO_CHAINS * self._costs.remaining_s[costs.longest][-1]
        self._ageing_s = self._slo_s if config.ageing_s is None else config.ageing_s
        self._depth, self._lines = costs.depth, costs.lines
        self._longest_run_s = max(max(table) for table in costs.run_s)
        self._queues = [StageQueue() for _ in range(costs.stage_count)]
        self._tickets: dict[int, Ticket] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []
        self._meter = LoadMeter(config.load_window_s)
        self._switch = PoolingSwitch(config.policy, self._costs, self._slo_s)
        self._rule = PoolingRule(self._costs, self._switch.margin_s, self._slo_s)
        self._run: Run | None = None
        self._run_rows: list[Row] = []
        self._run_ends = -math.inf
        self._arrivals = self._runs = 0
        self._done = dict.fromkeys(OUTCOMES, 0)
        self._rejected = dict.fromkeys(REASONS, 0)
        self.capacity = self._limit + costs.largest
        self.draining = False

    # requests

    def submit(
        self, ticket: int, rows: int, deadline: float | None, priority: int, now: float, lines: Sequence[int] = ()
    ) -> Admitted | Rejected:
        """Takes a request in, or refuses it.

        Args:
            ticket: a name of the caller's that no open request has.
            rows: how many it has.
            deadline: it expires then; ``None``: never.
            priority: 1 (highest) to ``SchedulerConfig.priorities``; 0: the middle one.
            now: the time.
            lines: of each row, the line of the shortest length that holds it; none where there is one line.

        Raises:
            ValueError: the ticket is open already, there are no rows, the deadline is not a time, or there is no such
                priority or line.
        """
        level = self._level(priority)
        if ticket in self._tickets:
            raise ValueError(f"ticket {ticket} is open already; give every request a name of its own")
        if rows < 1 or (deadline is not None and math.isnan(deadline)):
            raise ValueError(f"a request of {rows} rows with deadline {deadline}: expected at least 1 row, and a time")
        if lines or self._lines > 1:
            check_lines(lines, rows, self._costs)
        self._meter.add(weigh_rows(lines, self._costs) if lines else rows, now)
        until = math.inf if deadline is None else deadline
        wait_s = self.predicted_wait_s(now)
        least_s = self._costs.run_s[max(lines) * self._depth if lines else 0][1]
        reason = self._refuse(rows, until, wait_s + least_s if self._config.refuse_late else least_s, now)
        if reason is not None:
            self._rejected[reason] += 1
            return Rejected(ticket, reason, wait_s)
        self._admit(Ticket(ticket, rows, until, len(self._queues)), min(until, now + self._slo_s) + level, lines)
        return Admitted(ticket, wait_s)

    def cancel(self, ticket: int, now: float) -> list[Done]:
        """Ends a request whose client has gone; one that is done already, or never was, is nothing to do."""
        del now  # every event has its time, for the log
        found = self._tickets.get(ticket)
        return [] if found is None else [self._end(found, CANCELLED)]

    def expire(self, now: float) -> list[Done]:
        """Ends the requests whose deadline has passed, and those that would miss it in the next run of their stage."""
        if not self._deadlines or self._deadlines[0][0] > now + self._longest_run_s:
            return []
        done = []
        waits: list[tuple[float, int, Ticket]] = []
        longest = max(self._next_run_s(stage) for stage in range(len(self._queues)))
        while self._deadlines and self._deadlines[0][0] <= now + longest:
            entry = heapq.heappop(self._deadlines)
            deadline, _, ticket = entry
            if not ticket.open:
                continue
            if deadline <= now or self._is_late(ticket, now):
                done.append(self._end(ticket, EXPIRED))  # what is left runs faster, so the others may be in time
            else:
                waits.append(entry)
        for entry in waits:
            heapq.heappush(self._deadlines, entry)
        return done

    # runs

    def next(self, now: float) -> Run | Idle:
        """Decides what the device does next.

        Raises:
            ValueError: it is still busy.
        """
        if self._run is not None:
            raise ValueError(f"run {self._run.number} has not come to its end; report finished or failed first")
        groups = [Group(stage, queue.live, queue.earliest) for stage, queue in enumerate(self._queues) if queue.live]
        if not groups:
            return Idle(self._next_deadline())
        if self._switch.follows_load:
            self._switch.update(self._meter.rows_per_s(now), weigh_waiting(self._queues[:: self._depth], self._costs))
        if self._switch.pooling:
            return self._start(choose_pooled(groups, self._rule, now), now)
        return self._start(choose_chain(groups, self._depth), now)

    def finished(self, run: Run, left: Collection[int], now: float) -> list[Done]:
        """Records the end of a run.

        Args:
            run: from ``next``.
            left: the places of the rows that leave, those of requests that are done meanwhile included. All others have
                been appended to the next stage's arena, in the order of their places.
            now: the time.

        Raises:
            ValueError: another run is under way, rows left where they may not, or stayed after the last stage.
        """
        rows = self._check_end(run, left)
        leaving = set(left)
        last = self._is_last(run.stage)
        if last and len(leaving) < len(rows):
            raise ValueError(f"run {run.number}: all rows leave after the last stage, but only {len(leaving)} did")
        del now
        self._run = None
        done: list[Done] = []
        stayed: list[Row] = []
        onward = run.stage + 1
        for place, row in enumerate(rows):
            ticket = row.ticket
            if place not in leaving:
                stayed.append(row)
                if ticket.open:
                    ticket.waiting[onward] += 1
            elif ticket.open:
                ticket.unanswered -= 1
                if not ticket.unanswered:
                    done.append(self._end(ticket, ANSWERED))
        if stayed:
            self._queues[onward].extend(stayed)
        return done

    def failed(self, run: Run, error: str, now: float) -> list[Done]:
        """Records a run that failed: the requests with rows in it fail, all others go on.

        Raises:
            ValueError: another run is under way.
        """
        rows = self._check_end(run, ())
        del now
        self._run = None
        return [self._end(row.ticket, FAILED, error) for row in rows if row.ticket.open]

    def drain(self, now: float) -> None:
        """Admits no more; what was admitted goes on."""
        del now
        self.draining = True

    def abandon(self, error: str, now: float) -> list[Done]:
        """Fails whatever is not done: the device is lost, or time is up. A run under way is forgotten."""
        del now
        done = [self._end(ticket, FAILED, error) for ticket in list(self._tickets.values())]
        self._run = None
        self._queues = [StageQueue() for _ in self._queues]
        return done

    def expect(self, staying: Sequence[float], now: float) -> None:
        """Reckons with other shares of rows that go on, one per stage of a line, from now on.

        Raises:
            ValueError: these are no shares, or not of these stages.
        """
        del now
        costs = self._costs.with_staying(staying)
        self._costs = costs if self._may_leave else costs.without_leaving()
        self._switch = PoolingSwitch(self._config.policy, self._costs, self._slo_s)
        self._rule = PoolingRule(self._costs, self._switch.margin_s, self._slo_s)

    # what there is to know

    @property
    def running(self) -> Run | None:
        """The run under way."""
        return self._run

    @property
    def pooling(self) -> bool:
        """Whether stages are shared among batches now."""
        return self._switch.pooling

    @property
    def open_tickets(self) -> int:
        """How many requests are admitted and not done."""
        return len(self._tickets)

    @property
    def waiting_rows(self) -> int:
        """How many rows wait, for whatever stage."""
        return sum([queue.live for queue in self._queues])

    def predicted_wait_s(self, now: float) -> float:
        """Returns how long what waits now, and the run under way, will keep the device busy."""
        work = self._costs.work_s if self._switch.pooling else self._costs.chain_work_s
        wait_s = 0.0
        for queue, seconds in zip(self._queues, work, strict=False):
            wait_s += queue.live * seconds
        if self._run is not None:
            stage = self._run.stage
            wait_s += max(0.0, self._run_ends - now)
            wait_s += len(self._run_rows) * self._costs.staying[stage] * work[stage + 1]
        return wait_s

    def snapshot(self, now: float) -> Snapshot:
        """Returns the state."""
        run, depth = self._run, self._depth
        return Snapshot(
            open_tickets=len(self._tickets),
            waiting_rows=tuple(sum([queue.live for queue in self._queues[stage::depth]]) for stage in range(depth)),
            running_stage=None if run is None else run.stage % depth,
            running_rows=0 if run is None else len(run.rows),
            draining=self.draining,
            pooling=self._switch.pooling,
            margin_s=self._switch.margin_s,
            offered_rows_per_s=self._meter.rows_per_s(now),
            wait_s=self.predicted_wait_s(now),
            gain=self._costs.gain,
            runs=self._runs,
            admitted=self._arrivals,
            done=dict(self._done),
            rejected=dict(self._rejected),
        )

    # steps

    def _level(self, priority: int) -> float:
        """Returns by how much a priority moves the time at which a row is due."""
        levels = self._config.priorities
        if not 0 <= priority <= levels:
            raise ValueError(f"priority {priority}: expected 1 (highest) to {levels}, or 0 for the middle one")
        middle = (levels + 1) // 2
        return ((priority or middle) - middle) * self._ageing_s

    def _is_last(self, stage: int) -> bool:
        return (stage + 1) % self._depth == 0

    def _refuse(self, rows: int, deadline: float, least_s: float, now: float) -> str | None:
        if self.draining:
            return DRAINING
        if rows > self._limit:
            return TOO_MANY_ROWS
        if deadline < now + least_s:
            return TOO_LATE
        waiting: float = self.waiting_rows
        if waiting + rows > self._limit:
            return QUEUE_FULL
        if self._lines > 1:
            waiting = weigh_waiting(self._queues, self._costs)
        full = self._adapts and waiting >= self._switch.room(self._meter.rows_per_s(now))
        return QUEUE_FULL if full else None

    def _admit(self, ticket: Ticket, due: float, lines: Sequence[int]) -> None:
        self._arrivals += 1
        self._tickets[ticket.number] = ticket
        for index, line in enumerate(lines or [0] * ticket.unanswered):
            entry = line * self._depth
            ticket.waiting[entry] += 1
            self._queues[entry].extend([Row(due, self._arrivals, index, ticket)])
        if ticket.deadline < math.inf:
            heapq.heappush(self._deadlines, (ticket.deadline, self._arrivals, ticket))
            if len(self._deadlines) > 2 * len(self._tickets) + 64:  # most are of requests that are done
                self._deadlines = [entry for entry in self._deadlines if entry[2].open]
                heapq.heapify(self._deadlines)

    def _next_deadline(self) -> float | None:
        while self._deadlines and not self._deadlines[0][2].open:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _next_run_s(self, stage: int) -> float:
        """Returns how long a run of a stage over what waits for it takes."""
        return self._costs.run_s[stage][min(max(1, self._queues[stage].live), self._costs.largest)]

    def _is_late(self, ticket: Ticket, now: float) -> bool:
        waiting = enumerate(ticket.waiting)
        return any(rows > 0 and now + self._next_run_s(stage) > ticket.deadline for stage, rows in waiting)

    def _start(self, stage: int, now: float) -> Run:
        enters = stage % self._depth == 0
        if enters and self._lines > 1:
            (rows, stage), places = take_entering(self._queues, stage, self._costs), None
        else:
            rows, places = self._queues[stage].take(self._costs.largest)
            for row in rows:
                row.ticket.waiting[stage] -= 1
        arrangements = [] if places is None or enters else [Arrangement(stage, places)]
        offset = 0
        if not self._is_last(stage):
            onward = self._queues[stage + 1]
            if (kept := onward.close_gaps()) is not None:
                arrangements.append(Arrangement(stage + 1, kept))
            offset = onward.places
        named = [(ticket.number, position) for _, _, position, ticket in rows]
        self._runs += 1
        expected_s = self._costs.run_s[stage][len(rows)]
        run = Run(self._runs, stage, named, self._may_leave, arrangements, offset, expected_s)
        self._run, self._run_rows, self._run_ends = run, rows, now + expected_s
        return run

    def _check_end(self, run: Run, left: Collection[int]) -> list[Row]:
        if run is not self._run:
            raise ValueError(f"run {run.number} is not under way")
        rows = self._run_rows
        if left and (min(left) < 0 or max(left) >= len(rows)):
            raise ValueError(f"run {run.number} over {len(rows)} rows: there are no such places in {sorted(left)}")
        if left and not run.may_leave and not self._is_last(run.stage):
            raise ValueError(f"run {run.number}: no row may leave after stage {run.stage}")
        return rows

    def _end(self, ticket: Ticket, outcome: str, error: str | None = None) -> Done:
        """Ends a request: the room of its waiting rows is free from now on."""
        ticket.open = False
        del self._tickets[ticket.number]
        if outcome != ANSWERED:  # then none waits
            for queue, count in zip(self._queues, ticket.waiting, strict=True):
                if count:
                    queue.drop(count)
        self._done[outcome] += 1
        return Done(ticket.number, outcome, error)

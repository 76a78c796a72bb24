"""``Generation``: one open bundle of a host, warmed up, with its thread, and the requests that it was given.

A host that reloads has two for a while: the new one takes requests in, the old one finishes its own. All but ``open``
runs in the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from artifacts import BundleSpec, DeadlineError, EngineError, InputError, PameError, RefusedError
from engines import Buffer, Device, EngineSet, row_lengths
from runtime.checks import check_stages, check_task
from runtime.hosting.arenas import StageArenas
from runtime.hosting.options import HostOptions, expected_staying, line_covers, read_costs
from runtime.hosting.requests import LeftRows, Request
from runtime.hosting.sights import Sight, Sights
from runtime.hosting.worker import EngineWorker, Report
from runtime.monitor.options import ALARM
from runtime.monitor.response import DriftResponse, ExitRule
from runtime.monitor.seen import judge_rows
from runtime.monitor.tightening import find_exits
from runtime.monitor.watch import StreamWatch
from runtime.scheduling.decisions import (
    ANSWERED,
    CANCELLED,
    DRAINING,
    EXPIRED,
    FAILED,
    FULL,
    QUEUE_FULL,
    TOO_LATE,
    TOO_MANY_ROWS,
    Done,
    Rejected,
)
from runtime.scheduling.machine import Scheduler
from runtime.shadow import ShadowDraw, read_inputs

_EARLY_S = 0.001
_SLOW = 3  # times the expected time: engines vary by less, unless the machine does something else
_tickets = itertools.count()  # of the process: a ticket says which generation it belongs to by being in it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BundleParts:
    """What a host serves: a bundle, one engine set per stage, and their device. The host closes them.

    ``tokenizer`` is the content of the bundle's tokenizer.json, if its network takes texts.
    """

    spec: BundleSpec
    engine_sets: Sequence[EngineSet]
    device: Device
    tokenizer: bytes | None = None

    def close(self) -> None:
        """Closes the engines, then the device; may be called twice."""
        with ExitStack() as stack:
            stack.callback(self.device.close)
            for engines in self.engine_sets:
                stack.callback(engines.close)


@dataclass(frozen=True, slots=True)
class StageCounts:
    """What a stage has run; plain data.

    Attributes:
        runs: that succeeded.
        rows: in them.
        engine_s: seconds inside its engines.
        faults: runs that failed.
        slow_runs: runs that took more than three times what they were expected to take.
        lost_s: seconds that these took beyond it.
    """

    runs: int = 0
    rows: int = 0
    engine_s: float = 0.0
    faults: int = 0
    slow_runs: int = 0
    lost_s: float = 0.0


class Generation:
    """One open bundle.

    Attributes:
        parts: what it serves.
        faults: how many runs failed since one succeeded.
        stuck: why the device is given up; ``None`` while it is not.
        watch: over its rows; ``None`` where statistics are switched off.
        shadowed: how many rows went to the end once more to be seen at every exit.
        missed: how many were drawn for that, and the queue was full.
        max_request_rows: the most rows that a request may have.
    """

    def __init__(
        self, parts: BundleParts, options: HostOptions, loop: asyncio.AbstractEventLoop,
        rest: Callable[[float], None] = lambda _: None,
    ) -> None:  # fmt: skip
        """Checks, allocates and warms up, with rests; takes long and belongs into another thread than the loop's.

        Raises:
            SchemaError, EngineError: as ``Runtime``; the parts are not closed then.
        """
        spec = parts.spec
        check_stages(spec, parts.engine_sets)
        self.parts = parts
        self.faults = 0
        self.stuck: str | None = None
        self._options = options
        costs = read_costs(spec, line_covers(spec, parts.engine_sets))
        scheduler = Scheduler(costs, options.scheduling())
        arenas = [
            StageArenas(spec, parts.engine_sets, parts.device, capacity=scheduler.capacity, length=length)
            for length in spec.lengths or (0,)
        ]
        for of_length in arenas:
            of_length.warm_up(spec.max_batch_size, rest)
        self.max_request_rows = scheduler.capacity - costs.largest
        self._counts = [StageCounts() for _ in spec.stages]
        self._rule = DriftResponse(spec.plan, ALARM, shadow_fraction=options.shadow_fraction).rule
        self.watch: StreamWatch | None = None
        if options.stats:
            drift = None if options.policy == FULL else options.drift  # no row leaves: nothing to compare
            task = check_task(spec, options.task)
            self.watch = StreamWatch(spec, replace(options, drift=drift), task=task, on_rule=self._follow)
        self._draw = ShadowDraw(seed=options.shadow_seed)
        self._sights = Sights(len(spec.stages))
        self.shadowed = self.missed = 0
        self._requests: dict[int, Request] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._worker = EngineWorker(scheduler, arenas, self._rule.thresholds, make_poster(loop, self._deliver))

    def start(self) -> None:
        """Starts the engine thread."""
        self._worker.start()

    def enter(
        self, arrays: Sequence[np.ndarray | Buffer], *, timeout_s: float | None, priority: int, streams: bool
    ) -> Request:
        """Takes a request in; ``arrays`` have one of the lengths that rows may have.

        Raises:
            InputError: it has more rows than may ever wait, or there is no such priority.
            RefusedError: the host is full, drains or has lost its device.
        """
        if self.stuck is not None:
            raise RefusedError(f"this host has lost its device: {self.stuck}. Restart the process", reason="stuck")
        request = Request(next(_tickets), arrays, self._rule, streams=streams)
        request.lines = self._find_lines(arrays)
        drawn = self._draw.draw(request.count, self._rule.seen_share)
        if not self._rule.lets_leave:
            request.watched = drawn
        deadline = None if timeout_s is None else request.started + timeout_s
        try:
            found = self._worker.submit(request, deadline, priority)
        except ValueError as error:
            raise InputError(str(error)) from error
        if isinstance(found, Rejected):
            raise _refusal(found, request)
        self._requests[request.ticket] = request
        self._empty.clear()
        if timeout_s is not None:
            request.timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, request)
        if self._rule.lets_leave:
            for row in drawn:
                self._shadow(request, row)
        return request

    def _find_lines(self, arrays: Sequence[np.ndarray | Buffer]) -> Sequence[int]:
        """Returns the place of each row's length among those of the network; none where rows have one shape."""
        spec = self.parts.spec
        if spec.sequence is None:
            return ()
        mask = next(
            array for array, tensor in zip(arrays, spec.inputs, strict=True) if tensor.name == spec.sequence.mask
        )
        found: list[int] = np.searchsorted(spec.lengths, row_lengths(np.asarray(mask))).tolist()
        return found

    def _shadow(self, request: Request, row: int) -> None:
        """Lets a row of a request go to the end once more, with the least priority and for nobody but the watch."""
        shadow = Request(
            next(_tickets), [array[row : row + 1] for array in request.arrays], self._rule, streams=False, held=True
        )
        shadow.lines = request.lines[row : row + 1]
        if isinstance(self._worker.submit(shadow, None, self._options.priorities), Rejected):
            self.missed += 1
            return
        self.shadowed += 1
        request.shadows.append(shadow)
        self._requests[shadow.ticket] = shadow
        self._empty.clear()

    def cancel(self, request: Request) -> None:
        """Ends a request whose client has gone."""
        self._end_all(self._worker.cancel(request.ticket))

    async def finish(self, timeout_s: float) -> int:
        """Admits no more, waits for what was admitted, and fails the rest; returns how many requests that were."""
        self._worker.drain()
        try:
            await asyncio.wait_for(self._empty.wait(), timeout_s)
        except TimeoutError:
            left = self._worker.abandon(f"the host was closed, and its {timeout_s:g} s for requests under way are over")
            self._end_all(left)
            return len(left)
        return 0

    async def close(self) -> None:
        """Ends the thread and frees the engines; those of a thread that hangs stay as they are."""
        self._worker.stop()
        grace_s = self._options.hang_grace_s
        if await asyncio.to_thread(self._worker.join, 0.0 if self.stuck is not None else grace_s + 1):
            await asyncio.to_thread(self.parts.close)
        if self.watch is not None:
            await asyncio.to_thread(self.watch.close)

    def check_hanging(self) -> None:
        """Gives the device up if a run hangs, or the thread has ended: whatever is not done fails."""
        if self.stuck is not None:
            return
        if self._worker.late_by_s(self._options.hang_factor) > self._options.hang_grace_s:
            self.stuck = "an engine run does not come to its end"
        elif self._worker.join(0.0):
            self.stuck = "the engine thread has ended; the log says why"
        if self.stuck is not None:
            self._end_all(self._worker.abandon(self.stuck))

    @property
    def worker(self) -> EngineWorker:
        """The thread."""
        return self._worker

    @property
    def stage_counts(self) -> tuple[StageCounts, ...]:
        """What the stages have run, as far as the event loop has been told."""
        return tuple(self._counts)

    def _expire(self, request: Request) -> None:
        if request.ticket not in self._requests:
            return
        self._end_all(self._worker.expire())
        if request.ticket in self._requests:  # the timer was a little early
            request.timer = asyncio.get_running_loop().call_later(_EARLY_S, self._expire, request)

    def _deliver(self, report: Report) -> None:
        """Hands the answers of a run to their requests; one that is gone already is passed over."""
        if report.fault is not None:
            self.faults += 1
        elif report.ran:
            self.faults = 0
        self._count(report)
        for ticket in {ticket for ticket, _ in report.ran}:
            if (request := self._requests.get(ticket)) is not None:
                request.engine_s += report.engine_s
        if report.left is not None:
            self._hand_out(report.left)
        if report.sight is not None:
            self._see(report.sight)
        self._end_all(report.done)

    def _count(self, report: Report) -> None:
        if not report.ran:
            return
        now = self._counts[report.stage]
        if report.fault is not None:
            self._counts[report.stage] = replace(now, faults=now.faults + 1)
            return
        slow = report.engine_s > _SLOW * report.expected_s
        lost_s = report.engine_s - report.expected_s if slow else 0.0
        self._counts[report.stage] = StageCounts(
            now.runs + 1, now.rows + len(report.ran), now.engine_s + report.engine_s, now.faults,
            now.slow_runs + slow, now.lost_s + lost_s,
        )  # fmt: skip

    def _hand_out(self, left: LeftRows) -> None:
        places: dict[int, list[int]] = {}
        for place, (ticket, _) in enumerate(left.rows):
            places.setdefault(ticket, []).append(place)
        counted: dict[ExitRule, list[int]] = {}
        for ticket, own in places.items():
            request = self._requests.get(ticket)
            if request is not None and not request.held:
                request.take(left, own)
                counted.setdefault(request.rule, []).extend(own)
        if self.watch is not None:
            for rule, answered in counted.items():
                exits = [left.exit_index] * len(answered)
                self.watch.add(exits, left.confidence[answered].tobytes(), rule=rule)

    def _see(self, sight: Sight) -> None:
        """Lets the watch know of the rows that have come to the end, if they were seen at every stage."""
        seen = self._sights.take(sight, self._requests)
        if seen is None or self.watch is None:
            return
        places: dict[ExitRule, list[int]] = {}
        for place, (ticket, _) in enumerate(seen.rows):
            places.setdefault(self._requests[ticket].rule, []).append(place)
        for rule, own in places.items():
            answered = [
                (confidence[own], tuple(array[own] for array in outputs)) for confidence, outputs in seen.answered
            ]
            exits = find_exits(np.stack([confidence for confidence, _ in answered]), rule.thresholds)
            inputs = self._inputs_of([seen.rows[place] for place in own]) if self.watch.logs_inputs else ()
            rows = judge_rows(self.watch.task, exits, answered, inputs)
            if rule.lets_leave:  # those that left early are counted where they left; these are their shadows
                self.watch.add([], b"", rows.early, rule=rule)
            self.watch.see(rows, rule=rule)

    def _inputs_of(self, rows: Sequence[tuple[int, int]]) -> tuple[np.ndarray, ...]:
        device, inputs = self.parts.device, self.parts.spec.inputs
        found = [read_inputs(self._requests[ticket].arrays, [row], inputs, device) for ticket, row in rows]
        return tuple(np.concatenate(arrays) for arrays in zip(*found, strict=True))

    def _follow(self, rule: ExitRule) -> None:
        """Lets rows leave by another rule."""
        plan = None if self.watch is None else self.watch.compared
        self._worker.let_leave(rule.thresholds, expected_staying(plan, len(rule.thresholds)))
        self._rule = rule

    def _end_all(self, done: Sequence[Done]) -> None:
        ending = list(done)
        for ended in ending:
            request = self._requests.pop(ended.ticket, None)
            if request is None:
                continue
            if request.watched:
                self._sights.drop(request.ticket, list(request.watched))
            if ended.outcome != ANSWERED:  # what is not counted is not seen either
                for shadow in request.shadows:
                    ending += self._worker.cancel(shadow.ticket)
            request.shadows = []
            request.end(_error_of(ended, request))
        if not self._requests:
            self._empty.set()


def make_poster(loop: asyncio.AbstractEventLoop, deliver: Callable[[Report], None]) -> Callable[[Report], None]:
    """Returns what hands reports from the engine thread to the event loop, which is woken once for all that wait."""
    reports: deque[Report] = deque()

    def deliver_waiting() -> None:
        try:
            for _ in range(len(reports)):
                deliver(reports.popleft())
        finally:
            if reports:
                loop.call_soon(deliver_waiting)

    def post(report: Report) -> None:
        reports.append(report)
        if len(reports) == 1 or loop.is_closed():  # with more than one, the loop has been called for the first
            loop.call_soon_threadsafe(deliver_waiting)

    return post


def _error_of(done: Done, request: Request) -> PameError | None:
    if done.outcome == EXPIRED:
        return DeadlineError(
            f"the deadline of a request of {request.count} rows passed before all of them were answered; give it a "
            "longer timeout_ms, or send less"
        )
    if done.outcome == FAILED:
        return EngineError(f"a request of {request.count} rows failed with its run: {done.error}")
    if done.outcome == CANCELLED:
        return RefusedError("this request was cancelled", reason="cancelled")
    return None


def _refusal(found: Rejected, request: Request) -> PameError:
    wait = f"{found.retry_after_s:.3g} s"
    if found.reason == TOO_MANY_ROWS:
        return InputError(
            f"a request of {request.count} rows is more than may wait at once; send fewer, or raise max_waiting_rows"
        )
    if found.reason == QUEUE_FULL:
        message = f"the queue is full: what waits takes about {wait}. Try again then"
        return RefusedError(message, reason=QUEUE_FULL, retry_after_s=found.retry_after_s)
    if found.reason == TOO_LATE:
        return DeadlineError(f"the deadline cannot be met: what waits takes about {wait}. Give it a longer timeout_ms")
    return RefusedError("this host drains and takes no more requests; send it to another", reason=DRAINING)

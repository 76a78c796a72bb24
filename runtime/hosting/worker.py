"""``EngineWorker``: one thread per device, which runs what the scheduler decides and reports to the event loop.

The scheduler is the only state that thread and loop share; both touch it under one lock, for some microseconds. The
thread goes from one run to the next without waiting for the loop: it reports a run's answers with a single call of
``report`` and asks for the next run. Where there is nothing to run, it sleeps until a request comes.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

from runtime.hosting.arenas import Piece, StageArenas
from runtime.hosting.requests import LeftRows, Request
from runtime.hosting.sights import Sight
from runtime.scheduling.decisions import Admitted, Done, Rejected, Run, Snapshot
from runtime.scheduling.machine import Scheduler

_log = logging.getLogger("pame.runtime")


@dataclass(slots=True)
class Report:
    """Something that the event loop has to know.

    Attributes:
        done: requests that have come to their end.
        left: the rows that left after a run.
        ran: ticket and row of every row of the run.
        stage: that ran, whatever the length of its rows.
        engine_s: seconds inside engines.
        expected_s: how long they were expected to take.
        fault: why the run failed.
        sight: what the stage answered to the rows of the run that are watched.
    """

    done: list[Done]
    left: LeftRows | None = None
    ran: Sequence[tuple[int, int]] = ()
    engine_s: float = 0.0
    expected_s: float = 0.0
    fault: str | None = None
    stage: int = 0
    sight: Sight | None = None


@dataclass(slots=True)
class _Chosen:
    """A run that is about to begin.

    Attributes:
        run: the decision.
        pieces: the rows of requests that enter with it.
        held: places of rows that do not leave, whatever their confidence.
        watched: places of rows whose answers are to be seen, those among them.
    """

    run: Run
    pieces: list[Piece]
    held: list[int]
    watched: list[int]


@dataclass(slots=True)
class _Outcome:
    """What became of a run: either the places that leave, with their answers, or a fault."""

    places: list[int] = field(default_factory=list)
    left: LeftRows | None = None
    engine_s: float = 0.0
    fault: str | None = None
    sight: Sight | None = None
    arenas_lost: bool = False


class EngineWorker:
    """The thread of one device, with the scheduler and the arenas that it serves.

    Args:
        scheduler: has seen no event yet.
        arenas: of at least the scheduler's capacity; one for each line of stages.
        thresholds: one per exit.
        report: takes reports; called from the thread. Raises ``RuntimeError`` when nobody listens any more.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        arenas: Sequence[StageArenas],
        thresholds: Sequence[float],
        report: Callable[[Report], None],
    ) -> None:
        self._scheduler = scheduler
        self._thresholds: Sequence[float] = thresholds
        self._arenas = arenas
        self._depth = len(thresholds) + 1  # stages of a line
        self._report = report
        self._changed = threading.Condition(threading.Lock())
        self._requests: dict[int, Request] = {}
        self._watched: set[int] = set()  # tickets of requests with rows that are seen at every stage
        self._stopping = False
        self._lost = False
        self._run_started: float | None = None
        self._thread = threading.Thread(target=self._serve, name="pame-engine", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def submit(self, request: Request, deadline: float | None, priority: int) -> Admitted | Rejected:
        """Passes a request to the scheduler; errors as ``Scheduler.submit``."""
        with self._changed:
            found = self._scheduler.submit(
                request.ticket, request.count, deadline, priority, monotonic(), request.lines
            )
            if isinstance(found, Admitted):
                self._requests[request.ticket] = request
                if request.watched:
                    self._watched.add(request.ticket)
                self._changed.notify()
        return found

    def let_leave(self, thresholds: Sequence[float], staying: Sequence[float]) -> None:
        """Lets rows leave at other thresholds from the next run on.

        Args:
            thresholds: one per exit, values of float32; infinite: none leaves there.
            staying: the share of the rows that is expected to go on after each stage.
        """
        with self._changed:
            self._thresholds = thresholds
            self._scheduler.expect(staying, monotonic())

    def cancel(self, ticket: int) -> list[Done]:
        """Ends a request whose client has gone."""
        with self._changed:
            return self._forget(self._scheduler.cancel(ticket, monotonic()))

    def expire(self) -> list[Done]:
        """Ends the requests whose deadline has passed."""
        with self._changed:
            return self._forget(self._scheduler.expire(monotonic()))

    def drain(self) -> None:
        """Admits no more."""
        with self._changed:
            self._scheduler.drain(monotonic())

    def abandon(self, error: str) -> list[Done]:
        """Fails everything that is not done; the run under way no longer counts, whenever it ends."""
        with self._changed:
            self._lost = True
            return self._forget(self._scheduler.abandon(error, monotonic()))

    def snapshot(self) -> Snapshot:
        """Returns the scheduler's state."""
        with self._changed:
            return self._scheduler.snapshot(monotonic())

    @property
    def open_tickets(self) -> int:
        """How many requests are not done."""
        with self._changed:
            return self._scheduler.open_tickets

    def late_by_s(self, factor: float) -> float:
        """Returns for how long the run under way has taken more than ``factor`` times what it should; 0 without one."""
        with self._changed:
            run, started = self._scheduler.running, self._run_started
            if run is None or started is None:
                return 0.0
            return max(0.0, monotonic() - started - factor * run.expected_s)

    def stop(self) -> None:
        """Lets the thread end after the run under way; ``join`` waits for it."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self, timeout_s: float | None = None) -> bool:
        """Waits for the thread; returns whether it has ended."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    # the thread

    def _serve(self) -> None:
        try:
            while (chosen := self._choose()) is not None:
                self._record(chosen.run, self._execute(chosen))
        except RuntimeError as error:  # the event loop is closed: nobody waits for answers any more
            if not self._stopping:
                _log.warning("the engine thread ends, since its event loop has: %s", error)

    def _choose(self) -> _Chosen | None:
        """Waits for something to run; ``None`` when the thread is to end."""
        while True:
            late: list[Done] = []
            with self._changed:
                while not late:
                    if self._stopping or self._lost:
                        return None
                    now = monotonic()
                    late = self._forget(self._scheduler.expire(now))
                    step = self._scheduler.next(now)
                    if isinstance(step, Run):
                        self._run_started = now
                        enters = step.stage % self._depth == 0
                        pieces = _find_pieces(step, self._requests) if enters else []
                        chosen = _Chosen(step, pieces, *self._find_watched(step))
                        break
                    if not late:
                        self._changed.wait(None if step.wake_at is None else max(0.0, step.wake_at - now))
            if late:
                self._report(Report(late))
            if isinstance(step, Run):
                return chosen

    def _find_watched(self, run: Run) -> tuple[list[int], list[int]]:
        """Returns the places of held rows and of watched ones."""
        held: list[int] = []
        watched: list[int] = []
        if self._watched:
            for place, (ticket, row) in enumerate(run.rows):
                if ticket in self._watched and row in (request := self._requests[ticket]).watched:
                    watched.append(place)
                    if request.held:
                        held.append(place)
        return held, watched

    def _execute(self, chosen: _Chosen) -> _Outcome:
        """Runs a stage; a fault is an outcome, whatever raised it: no request may be left without an answer."""
        run, pieces = chosen.run, chosen.pieces
        line, stage = divmod(run.stage, self._depth)
        arenas, outcome = self._arenas[line], _Outcome(arenas_lost=True)
        try:
            for arrangement in run.arrangements:
                arenas.arrange(arrangement.stage % self._depth, arrangement.places)
            outcome.arenas_lost = False
            if pieces:
                arenas.enter(pieces)
            count = len(run.rows)
            outcome.engine_s = arenas.execute(stage, count)
            threshold = self._threshold(stage, may_leave=run.may_leave)
            outcome.places, stayed = arenas.split(stage, count, threshold)
            if chosen.held and threshold is not None:
                outcome.places = [place for place in outcome.places if place not in chosen.held]
                stayed = sorted({*stayed, *chosen.held})
            arenas.advance(stage, stayed, run.offset)
            if outcome.places:
                confidence, outputs = arenas.answers(stage, outcome.places)
                rows = [run.rows[place] for place in outcome.places]
                outcome.left = LeftRows(rows, stage, confidence, outputs)
            if chosen.watched:
                seen = [run.rows[place] for place in chosen.watched]
                outcome.sight = Sight(seen, stage, *arenas.answers(stage, chosen.watched))
        except Exception as error:  # noqa: BLE001 - see above; the request's error says what it was
            _log.warning("a run over %d rows of stage %d failed", len(run.rows), stage, exc_info=True)
            outcome.fault = f"{type(error).__name__}: {error}"
        return outcome

    def _threshold(self, stage: int, *, may_leave: bool) -> float | None:
        """Returns the confidence from which on rows leave; ``None`` after the last stage."""
        if stage == len(self._thresholds):
            return None
        return self._thresholds[stage] if may_leave else math.inf

    def _record(self, run: Run, outcome: _Outcome) -> None:
        with self._changed:
            self._run_started = None
            if self._lost:
                return
            now = monotonic()
            if outcome.fault is None:
                done = self._scheduler.finished(run, outcome.places, now)
            elif outcome.arenas_lost:
                done = self._scheduler.abandon(outcome.fault, now)
            else:
                done = self._scheduler.failed(run, outcome.fault, now)
            self._forget(done)
        stage = run.stage % self._depth
        self._report(
            Report(done, outcome.left, run.rows, outcome.engine_s, run.expected_s, outcome.fault, stage, outcome.sight)
        )

    def _forget(self, done: list[Done]) -> list[Done]:
        for ended in done:
            del self._requests[ended.ticket]
            self._watched.discard(ended.ticket)
        return done


def _find_pieces(run: Run, requests: Mapping[int, Request]) -> list[Piece]:
    """Returns the rows of a run of a first stage as pieces of their requests."""
    pieces: list[Piece] = []
    last = (-1, -1)
    for ticket, row in run.rows:
        if last == (ticket, row - 1):
            pieces[-1].stop += 1
        else:
            pieces.append(Piece(requests[ticket].arrays, row, row + 1))
        last = (ticket, row)
    return pieces

"""Replay: the events of a scheduler and its decisions as lines of JSON, and the same decisions made again from them.

A log begins with the scheduler's first event. Numbers survive JSON exactly, so a replay is equal bit for bit.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from runtime.scheduling.decisions import Admitted, Done, Idle, Rejected, Run
from runtime.scheduling.machine import Scheduler

Plain = dict[str, Any]


class RecordedScheduler:
    """A scheduler whose events are logged; it takes the events of ``Scheduler``.

    Args:
        scheduler: one that has seen no event yet.
        log: takes every line, without a line end.
    """

    def __init__(self, scheduler: Scheduler, log: Callable[[str], None]) -> None:
        self.scheduler = scheduler
        self._log = log

    def submit(
        self, ticket: int, rows: int, deadline: float | None, priority: int, now: float, lines: Sequence[int] = ()
    ) -> Admitted | Rejected:
        found = self.scheduler.submit(ticket, rows, deadline, priority, now, lines)
        self._write("submit", (ticket, rows, deadline, priority, now, [*lines]), found)
        return found

    def cancel(self, ticket: int, now: float) -> list[Done]:
        found = self.scheduler.cancel(ticket, now)
        self._write("cancel", (ticket, now), found)
        return found

    def expire(self, now: float) -> list[Done]:
        found = self.scheduler.expire(now)
        self._write("expire", (now,), found)
        return found

    def next(self, now: float) -> Run | Idle:
        found = self.scheduler.next(now)
        self._write("next", (now,), found)
        return found

    def finished(self, run: Run, left: Collection[int], now: float) -> list[Done]:
        found = self.scheduler.finished(run, left, now)
        self._write("finished", (sorted(left), now), found)
        return found

    def failed(self, run: Run, error: str, now: float) -> list[Done]:
        found = self.scheduler.failed(run, error, now)
        self._write("failed", (error, now), found)
        return found

    def expect(self, staying: Sequence[float], now: float) -> None:
        self.scheduler.expect(staying, now)
        self._write("expect", (list(staying), now), None)

    def drain(self, now: float) -> None:
        self.scheduler.drain(now)
        self._write("drain", (now,), None)

    def abandon(self, error: str, now: float) -> list[Done]:
        found = self.scheduler.abandon(error, now)
        self._write("abandon", (error, now), found)
        return found

    def _write(self, event: str, arguments: tuple[Any, ...], found: object) -> None:
        self._log(json.dumps({"event": event, "arguments": arguments, "decision": plain_decision(found)}))


def replay(scheduler: Scheduler, lines: Iterable[str]) -> list[tuple[Plain, Any]]:
    """Sends the events of a log to another scheduler.

    Args:
        scheduler: with the costs and the configuration of the one that was logged; it has seen no event yet.
        lines: of the log, from its beginning.

    Returns:
        Every line, read, and the decision that this scheduler makes, as plain values: equal to ``line["decision"]``.

    Raises:
        ValueError: a line is no event, or cannot follow those before it.
    """
    found = []
    for line in lines:
        event: Plain = json.loads(line)
        name, arguments = event["event"], event["arguments"]
        if name not in _EVENTS:
            raise ValueError(f"'{name}' is no event of a scheduler: expected {', '.join(_EVENTS)}")
        if name in ("finished", "failed"):
            if scheduler.running is None:
                raise ValueError(f"event '{name}' without a run; replay a log from its beginning")
            arguments = [scheduler.running, *arguments]
        found.append((event, json.loads(json.dumps(plain_decision(getattr(scheduler, name)(*arguments))))))
    return found


def plain_decision(found: object) -> Any:
    """Returns a decision as plain values, for JSON."""
    if isinstance(found, list):
        return [plain_decision(done) for done in found]
    if dataclasses.is_dataclass(found) and not isinstance(found, type):
        return {"is": type(found).__name__, **dataclasses.asdict(found)}
    return found


_EVENTS = ("submit", "cancel", "expire", "next", "finished", "failed", "expect", "drain", "abandon")

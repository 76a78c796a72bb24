"""``BuildWatch`` and ``PhaseTree``: the progress of a build that takes minutes, and its cancellation. Pure.

A builder reports nested *phases*, each with a given number of steps; a phase that starts inside another runs within
the parent's current step. So the fraction done is

    done(phase) = (steps completed + done(running child, at most one step)) / steps

from the outermost phase inwards.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

Report = Callable[[str, float], None]


def _ignore(phase: str, fraction: float) -> None: ...


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildWatch:
    """The two callbacks of a running build; both are called from the builder's threads and must be quick.

    Attributes:
        report: called with the innermost phase and the fraction done, 0 to 1, which never decreases.
        cancelled: asked repeatedly; True ends the build, and nothing is published.
    """

    report: Report = _ignore
    cancelled: Callable[[], bool] = _never

    def part(self, index: int, count: int) -> BuildWatch:
        """Returns the watch of part ``index`` of a build that consists of ``count`` builds."""
        return BuildWatch(
            report=lambda phase, fraction: self.report(phase, (index + fraction) / count), cancelled=self.cancelled
        )


UNWATCHED = BuildWatch()


@dataclass(slots=True, kw_only=True)
class _Phase:
    name: str
    parent: str | None
    steps: int
    completed: int = 0


class PhaseTree:
    """The phases of one build; its methods may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[str, _Phase] = {}
        self._best = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> float:
        """Starts a phase; returns the fraction done."""
        with self._lock:
            self._running[name] = _Phase(name=name, parent=parent, steps=max(steps, 1))
            return self._fraction()

    def complete(self, name: str, step: int) -> float:
        """Completes step ``step`` of a phase, counted from 0; returns the fraction done."""
        with self._lock:
            phase = self._running.get(name)
            if phase is not None:
                phase.completed = min(max(phase.completed, step + 1), phase.steps)
            return self._fraction()

    def finish(self, name: str) -> float:
        """Ends a phase, however many of its steps were completed; returns the fraction done."""
        with self._lock:
            ended = self._running.get(name)
            if ended is not None and ended.parent not in self._running:
                self._best = 1.0
            self._running.pop(name, None)
            return self._fraction()

    def _fraction(self) -> float:
        roots = [phase for phase in self._running.values() if phase.parent not in self._running]
        self._best = max(self._best, max((self._done(phase, depth=0) for phase in roots), default=0.0))
        return self._best

    def _done(self, phase: _Phase, depth: int) -> float:
        if depth > len(self._running):
            return 0.0
        children = [child for child in self._running.values() if child.parent == phase.name]
        inside = max((self._done(child, depth + 1) for child in children), default=0.0)
        return min((phase.completed + min(inside, 1.0)) / phase.steps, 1.0)

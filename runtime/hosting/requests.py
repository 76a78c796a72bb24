"""Requests: a call of a client on its way, and its answers as they come. Used by the event loop alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

import numpy as np

from artifacts import PameError
from engines import Buffer
from runtime.monitor.response import ExitRule
from runtime.results import Result, as_outputs


@dataclass(slots=True)
class LeftRows:
    """Rows that left after one run.

    Attributes:
        rows: ticket and row of the request.
        exit_index: the stage after which they left.
        confidence: (len(rows),) float32.
        outputs: one array (len(rows), ...) per output of the network.
    """

    rows: Sequence[tuple[int, int]]
    exit_index: int
    confidence: np.ndarray
    outputs: tuple[np.ndarray, ...]


class Request:
    """A call under way.

    Attributes:
        ticket: its name at the scheduler.
        arrays: one per input of the network; its own copies.
        engine_s: seconds inside engines of the runs that it had rows in.
        ended: resolves when the request is done, to the error that ended it, or ``None``.
        timer: what ends it at its deadline; ``None`` without one.
        parts: of a stream: rows and answers that have not been fetched yet, ``None`` at the end; otherwise ``None``.
        rule: by which its rows leave.
        held: its rows leave nowhere before the end, and nobody waits for them: it is the shadow of another one's row.
        lines: of each row, the place of its length among those of the network; none where rows have one shape.
        watched: its rows that are seen at every stage.
        shadows: the requests that are shadows of its rows.
    """

    def __init__(
        self, ticket: int, arrays: Sequence[np.ndarray | Buffer], rule: ExitRule, *, streams: bool, held: bool = False
    ) -> None:
        self.ticket = ticket
        self.arrays = arrays
        self.lines: Sequence[int] = ()
        self.rule = rule
        self.held = held
        self.watched: frozenset[int] = frozenset(range(len(arrays[0]))) if held else frozenset()
        self.shadows: list[Request] = []
        self.count = len(arrays[0])
        self.started = monotonic()
        self.engine_s = 0.0
        self.ended: asyncio.Future[PameError | None] = asyncio.get_running_loop().create_future()
        self.parts: asyncio.Queue[tuple[np.ndarray, Result] | None] | None = asyncio.Queue() if streams else None
        self.timer: asyncio.TimerHandle | None = None
        self._outputs: list[np.ndarray] = []
        if self.count > 1 and not streams:
            self._exit_index = np.zeros(self.count, np.int64)
            self._confidence = np.zeros(self.count, np.float32)
            self._latency_ms = np.zeros(self.count, np.float64)

    def take(self, left: LeftRows, places: Sequence[int]) -> None:
        """Keeps answers: those at ``places`` of what left are this request's."""
        if self.count == 1 and self.parts is None:
            self._take_only(left, places[0])
            return
        rows = [left.rows[place][1] for place in places]
        whole = len(places) == len(left.rows)
        outputs = left.outputs if whole else tuple(array[places] for array in left.outputs)
        if self.parts is not None:
            self.parts.put_nowait((np.array(rows), self._part(left, places, outputs)))
            return
        if not self._outputs:
            self._outputs = [np.zeros((self.count, *array.shape[1:]), array.dtype) for array in outputs]
        for kept, array in zip(self._outputs, outputs, strict=True):
            kept[rows] = array
        self._exit_index[rows] = left.exit_index
        self._confidence[rows] = left.confidence if whole else left.confidence[places]
        self._latency_ms[rows] = (monotonic() - self.started) * 1e3

    def _take_only(self, left: LeftRows, place: int) -> None:
        """As ``take``, for a request of one row: without arrays that are filled row by row."""
        own = [left.confidence, *left.outputs]
        if len(left.rows) > 1:  # the arrays are shared with other requests
            own = [array[place : place + 1].copy() for array in own]
        self._confidence, *self._outputs = own
        self._exit_index = np.array([left.exit_index], np.int64)
        self._latency_ms = np.array([(monotonic() - self.started) * 1e3])

    def _part(self, left: LeftRows, places: Sequence[int], outputs: tuple[np.ndarray, ...]) -> Result:
        return Result(
            outputs=as_outputs(outputs),
            exit_index=np.full(len(places), left.exit_index),
            confidence=left.confidence[places],
            latency_ms=np.full(len(places), (monotonic() - self.started) * 1e3),
            engine_ms=self.engine_s * 1e3,
        )

    def end(self, error: PameError | None) -> None:
        """Wakes whoever waits. A client that has gone meanwhile is nothing to do."""
        self.arrays = ()
        if self.timer is not None:
            self.timer.cancel()
        if not self.ended.done():
            self.ended.set_result(error)
        if self.parts is not None:
            self.parts.put_nowait(None)

    def result(self) -> Result:
        """Returns the answers; all rows have left."""
        return Result(
            outputs=as_outputs(tuple(self._outputs)),
            exit_index=self._exit_index,
            confidence=self._confidence,
            latency_ms=self._latency_ms,
            engine_ms=self.engine_s * 1e3,
        )

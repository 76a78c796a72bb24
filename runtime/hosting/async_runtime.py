"""``AsyncRuntime``: an open bundle that answers requests from an event loop: infer, stream, reload, drain, snapshot."""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from time import sleep
from types import TracebackType
from typing import Any, Self

import numpy as np

from artifacts import BundleSpec, InputError, RefusedError, UsageError
from engines import Buffer, Device, DeviceOptions, EngineSet, fit_length
from runtime.hosting.generation import BundleParts, Generation, StageCounts
from runtime.hosting.options import HostOptions
from runtime.hosting.requests import Request
from runtime.inputs import Batch, read_batch
from runtime.loading import open_bundle
from runtime.monitor.stats import RuntimeStats
from runtime.results import Outputs, Result
from runtime.scheduling.decisions import Snapshot

_OPTIONS = HostOptions()
_WATCH_S = 0.25
_RESTS = 3  # times as long as a run: a bundle warms up beside another one with a quarter of a processor
_LONGEST_REST_S = 0.25
_log = logging.getLogger("pame.runtime")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSnapshot:
    """The state of a host; plain data.

    Attributes:
        ready: whether it takes requests and answers them, as far as it knows.
        bundle: the name of the bundle that it serves.
        policy: as it was asked for.
        engine_faults: how many runs failed since one succeeded.
        stuck: why the device is given up; ``None`` while it is not.
        reloads: how many times another bundle has taken over.
        stages: what the stages of this bundle have run, since it took over.
        shadowed: how many rows of the bundle went to the end once more, to be seen at every exit.
        shadows_missed: how many were drawn for that when the queue was full.
        scheduling: of the scheduler, which counts a shadowed row as another request.
    """

    ready: bool
    bundle: str
    policy: str
    engine_faults: int
    stuck: str | None
    reloads: int
    stages: tuple[StageCounts, ...]
    shadowed: int
    shadows_missed: int
    scheduling: Snapshot


class AsyncRuntime:
    """Answers requests of few rows each; rows of several requests share the engines and leave when they are answered.

    Belongs to the event loop that entered it, and is used from there::

        async with AsyncRuntime.load("runs/resnet/bundle", slo_ms=25) as rt:
            result = await rt.infer(rows, timeout_ms=50)

    A request ends in one way: with its answers, or with its error. Cancel the task to cancel the request. Others that
    share runs with it notice nothing.
    """

    def __init__(self, open_parts: Callable[[], BundleParts], options: HostOptions = _OPTIONS) -> None:
        """Takes what opens the bundle; it is called, in another thread, when the host is entered."""
        self._open_parts = open_parts
        self._open_again: Callable[[Path], BundleParts] = _open_folder
        self._options = options
        self._generation: Generation | None = None
        self._closing = False
        self._draining = False
        self._reloads = 0
        self._reloading = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str],
        *,
        policy: str = _OPTIONS.policy,
        slo_ms: float | None = None,
        max_waiting_rows: int | None = None,
        on_drift: str | None = None,
        shadow_fraction: float | None = None,
        shadow_log: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        device: int = 0,
        verify: str | os.PathLike[str] | None = None,
        options: HostOptions = _OPTIONS,
    ) -> Self:
        """Returns a host for a bundle, to be entered with ``async with``; nothing is opened before.

        Args:
            bundle: its folder.
            policy, slo_ms, max_waiting_rows: as those of ``HostOptions``.
            on_drift, shadow_fraction, shadow_log: likewise; ``None``: as ``options`` has them.
            threads, device, verify: as those of ``Runtime.load``; of every bundle that is loaded later, too.
            options: all others.

        Raises:
            UsageError: an option is out of range. Entering raises as ``Runtime.load`` does.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"threads={threads}: expected a number from 1, or None for the plan's own")
        watched: dict[str, Any] = {"on_drift": on_drift, "shadow_fraction": shadow_fraction, "shadow_log": shadow_log}
        given = {name: value for name, value in watched.items() if value is not None}
        if shadow_log is not None:
            given["shadow_log"] = Path(shadow_log)
        chosen = replace(options, policy=policy, slo_ms=slo_ms, max_waiting_rows=max_waiting_rows, **given)

        def open_parts(folder: Path) -> BundleParts:
            return _open_folder(folder, threads=threads, device=device, verify=None if verify is None else Path(verify))

        host = cls(lambda: open_parts(Path(bundle)), chosen)
        host._open_again = open_parts
        return host

    @classmethod
    def over(
        cls, spec: BundleSpec, engine_sets: Sequence[EngineSet], device: Device, options: HostOptions = _OPTIONS
    ) -> Self:
        """Returns a host over engines that are open already; hosts' tests pass ``engines.FakeEngine`` here."""
        parts = BundleParts(spec=spec, engine_sets=engine_sets, device=device)
        return cls(lambda: parts, options)

    async def __aenter__(self) -> Self:
        """Opens the bundle and runs every engine of every stage once; errors as ``Runtime.load``."""
        if self._generation is not None or self._closing:
            raise UsageError("a host is entered once; make another one with AsyncRuntime.load(bundle)")
        self._generation = await self._make(self._open_parts)
        self._watch = asyncio.create_task(self._watch_engines())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def spec(self) -> BundleSpec:
        """The bundle that takes requests now."""
        return self._current().parts.spec

    @property
    def tokenizer(self) -> bytes | None:
        """The content of its tokenizer.json; ``None``: its network takes no texts."""
        return self._current().parts.tokenizer

    @property
    def max_request_rows(self) -> int:
        """The most rows that a request may have: as many as may wait."""
        return self._current().max_request_rows

    @property
    def ready(self) -> bool:
        """Whether it takes requests and answers them, as far as it knows."""
        generation = self._generation
        return (
            generation is not None
            and not self._closing
            and not self._draining
            and generation.stuck is None
            and generation.faults < self._options.max_engine_faults
        )

    async def infer(self, batch: Batch, *, timeout_ms: float | None = None, priority: int = 0) -> Result:
        """Answers a request.

        Args:
            batch: as for ``Runtime.run``, of at most ``max_waiting_rows`` rows. Copied before anything is awaited.
            timeout_ms: it ends with ``DeadlineError`` then, whatever has become of it.
            priority: 1 (highest) to ``HostOptions.priorities``; 0 for the middle one.

        Returns:
            As ``Runtime.run``. ``engine_ms`` is the time inside engines of the runs that the request had rows in.

        Raises:
            InputError: the batch is not as described, has too many rows, or there is no such priority or timeout.
            RefusedError: the queue is full, the host drains, or it has lost its device.
            DeadlineError: the deadline passed.
            EngineError: a run with rows of the request failed; the host goes on.
            UsageError: the host is not open.
        """
        generation, request = self._enter(batch, timeout_ms, priority, streams=False)
        try:
            error = await request.ended
        except asyncio.CancelledError:
            generation.cancel(request)
            raise
        if error is not None:
            raise error
        return request.result()

    async def stream(
        self, batch: Batch, *, timeout_ms: float | None = None, priority: int = 0
    ) -> AsyncGenerator[tuple[np.ndarray, Outputs], None]:
        """Answers a request, handing out answers as its rows leave. A stream that is closed half-way is cancelled.

        Args:
            batch, timeout_ms, priority: as for ``infer``.

        Yields:
            (rows, outputs) as ``Runtime.stream``; every row comes exactly once.

        Raises:
            As ``infer``, when the first answer is asked for or between answers.
        """
        parts = self.stream_results(batch, timeout_ms=timeout_ms, priority=priority)
        async with aclosing(parts):
            async for rows, result in parts:
                yield rows, result.outputs

    async def stream_results(
        self, batch: Batch, *, timeout_ms: float | None = None, priority: int = 0
    ) -> AsyncGenerator[tuple[np.ndarray, Result], None]:
        """Answers a request as ``stream`` does, with exits and confidences.

        Yields:
            (rows, result): positions in the batch, and what ``infer`` would return for these alone.
        """
        generation, request = self._enter(batch, timeout_ms, priority, streams=True)
        try:
            while request.parts is not None and (part := await request.parts.get()) is not None:
                yield part
            error = await request.ended
        finally:
            generation.cancel(request)  # nothing to do for one that is done
        if error is not None:
            raise error

    async def reload(self, bundle: str | os.PathLike[str]) -> None:
        """Lets another bundle take over: it is verified, opened and warmed up beside the old one, which then finishes
        the requests that it has.

        Raises:
            As entering. The old bundle serves on then.
        """
        await self._replace(lambda: self._open_again(Path(bundle)))

    async def drain(self, timeout_s: float | None = None) -> int:
        """Takes no more requests and waits for those that were admitted.

        Args:
            timeout_s: for how long; then the rest fail. ``None``: ``HostOptions.drain_timeout_s``.

        Returns:
            How many requests failed so.
        """
        self._draining = True
        limit = self._options.drain_timeout_s if timeout_s is None else timeout_s
        return 0 if self._generation is None else await self._generation.finish(limit)

    async def close(self) -> None:
        """Drains and frees the engines; may be called twice."""
        if self._closing:
            return
        self._closing = True
        async with self._reloading:
            if self._watch is not None:
                await self.drain()
                self._watch.cancel()
            if self._generation is not None:
                await self._generation.close()

    def snapshot(self) -> HostSnapshot:
        """Returns the state; errors as ``infer`` where the host is not open."""
        generation = self._current()
        return HostSnapshot(
            ready=self.ready,
            bundle=generation.parts.spec.name,
            policy=self._options.policy,
            engine_faults=generation.faults,
            stuck=generation.stuck,
            reloads=self._reloads,
            stages=generation.stage_counts,
            shadowed=generation.shadowed,
            shadows_missed=generation.missed,
            scheduling=generation.worker.snapshot(),
        )

    def stats(self) -> RuntimeStats:
        """Returns the running statistics of the bundle that takes requests now, as ``Runtime.stats``.

        Raises:
            UsageError: they are switched off, or the host is not open.
        """
        watch = self._current().watch
        if watch is None:
            raise UsageError("this host keeps no statistics; open it without stats=False")
        return watch.snapshot()

    def stats_or_none(self) -> RuntimeStats | None:
        """Returns the running statistics, or ``None`` where they are switched off."""
        watch = self._current().watch
        return None if watch is None else watch.snapshot()

    def _enter(
        self, batch: Batch, timeout_ms: float | None, priority: int, *, streams: bool
    ) -> tuple[Generation, Request]:
        generation = self._current()
        if self._closing:
            raise RefusedError("this host is closed; send the request to another", reason="closed")
        if timeout_ms is not None and not (math.isfinite(timeout_ms) and timeout_ms > 0):
            raise InputError(f"timeout_ms={timeout_ms}: expected a positive number, or None for no deadline")
        device, spec = generation.parts.device, generation.parts.spec
        arrays = read_batch(batch, spec.inputs, device, check_finite=self._options.check_finite)
        if spec.sequence is not None:
            if not all(isinstance(array, np.ndarray) for array in arrays):
                raise InputError(
                    f"rows of '{spec.name}' have several lengths and are brought to that of their neighbours on the "
                    "host; pass arrays of the host"
                )
            arrays = fit_length(arrays, spec.inputs, spec.sequence)
        own: list[np.ndarray | Buffer] = [device.copy(array) for array in arrays]
        timeout_s = None if timeout_ms is None else timeout_ms / 1e3
        return generation, generation.enter(own, timeout_s=timeout_s, priority=priority, streams=streams)

    def _current(self) -> Generation:
        if self._generation is None:
            raise UsageError("this host is not open yet; use it inside of 'async with AsyncRuntime.load(bundle) as rt'")
        return self._generation

    async def _make(
        self, open_parts: Callable[[], BundleParts], rest: Callable[[float], None] = lambda _: None
    ) -> Generation:
        loop = asyncio.get_running_loop()

        def make() -> Generation:
            parts = open_parts()
            try:
                return Generation(parts, self._options, loop, rest)
            except BaseException:
                parts.close()
                raise

        generation = await asyncio.to_thread(make)
        generation.start()
        return generation

    async def _replace(self, open_parts: Callable[[], BundleParts]) -> None:
        async with self._reloading:
            old = self._current()
            if self._closing or self._draining:
                raise UsageError("this host drains; it does not take another bundle")
            new = await self._make(open_parts, self._rest)
            self._generation = new
            self._reloads += 1
            await old.finish(self._options.drain_timeout_s)
            await old.close()

    def _rest(self, took_s: float) -> None:
        """Leaves the device and the processors to the bundle that serves, between runs of one that warms up."""
        if not (self._draining or self._closing):
            sleep(min(_RESTS * took_s, _LONGEST_REST_S))

    async def _watch_engines(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            self._current().check_hanging()


def _open_folder(
    folder: Path, *, threads: int | None = None, device: int = 0, verify: Path | None = None
) -> BundleParts:  # fmt: skip
    opened = open_bundle(folder, threads=threads, device=DeviceOptions(index=device), verify=verify, stages_only=True)
    text = opened.spec.text
    if opened.spec.one_graph is not None:
        _log.info("%s: its one graph is for Runtime.run; here requests share its stages", folder)
    return BundleParts(
        spec=opened.spec,
        engine_sets=opened.engine_sets,
        device=opened.device,
        tokenizer=None if text is None else opened.artifact.path(text.tokenizer).read_bytes(),
    )

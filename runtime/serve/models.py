"""``ServedModel``: a bundle under a name: its host, its interface, its statistics; opened, reloaded and closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from artifacts import (
    FINAL_HEAD_LABEL,
    MANIFEST,
    BundleSpec,
    DeadlineError,
    InputError,
    PameError,
    RefusedError,
    allowed_processors,
    file_digest,
)
from runtime.hosting.async_runtime import AsyncRuntime
from runtime.oip.calls import InferAnswer, InferCall
from runtime.oip.interface import VERSION, Answers, ModelInterface
from runtime.results import Result
from runtime.serve.options import ServeOptions
from runtime.serve.raw_inputs import RawInputs
from runtime.serve.statistics import CallTimes, ModelStatistics
from runtime.serve.tracing import describe_answer
from runtime.signatures import signature_path

FINAL = "triton_final_response"  # clients look for it in the parameters of a streamed answer
LOADING, READY, UNLOADING, UNAVAILABLE = "LOADING", "READY", "UNLOADING", "UNAVAILABLE"
_preparing = ThreadPoolExecutor(max(1, min(4, allowed_processors())), "pame-prepare")  # decoded pictures take room
_log = logging.getLogger("pame.serve")


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a call came.

    Attributes:
        protocol: ``http`` or ``grpc``, for the statistics.
        started: when, by ``perf_counter``.
        left_s: until its client gives up, from ``started`` on; ``None``: it does not say.
        carrier: its headers, or metadata, for a trace; ``None`` where it is not traced.
        span: of OpenTelemetry, to be described when it is answered; ``None`` likewise.
    """

    protocol: str
    started: float
    left_s: float | None = None
    carrier: Mapping[str, str] | None = None
    span: Any = None


@dataclass(frozen=True, slots=True)
class _View:
    """What is made of a bundle once."""

    spec: BundleSpec
    interface: ModelInterface
    exit_names: list[str]
    raw: RawInputs


class ServedModel:
    """A bundle that is served.

    Attributes:
        name: of the model.
        folder: of the bundle.
        state: ``LOADING``, ``READY``, ``UNLOADING`` or ``UNAVAILABLE``.
        reason: why it is unavailable.
        statistics: its counters.
    """

    def __init__(self, name: str, folder: Path, options: ServeOptions, host: AsyncRuntime | None = None) -> None:
        """Opens nothing yet; tests pass a host of their own."""
        self.name = name
        self.folder = folder
        self.state = UNAVAILABLE
        self.reason = ""
        self.statistics = ModelStatistics()
        self._host = host or AsyncRuntime.load(
            folder,
            policy=options.host.policy,
            slo_ms=options.host.slo_ms,
            max_waiting_rows=options.host.max_waiting_rows,
            shadow_log=None if options.host.shadow_log is None else options.host.shadow_log / name,
            threads=options.threads,
            device=options.device,
            verify=options.security.signer,
            options=options.host,
        )
        self._priorities = options.host.priorities
        self._manifest = ""
        self._past_runs = 0
        self._image_mpx = options.limits.image_mpx
        self._view: _View | None = None

    async def open(self) -> None:
        """Verifies, opens and warms up the bundle; errors as ``Runtime.load``."""
        self.state = LOADING
        try:
            self._manifest = self._read_manifest()
            await self._host.__aenter__()
            _ = self.interface
        except PameError as error:
            self.state, self.reason = UNAVAILABLE, str(error)
            raise
        self.state = READY

    async def reload(self) -> None:
        """Lets the bundle that lies in the folder now take over; where it cannot, the old one serves on.

        Raises:
            As ``open``.
        """
        digest, runs = self._read_manifest(), self.runs
        try:
            await self._host.reload(self.folder)
        except PameError:
            self.statistics.reloads["failed"] += 1
            raise
        self._manifest, self._past_runs = digest, runs
        self.statistics.reloads["done"] += 1
        _log.info("model %s: another bundle has taken over", self.name)

    @property
    def changed(self) -> bool:
        """Whether another bundle lies in the folder than the one that was opened."""
        found = self._read_manifest()
        return found not in ("", self._manifest)

    def ignore_change(self) -> None:
        """Takes what lies in the folder as known, so that a damaged bundle is tried once."""
        self._manifest = self._read_manifest()

    async def close(self) -> None:
        """Finishes what was admitted and frees the engines."""
        self.state = UNLOADING
        await self._host.close()
        self.state, self.reason = UNAVAILABLE, "unloaded"

    @property
    def host(self) -> AsyncRuntime:
        """Its host.

        Raises:
            RefusedError: it is not open.
        """
        if self.state != READY:
            raise RefusedError(f"model '{self.name}' is {self.state.lower()}; try again later", reason="loading")
        return self._host

    @property
    def ready(self) -> bool:
        """Whether it answers."""
        return self.state == READY and self._host.ready

    @property
    def runs(self) -> int:
        """How many runs of stages there were, those of earlier bundles included."""
        return self._past_runs + self._host.snapshot().scheduling.runs

    @property
    def interface(self) -> ModelInterface:
        """Its tensors, as the bundle that takes requests now has them."""
        return self._look().interface

    @property
    def exit_names(self) -> list[str]:
        """The names of its exits, the final head last."""
        return self._look().exit_names

    def metadata(self) -> dict[str, object]:
        """Returns its metadata, as the protocol has it; errors as ``host``."""
        _ = self.host
        return self.interface.metadata(self.name)

    def config(self) -> dict[str, object]:
        """Returns its configuration, as the protocol has it."""
        host = self.host
        rows, raw = host.max_request_rows, self._look().raw.describe()
        return self.interface.config(self.name, max_rows=rows, priorities=self._priorities, raw=raw)

    async def infer(self, call: InferCall, arrival: Arrival) -> InferAnswer:
        """Answers a call and counts it.

        Args:
            call: what is asked.
            arrival: how it came.

        Raises:
            As ``AsyncRuntime.infer``.
        """
        host, inputs, view = await self._enter(call)
        wanted = view.interface.choose_outputs(call)
        entered = perf_counter()
        result = await host.infer(inputs, timeout_ms=_remaining_ms(call, arrival), priority=call.priority)
        answered = perf_counter()
        outputs = view.interface.collect(_answers_of(result), wanted)
        self._count(arrival, (entered, answered), result.engine_ms)
        self.statistics.add_rows(view.exit_names, result.exit_index, result.latency_ms)
        if arrival.span is not None:
            describe_answer(arrival.span, result.exit_index.tolist(), answered - entered, result.engine_ms / 1e3)
        return InferAnswer(self.name, VERSION, call.call_id, outputs)

    async def stream(self, call: InferCall, arrival: Arrival) -> AsyncGenerator[InferAnswer, None]:
        """Answers a call in parts, as its rows leave; every part says which rows it holds. Otherwise as ``infer``."""
        host, inputs, view = await self._enter(call)
        wanted = view.interface.choose_outputs(call)
        entered = perf_counter()
        if any(output.region is not None for output in wanted):
            raise InputError("answers that come as rows leave cannot be written to shared memory")
        engine_ms, left = 0.0, len(call.inputs[0].values)
        exits: list[int] = []
        parts = host.stream_results(inputs, timeout_ms=_remaining_ms(call, arrival), priority=call.priority)
        async with aclosing(parts):
            async for rows, result in parts:
                engine_ms, left = result.engine_ms, left - len(rows)
                exits += result.exit_index.tolist()
                outputs = view.interface.collect(_answers_of(result, rows), wanted)
                self.statistics.add_rows(view.exit_names, result.exit_index, result.latency_ms)
                yield InferAnswer(self.name, VERSION, call.call_id, outputs, {FINAL: left == 0})
        answered = perf_counter()
        self._count(arrival, (entered, answered), engine_ms)
        if arrival.span is not None:
            describe_answer(arrival.span, exits, answered - entered, engine_ms / 1e3)

    def _count(self, arrival: Arrival, hosted: tuple[float, float], engine_ms: float) -> None:
        """Counts a call that was answered; ``hosted``: when it entered and left the host."""
        entered, answered = hosted
        total = perf_counter() - arrival.started
        times = CallTimes(total, entered - arrival.started, answered - entered, engine_ms / 1e3)
        self.statistics.add_success(arrival.protocol, times)

    async def _enter(self, call: InferCall) -> tuple[AsyncRuntime, Mapping[str, np.ndarray], _View]:
        """Returns the host, the network's inputs, and the bundle that they were made for, which is still that of the
        host: nothing is awaited after the last look at it.
        """
        while True:
            host, view = self.host, self._look()
            if not view.raw.wanted_by(call):
                return host, view.interface.check_inputs(call), view
            view.interface.choose_outputs(call)
            loop = asyncio.get_running_loop()
            inputs = await loop.run_in_executor(_preparing, view.raw.prepare, call, host.max_request_rows)
            if host.spec is view.spec:
                return host, inputs, view

    def _look(self) -> _View:
        spec = self._host.spec
        if self._view is None or self._view.spec is not spec:
            names = [*(planned.cut for planned in spec.plan.exits), FINAL_HEAD_LABEL]
            raw = RawInputs(spec, self._host.tokenizer, image_mpx=self._image_mpx)
            self._view = _View(spec, ModelInterface(spec), names, raw)
        return self._view

    def _read_manifest(self) -> str:
        """Returns what tells bundles in the folder apart, their signatures included; empty while there is none."""
        signature = signature_path(self.folder)
        try:
            signed = file_digest(signature) if signature.is_file() else ""
            return file_digest(self.folder / MANIFEST) + signed
        except OSError:  # being replaced, or gone: whoever opens it says so
            return ""


def _remaining_ms(call: InferCall, arrival: Arrival) -> float | None:
    """Returns what is left of the time that a call may take, which begins when it comes."""
    stated = [] if call.timeout_ms is None else [call.timeout_ms]
    if arrival.left_s is not None:
        stated.append(arrival.left_s * 1e3)
    if not stated:
        return None
    left = min(stated) - (perf_counter() - arrival.started) * 1e3
    if left <= 0:
        raise DeadlineError(f"the deadline passed before the request was read: its timeout is {min(stated):g} ms")
    return left


def _answers_of(result: Result, rows: np.ndarray | None = None) -> Answers:
    outputs = result.outputs if isinstance(result.outputs, tuple) else (result.outputs,)
    return Answers([np.asarray(array) for array in outputs], result.exit_index, result.confidence, rows)

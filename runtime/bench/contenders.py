"""Who is measured: the whole network, the bundle as it ships, and the bundle without anybody leaving; in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np

from artifacts import BundleSpec, GraphSpec
from engines import Device, Engine, Execution
from runtime.bench.figures import Timings
from runtime.chain import Chain
from runtime.loading import OpenBundle, without_leaving
from runtime.runtime import Result, Runtime

NO_EXIT_BATCHES = 64
WARM_UP_BATCHES = 8

MakeBatch = Callable[[int], np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """What came out of the rounds; N queries in R rounds.

    Attributes:
        full, early_exit: latencies.
        engine_ms: (R, batches) of the bundle: time inside engines.
        no_exit_ms: (R, K) the bundle when nobody leaves, for the first K batches.
        full_answers, early_answers: one array (N, ...) per output.
        exit_index: (N,) where each query left.
    """

    full: Timings
    early_exit: Timings
    engine_ms: np.ndarray
    no_exit_ms: np.ndarray
    full_answers: tuple[np.ndarray, ...]
    early_answers: tuple[np.ndarray, ...]
    exit_index: np.ndarray


class WholeNetwork:
    """The full network over buffers that are bound once per batch size: as little around the engine as can be."""

    def __init__(self, engine: Engine, max_batch_size: int, device: Device) -> None:
        self._engine = engine
        self._device = device
        graph: GraphSpec = engine.graph
        specs = (*graph.inputs, *graph.outputs)
        self._buffers = {spec.name: self._device.allocate(spec, max_batch_size) for spec in specs}
        self._input = self._buffers[graph.inputs[0].name]
        self._answers = [self._buffers[name] for name in graph.answers]
        self._executions: dict[int, Execution] = {}

    def run(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        """Answers a batch (B, ...); the answers are the caller's."""
        count = len(batch)
        if count not in self._executions:
            buffers = {name: buffer[:count] for name, buffer in self._buffers.items()}
            self._executions[count] = self._engine.bind(buffers)
        self._device.upload(batch, self._input)
        self._executions[count]()
        return self._device.download_all(self._answers, range(count))


def until_exit(spec: BundleSpec, index: int) -> BundleSpec:
    """Returns the bundle cut off after an exit at which everybody leaves, and nobody before."""
    kept = without_leaving(replace(spec, stages=spec.stages[: index + 1])).stages
    return replace(spec, stages=(*kept[:-1], replace(kept[-1], threshold=None)))


class Contenders:
    """The whole network and the open bundle, side by side. Closes the bundle's engines."""

    def __init__(self, opened: OpenBundle, full: Engine, *, batch_size: int) -> None:
        self._opened = opened
        self._batch_size = batch_size
        self._full = WholeNetwork(full, batch_size, opened.device)
        self._stack = ExitStack()
        self._early = self._open(opened.spec)
        self._no_exit = self._open(without_leaving(opened.spec))

    def _open(self, spec: BundleSpec) -> Runtime:
        return self._stack.enter_context(Runtime(spec, self._opened.engine_sets, self._opened.device, drift=None))

    def record(self, make_batch: MakeBatch, batches: int, rounds: Sequence[int] | Iterator[int]) -> Recording:
        """Runs every batch through the contenders, next to each other, in alternating order.

        Args:
            make_batch: number of a batch -> its inputs (B, ...).
            batches: how many there are.
            rounds: numbers of the rounds.
        """
        for index in range(min(batches, WARM_UP_BATCHES)):
            for contender in (self._full, self._early, self._no_exit):
                contender.run(make_batch(index))
        taken = [self._record_round(make_batch, batches, number) for number in rounds]
        first = taken[0]
        sizes = [len(result.latency_ms) for result in first.results]
        full_ms = np.array([one.full_ms for one in taken])
        return Recording(
            full=Timings(latency_ms=np.repeat(full_ms, sizes, axis=1), batch_ms=full_ms),
            early_exit=Timings(
                latency_ms=np.stack([np.concatenate([result.latency_ms for result in one.results]) for one in taken]),
                batch_ms=np.array([one.early_ms for one in taken]),
            ),
            engine_ms=np.array([[result.engine_ms for result in one.results] for one in taken]),
            no_exit_ms=np.array([one.no_exit_ms for one in taken]),
            full_answers=_join(first.full_answers),
            early_answers=_join([_as_tuple(result) for result in first.results]),
            exit_index=np.concatenate([result.exit_index for result in first.results]),
        )

    def _record_round(self, make_batch: MakeBatch, batches: int, number: int) -> _Round:
        one = _Round(full_ms=[], early_ms=[], no_exit_ms=[], full_answers=[], results=[])

        def full(batch: np.ndarray) -> None:
            started = perf_counter()
            answers = self._full.run(batch)
            one.full_ms.append((perf_counter() - started) * 1e3)
            one.full_answers.append(answers)

        def early(batch: np.ndarray) -> None:
            started = perf_counter()
            result = self._early.run(batch)
            one.early_ms.append((perf_counter() - started) * 1e3)
            one.results.append(result)

        def no_exit(batch: np.ndarray) -> None:
            started = perf_counter()
            self._no_exit.run(batch)
            one.no_exit_ms.append((perf_counter() - started) * 1e3)

        for index in range(batches):
            turn = [full, early] if index >= NO_EXIT_BATCHES else [full, early, no_exit]
            batch = make_batch(index)
            for take in turn if (index + number) % 2 == 0 else reversed(turn):
                take(batch)
        return one

    def answers_of_exit(self, index: int, make_batch: MakeBatch, batches: int) -> tuple[np.ndarray, ...]:
        """Returns what an exit answers to every query, one array (N, ...) per output; nobody leaves before."""
        spec = until_exit(self._opened.spec, index)
        chain = Chain(spec, self._opened.engine_sets[: index + 1], self._opened.device)
        return _join(
            [
                chain.answers(leavers.places)[1]
                for number in range(batches)
                for leavers in chain.run([make_batch(number)])
            ]
        )

    def stage_costs_ms(self) -> list[np.ndarray]:
        """Returns the measured time of each stage for 0 .. B rows."""
        return [engines.covers.cost_ms for engines in self._opened.engine_sets]

    def close(self) -> None:
        """Closes the bundle's engines; may be called twice."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Round:
    full_ms: list[float]
    early_ms: list[float]
    no_exit_ms: list[float]
    full_answers: list[tuple[np.ndarray, ...]]
    results: list[Result]


def _as_tuple(result: Result) -> tuple[np.ndarray, ...]:
    return result.outputs if isinstance(result.outputs, tuple) else (result.outputs,)


def _join(answers: Sequence[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(parts) for parts in zip(*answers, strict=True))

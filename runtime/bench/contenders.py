"""Who is measured: the whole network, the bundle as it ships, and the bundle without anybody leaving; in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np

from artifacts import BundleSpec, GraphSpec, Task
from calibration import Batch
from engines import Device, Engine, Execution
from runtime.bench.figures import Timings
from runtime.bench.judging import Judge, Judgement
from runtime.chain import Chain
from runtime.loading import OpenBundle, without_leaving
from runtime.runtime import Result, Runtime

NO_EXIT_BATCHES = 64
WARM_UP_BATCHES = 8

MakeBatch = Callable[[int], Batch]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """What came out of the rounds; N queries in R rounds.

    Attributes:
        full, early_exit: latencies.
        engine_ms: (R, batches) of the bundle: time inside engines.
        no_exit_ms: (R, K) the bundle when nobody leaves, for the first K batches.
        judgement: of the answers of both.
        exit_index: (N,) where each query left.
        batch_size: queries per batch; the last may be smaller.
    """

    full: Timings
    early_exit: Timings
    engine_ms: np.ndarray
    no_exit_ms: np.ndarray
    judgement: Judgement
    exit_index: np.ndarray
    batch_size: int


class WholeNetwork:
    """The full network over buffers that are bound once per batch size: as little around the engine as can be."""

    def __init__(self, engine: Engine, max_batch_size: int, device: Device) -> None:
        self._engine = engine
        self._device = device
        graph: GraphSpec = engine.graph
        specs = (*graph.inputs, *graph.outputs)
        self._buffers = {spec.name: self._device.allocate(spec, max_batch_size) for spec in specs}
        self._inputs = tuple(spec.name for spec in graph.inputs)
        self._answers = [self._buffers[name] for name in graph.answers]
        self._executions: dict[int, Execution] = {}

    def run(self, batch: Batch) -> tuple[np.ndarray, ...]:
        """Answers a batch, (B, ...) or one such array per input; the answers are the caller's."""
        arrays = (batch,) if isinstance(batch, np.ndarray) else tuple(batch[name] for name in self._inputs)
        count = len(arrays[0])
        if count not in self._executions:
            buffers = {name: buffer[:count] for name, buffer in self._buffers.items()}
            self._executions[count] = self._engine.bind(buffers)
        for name, array in zip(self._inputs, arrays, strict=True):
            self._device.upload(array, self._buffers[name])
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

    def record(
        self, make_batch: MakeBatch, batches: int, rounds: Sequence[int] | Iterator[int], judge: Judge
    ) -> Recording:
        """Runs every batch through the contenders, next to each other, in alternating order.

        Args:
            make_batch: number of a batch -> its inputs.
            batches: how many there are.
            rounds: numbers of the rounds.
            judge: takes the answers of the first round.
        """
        for index in range(min(batches, WARM_UP_BATCHES)):
            for contender in (self._full, self._early, self._no_exit):
                contender.run(make_batch(index))
        taken: list[_Round] = []
        for number in rounds:
            taken.append(self._record_round(make_batch, batches, number, None if taken else judge))
        sizes = [len(latency_ms) for latency_ms in taken[0].latency_ms]
        full_ms = np.array([round_.full_ms for round_ in taken])
        return Recording(
            full=Timings(latency_ms=np.repeat(full_ms, sizes, axis=1), batch_ms=full_ms),
            early_exit=Timings(
                latency_ms=np.stack([np.concatenate(round_.latency_ms) for round_ in taken]),
                batch_ms=np.array([round_.early_ms for round_ in taken]),
            ),
            engine_ms=np.array([round_.engine_ms for round_ in taken]),
            no_exit_ms=np.array([round_.no_exit_ms for round_ in taken]),
            judgement=judge.judgement(),
            exit_index=np.concatenate(taken[0].exit_index),
            batch_size=self._batch_size,
        )

    def _record_round(self, make_batch: MakeBatch, batches: int, number: int, judge: Judge | None) -> _Round:
        taken = _Round()
        answered: dict[str, tuple[np.ndarray, ...]] = {}

        def full(batch: Batch) -> None:
            started = perf_counter()
            answers = self._full.run(batch)
            taken.full_ms.append((perf_counter() - started) * 1e3)
            answered["full"] = answers

        def early(batch: Batch) -> None:
            started = perf_counter()
            result = self._early.run(batch)
            taken.early_ms.append((perf_counter() - started) * 1e3)
            taken.add(result)
            answered["early"] = _as_tuple(result)

        def no_exit(batch: Batch) -> None:
            started = perf_counter()
            self._no_exit.run(batch)
            taken.no_exit_ms.append((perf_counter() - started) * 1e3)

        for index in range(batches):
            turn = [full, early] if index >= NO_EXIT_BATCHES else [full, early, no_exit]
            batch = make_batch(index)
            for take in turn if (index + number) % 2 == 0 else reversed(turn):
                take(batch)
            if judge is not None:
                judge.add(index, answered["full"], answered["early"])
        return taken

    def agreement_of_exits(self, make_batch: MakeBatch, batches: int, task: Task) -> np.ndarray:
        """Returns (E, N) float32: how far each exit's answer to every query is the full network's.

        Args:
            make_batch: number of a batch -> its inputs.
            batches: how many there are.
            task: compares the answers.
        """
        opened, inputs = self._opened, self._opened.spec.inputs
        chains = [
            Chain(until_exit(opened.spec, index), opened.engine_sets[: index + 1], opened.device)
            for index in range(len(opened.spec.stages) - 1)
        ]
        found: list[list[np.ndarray]] = []
        for number in range(batches):
            batch = make_batch(number)
            arrays = [batch] if isinstance(batch, np.ndarray) else [batch[spec.name] for spec in inputs]
            final = self._full.run(batch)
            found.append(
                [task.agreement(chain.answers(rows.places)[1], final) for chain in chains for rows in chain.run(arrays)]
            )
        return np.concatenate([np.array(rows, np.float32).reshape(len(chains), -1) for rows in found], axis=1)

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
    full_ms: list[float] = field(default_factory=list)
    early_ms: list[float] = field(default_factory=list)
    no_exit_ms: list[float] = field(default_factory=list)
    latency_ms: list[np.ndarray] = field(default_factory=list)
    engine_ms: list[float] = field(default_factory=list)
    exit_index: list[np.ndarray] = field(default_factory=list)

    def add(self, result: Result) -> None:
        """Takes the times and exits of an answered batch, not the answers."""
        self.latency_ms.append(result.latency_ms)
        self.engine_ms.append(result.engine_ms)
        self.exit_index.append(result.exit_index)


def _as_tuple(result: Result) -> tuple[np.ndarray, ...]:
    return result.outputs if isinstance(result.outputs, tuple) else (result.outputs,)

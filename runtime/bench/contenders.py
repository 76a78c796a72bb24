"""Contenders of a benchmark: the whole network, the bundle as it ships, and the bundle without rows that leave early.

They answer the same batches in turns. A batch's answers are graded as soon as all contenders have answered it, and then
dropped, so that memory does not grow with the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np

from artifacts import Answers, BundleSpec, GraphSpec, SequenceSpec, Task, TensorSpec
from engines import Buffer, Device, Engine, Execution, find_length, fit_length, row_lengths
from runtime.bench.figures import ContenderTimes
from runtime.bench.grading import Graded, Grader
from runtime.bench.queries import Queries
from runtime.chain import StageChain
from runtime.loading import OpenBundle, without_leaving
from runtime.options import RuntimeOptions
from runtime.results import Result
from runtime.runtime import Runtime
from runtime.scheduling.batch_steps import BatchState

NO_EXIT_BATCHES = 64
WARM_UP_BATCHES = 8

Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recording:
    """The result of the rounds; N queries in R rounds.

    Attributes:
        full, early_exit: times.
        engine_ms: (R, batches) of the bundle: time inside engines.
        no_exit_ms: (R, K) the bundle when no row leaves early, for the first K batches.
        exit_index: (N,) where each query left.
        graded: the grades of the answers.
        row_lengths: (N,) how long each query is, and
        batch_lengths: (batches,) the length that each batch ran at; empty where all rows have one shape.
    """

    full: ContenderTimes
    early_exit: ContenderTimes
    engine_ms: np.ndarray
    no_exit_ms: np.ndarray
    exit_index: np.ndarray
    graded: Graded
    row_lengths: np.ndarray
    batch_lengths: np.ndarray


class WholeNetwork:
    """The full network over buffers that are bound once per batch size and length: as little around the engine as
    possible."""

    def __init__(
        self, engine: Engine, max_batch_size: int, device: Device, sequence: SequenceSpec | None = None
    ) -> None:  # fmt: skip
        self._engine = engine
        self._device = device
        self._rows = max_batch_size
        self._sequence = sequence
        self._graph: GraphSpec = engine.graph
        self._buffers: dict[int, dict[str, Buffer]] = {}
        self._executions: dict[tuple[int, int], Execution] = {}

    def run(self, batch: Batch) -> tuple[np.ndarray, ...]:
        """Answers a batch, (B, ...) per input of the network; the answers are the caller's."""
        specs = self._graph.inputs
        arrays = fit_batch(batch, specs, self._sequence)
        count, length = len(arrays[0]), find_length(arrays, specs)
        buffers = self._buffers.get(length) or self._allocate(length)
        if (count, length) not in self._executions:
            bound = {name: buffer[:count] for name, buffer in buffers.items()}
            self._executions[count, length] = self._engine.bind(bound)
        for spec, array in zip(specs, arrays, strict=True):
            self._device.upload(array, buffers[spec.name])
        self._executions[count, length]()
        return self._device.download_all([buffers[name] for name in self._graph.answers], range(count))

    def _allocate(self, length: int) -> dict[str, Buffer]:
        specs = [spec.at_length(length) for spec in (*self._graph.inputs, *self._graph.outputs)]
        self._buffers[length] = {spec.name: self._device.allocate(spec, self._rows) for spec in specs}
        return self._buffers[length]


def fit_batch(
    batch: Batch, inputs: Sequence[TensorSpec], sequence: SequenceSpec | None
) -> Sequence[np.ndarray | Buffer]:  # fmt: skip
    """Returns the arrays of a batch in the order of the inputs, at the length that they are served at."""
    arrays = [batch[spec.name] for spec in inputs]
    return arrays if sequence is None else fit_length(arrays, inputs, sequence)


class ExitAnswers:
    """An exit's answers to all queries: the bundle cut off after it, where every row leaves, and none before."""

    def __init__(self, opened: OpenBundle, index: int) -> None:
        spec = until_exit(opened.spec, index)
        self._inputs, self._sequence = spec.inputs, spec.sequence
        self._chain = StageChain(spec, opened.engine_sets[: index + 1], opened.device)

    def run(self, batch: Batch) -> Answers:
        """Answers a batch."""
        inputs = fit_batch(batch, self._inputs, self._sequence)
        count = len(inputs[0])
        places = [0] * count
        for leaving in self._chain.run(inputs, BatchState(list(range(count)))):
            for row, place in zip(leaving.rows, leaving.places, strict=True):
                places[row] = place
        return self._chain.answers(places)[1]


def until_exit(spec: BundleSpec, index: int) -> BundleSpec:
    """Returns the bundle cut off after an exit at which every row leaves, and none before."""
    plan = replace(spec.plan, exits=spec.plan.exits[:index])
    cut_off = without_leaving(replace(spec, stages=spec.stages[: index + 1], plan=plan))
    *before, last = cut_off.stages
    return replace(cut_off, stages=(*before, replace(last, threshold=None)))


class Contenders:
    """The whole network and the open bundle, side by side. Closes the bundle's engines."""

    def __init__(self, opened: OpenBundle, full: Engine, *, batch_size: int) -> None:
        self._opened = opened
        self._full = WholeNetwork(full, batch_size, opened.device, opened.spec.sequence)
        self._stack = ExitStack()
        self._early = self._open(opened.spec)
        self._no_exit = self._open(without_leaving(opened.spec))

    def _open(self, spec: BundleSpec) -> Runtime:
        runtime = Runtime(
            spec, self._opened.engine_sets, self._opened.device, RuntimeOptions(drift=None), self._opened.one_graph
        )
        return self._stack.enter_context(runtime)

    def record(self, queries: Queries, task: Task, rounds: Iterable[int]) -> Recording:
        """Runs every batch through the contenders, next to each other, in alternating order.

        The answers are the same in every round; those of the first are graded.

        Args:
            queries: what is asked.
            task: grades the answers.
            rounds: numbers of the rounds, at least one.
        """
        for index in range(min(queries.batch_count, WARM_UP_BATCHES)):
            batch = queries.inputs(index)
            for contender in (self._full, self._early, self._no_exit):
                contender.run(batch)
        grader = Grader(task)
        exits = [ExitAnswers(self._opened, index) for index in range(len(self._opened.spec.stages) - 1)]
        taken: list[_Round] = []
        for number in rounds:
            grade = None if taken else _grade_with(grader, exits, queries)
            taken.append(self._record_round(queries, number, grade))
        exit_index = np.concatenate(taken[0].exit_index)
        sizes = [len(batch) for batch in taken[0].exit_index]
        full_ms = np.array([round_.full_ms for round_ in taken])
        return Recording(
            full=ContenderTimes(latency_ms=np.repeat(full_ms, sizes, axis=1), batch_ms=full_ms),
            early_exit=ContenderTimes(
                latency_ms=np.stack([np.concatenate(round_.latency_ms) for round_ in taken]),
                batch_ms=np.array([round_.early_ms for round_ in taken]),
            ),
            engine_ms=np.array([round_.engine_ms for round_ in taken]),
            no_exit_ms=np.array([round_.no_exit_ms for round_ in taken]),
            exit_index=exit_index,
            graded=grader.finish(),
            row_lengths=np.concatenate([*taken[0].row_lengths, np.zeros(0, np.int64)]),
            batch_lengths=self._bucket_of(taken[0].row_lengths),
        )

    def _bucket_of(self, row_lengths: Sequence[np.ndarray]) -> np.ndarray:
        sequence = self._opened.spec.sequence
        buckets = [] if sequence is None else [sequence.bucket(int(rows.max())) for rows in row_lengths]
        return np.array(buckets, np.int64)

    def _record_round(self, queries: Queries, number: int, grade: Grade | None) -> _Round:
        taken = _Round()
        for index in range(queries.batch_count):
            batch, answers = queries.inputs(index), _BatchAnswers()
            turns = [self._time_full, self._time_early]
            if index < NO_EXIT_BATCHES:
                turns.append(self._time_no_exit)
            for turn in turns if (index + number) % 2 == 0 else reversed(turns):
                turn(batch, taken, answers)
            if grade is not None:
                grade(index, batch, answers)
                if (sequence := self._opened.spec.sequence) is not None:
                    taken.row_lengths.append(row_lengths(batch[sequence.mask]))
        return taken

    def _time_full(self, batch: Batch, taken: _Round, answers: _BatchAnswers) -> None:
        started = perf_counter()
        found = self._full.run(batch)
        taken.full_ms.append((perf_counter() - started) * 1e3)
        answers.full = found

    def _time_early(self, batch: Batch, taken: _Round, answers: _BatchAnswers) -> None:
        started = perf_counter()
        result = self._early.run(batch)
        taken.early_ms.append((perf_counter() - started) * 1e3)
        taken.engine_ms.append(result.engine_ms)
        taken.latency_ms.append(result.latency_ms)
        taken.exit_index.append(result.exit_index)
        answers.early = _as_answers(result)

    def _time_no_exit(self, batch: Batch, taken: _Round, answers: _BatchAnswers) -> None:
        del answers  # as those of the whole network; graded there
        started = perf_counter()
        self._no_exit.run(batch)
        taken.no_exit_ms.append((perf_counter() - started) * 1e3)

    def stage_costs_ms(self) -> list[np.ndarray]:
        """Returns the measured time of each stage for 0 .. B rows; (lengths, B + 1) where rows have several lengths."""
        lengths, sets = self._opened.spec.lengths, self._opened.engine_sets
        if not lengths:
            return [engines.covers.cost_ms for engines in sets]
        return [np.stack([engines.at_length(length).covers.cost_ms for length in lengths]) for engines in sets]

    def close(self) -> None:
        """Closes the bundle's engines; may be called twice."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(slots=True)
class _BatchAnswers:
    full: Answers = ()
    early: Answers = ()


@dataclass(slots=True)
class _Round:
    """Times of one round, batch by batch; ``latency_ms`` and ``exit_index`` of the bundle's queries; the lengths are
    those of the first round."""

    full_ms: list[float] = field(default_factory=list)
    early_ms: list[float] = field(default_factory=list)
    no_exit_ms: list[float] = field(default_factory=list)
    engine_ms: list[float] = field(default_factory=list)
    latency_ms: list[np.ndarray] = field(default_factory=list)
    exit_index: list[np.ndarray] = field(default_factory=list)
    row_lengths: list[np.ndarray] = field(default_factory=list)


Grade = Callable[[int, Batch, _BatchAnswers], None]


def _grade_with(grader: Grader, exits: Sequence[ExitAnswers], queries: Queries) -> Grade:
    def grade(index: int, batch: Batch, answers: _BatchAnswers) -> None:
        by_exit = [exit_.run(batch) for exit_ in exits]
        grader.add(answers.full, answers.early, by_exit, queries.targets(index))

    return grade


def _as_answers(result: Result) -> Answers:
    outputs = result.outputs if isinstance(result.outputs, tuple) else (result.outputs,)
    return [np.asarray(output) for output in outputs]

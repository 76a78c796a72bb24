"""Timing of engines: the inference time matrix (ITM) of the very engines that ship, at the batch sizes that may occur.

Every row is timed at every batch size once per round (A B C .. A B C ..), so that a slow moment of the machine affects
all rows alike instead of spoiling one; the median over the rounds counts, the interquartile range says how sure it is.
Rounds stop early when the time budget is spent, but never before the third.

In a round every row finds the caches filled by the others. A deployed chain is the same few stages over and over, so
that an engine that is short enough to stay in the caches runs warm there: it runs twice in a row, and the second time
counts. What the host does between two engines (gathering rows, serving a batch) always finds cold caches, which makes
it several times as slow as in a loop of its own: it runs once, right after an engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import (
    COMMAND,
    Artifact,
    EngineError,
    GraphSpec,
    InferenceTimeMatrix,
    LengthTimes,
    Model,
    ModelSpec,
    RunFolder,
    TensorSpec,
    environment_fingerprint,
    is_current,
    new_artifact,
    open_artifact,
    read_json,
    to_plain,
    work_alone,
    write_json,
)
from artifacts.console import track
from engines import (
    Buffer,
    BuildOptions,
    Device,
    DeviceOptions,
    Engine,
    builder,
    ensure_engine,
    fixed_batch_sizes,
    open_device,
    open_engine,
    share_scratch,
)
from planner.config import PlanConfig, TimingConfig
from planner.flags import planner_command
from planner.measure.host_overhead import serving_calls
from planner.predict.costs import SERVING, gather_row

ITM_JSON = "itm.json"
_MIN_ROUNDS = 3
_WARM_BELOW_S = 0.005

Call = Callable[[], object]
Clock = Callable[[], float]
Row = dict[str, tuple[float, ...]]
Key = tuple[Any, ...]
"""What is timed: row and batch size, and the length of the rows where they have several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """How engines are built and run to be timed.

    Attributes:
        backend: e.g. ``onnxruntime``.
        threads: of each engine.
        profiles: TensorRT's shape profiles, as in ``PlanConfig``.
        device: the ordinal of the GPU, for a backend that runs on one.
    """

    backend: str
    threads: int
    profiles: str | None = None
    device: int = 0

    @classmethod
    def of(cls, config: PlanConfig) -> EngineSettings:
        """Returns the settings that a plan is made for."""
        return cls(backend=config.backend, threads=config.threads, profiles=config.profiles)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTimes:
    """Times of some calls: key -> seconds per round, and the number of rounds."""

    seconds: Mapping[Key, tuple[float, ...]]
    rounds: int


def time_calls(
    calls: Mapping[Key, Call],
    config: TimingConfig,
    *,
    clock: Clock,
    cold: Container[str] = (),
    wait: Call | None = None,
) -> CallTimes:
    """Times calls in interleaved rounds.

    Args:
        calls: key -> the call.
        config: rounds, warm-up and budget.
        clock: seconds, e.g. ``time.perf_counter``.
        cold: the rows that never run twice in a row.
        wait: waits until everything that was called is done, where calls return earlier; ``None`` where they do not.
    """
    for call in calls.values():
        for _ in range(config.warm_up):
            call()
    if wait is not None:
        calls = {key: _then(call, wait) for key, call in calls.items()}
        wait()
    seconds: dict[Key, list[float]] = {key: [] for key in calls}
    short: set[Key] = set()
    began, done = clock(), 0
    for _ in track(range(config.rounds), description="timing engines", total=config.rounds):
        if done >= _MIN_ROUNDS and clock() - began > config.budget_s:
            break
        for key, call in calls.items():
            if key in short:
                call()
            start = clock()
            call()
            seconds[key].append(clock() - start)
            if seconds[key][-1] < _WARM_BELOW_S and key[0] not in cold:
                short.add(key)
        done += 1
    return CallTimes(seconds={key: tuple(values) for key, values in seconds.items()}, rounds=done)


def _then(call: Call, wait: Call) -> Call:
    def both() -> None:
        call()
        wait()

    return both


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedGraph:
    """A graph to time.

    Attributes:
        row: its name in the matrix.
        onnx: its file.
        graph: its interface.
        gather: the exit at its end, where rows may leave there: adds the row ``gather_<gather>``.
        carried: the tensors that go on with the survivors.
    """

    row: str
    onnx: Path
    graph: GraphSpec
    gather: str | None = None
    carried: tuple[TensorSpec, ...] = ()


def model_graphs(model: Model) -> tuple[TimedGraph, ...]:
    """Returns the graphs of a model that the planner prices, in the order of the data flow."""
    spec = model.spec
    graphs = [TimedGraph(row=graph.name, onnx=model.path(graph), graph=graph) for graph in spec.segments]
    for cut in spec.candidates:
        head = spec.heads[cut.name]
        graphs.append(
            TimedGraph(row=head.name, onnx=model.path(head), graph=head, gather=cut.name, carried=cut.tensors)
        )
    last = [spec.full] if spec.final_head is None else [spec.final_head, spec.full]
    graphs += [TimedGraph(row=graph.name, onnx=model.path(graph), graph=graph) for graph in last]
    return tuple(graphs)


def time_graphs(
    graphs: Sequence[TimedGraph],
    spec: ModelSpec,
    cache: Path,
    config: TimingConfig,
    settings: EngineSettings,
    *,
    clock: Clock = time.perf_counter,
) -> InferenceTimeMatrix:
    """Builds the engines of some graphs where the cache lacks them, and times them together.

    Args:
        graphs: in the order of the data flow, so that every engine reads what the one before it wrote.
        spec: the network that they come from: the lengths of its rows, and the row ``serving``.
        cache: folder of compiled engines.
        config: batch sizes, rounds and budget.
        settings: how the engines are built and run.
        clock: seconds.

    Returns:
        One row per graph and gather, and ``serving``; the environment also holds ``timing_rounds``, their number.
    """
    share_scratch()
    with ExitStack() as stack:
        device = open_device(settings.backend, DeviceOptions(index=settings.device, kernel_folder=cache))
        stack.callback(device.close)
        engines = _open_engines(graphs, cache, config, settings, device=device, stack=stack)
        sizes = _common_sizes(engines, config.batch_sizes)
        times = time_calls(
            _list_calls(graphs, engines, spec, sizes, device),
            config,
            clock=clock,
            cold={SERVING, *(gather_row(timed.gather) for timed in graphs if timed.gather is not None)},
            wait=device.synchronize if device.bind_early else None,
        )
        key = engines[0].key
    backend = f"{key.backend} {key.backend_version}"
    matrix = _matrix(times, sizes, backend=backend, threads=settings.threads, fixed=bool(key.batch_sizes))
    return _add_lengths(matrix, times, spec.lengths)


def _open_engines(
    graphs: Sequence[TimedGraph],
    cache: Path,
    config: TimingConfig,
    settings: EngineSettings,
    *,
    device: Device,
    stack: ExitStack,
) -> list[Engine]:
    backend, sizes = settings.backend, config.batch_sizes
    options = BuildOptions(max_batch_size=sizes[-1], batch_sizes=sizes, profiles=settings.profiles)
    options = replace(options, batch_sizes=fixed_batch_sizes(backend, options))
    engines = []
    for timed in track(graphs, description="opening engines", total=len(graphs)):
        folder = ensure_engine(timed.onnx, timed.graph, cache, backend=backend, options=options)
        engine = open_engine(folder, timed.graph, threads=settings.threads, device=device)
        stack.callback(engine.close)
        engines.append(engine)
    return engines


def _list_calls(
    graphs: Sequence[TimedGraph], engines: Sequence[Engine], spec: ModelSpec, sizes: tuple[int, ...], device: Device
) -> dict[Key, Call]:
    """Returns key -> the call to time; the largest first: its warm-up fills all rows of the buffers."""
    buffers = _SharedBuffers(device, sizes[-1], mask="" if spec.sequence is None else spec.sequence.mask)
    serving = serving_calls(spec, sizes, device)
    calls: dict[Key, Call] = {}
    ends: list[tuple[int, ...]] = [(length,) for length in reversed(spec.lengths)] or [()]
    for end in ends:
        for size in reversed(sizes):
            for timed, engine in zip(graphs, engines, strict=True):
                calls.update({(row, size, *end): call for row, call in buffers.calls(timed, engine, size, *end)})
            calls.update({key: call for key, call in serving.items() if key[1:] == (size, *end)})
    return calls


def _common_sizes(engines: Sequence[Engine], wanted: tuple[int, ...]) -> tuple[int, ...]:
    sizes = {engine.key.batch_sizes or wanted for engine in engines}
    if len(sizes) != 1:
        raise EngineError(
            f"the engines to time were built for different batch sizes: {sorted(sizes)}; build them again"
        )
    return sizes.pop()


class _SharedBuffers:
    """Buffers that all timed engines share, by tensor; those of floating-point numbers start with seeded noise, and the
    mask hides nothing."""

    def __init__(self, device: Device, rows: int, *, mask: str) -> None:
        self._device = device
        self._mask = mask
        self._rows = rows
        self._random = np.random.default_rng(0)
        self._buffers: dict[TensorSpec, Buffer] = {}

    def calls(self, timed: TimedGraph, engine: Engine, size: int, length: int = 0) -> Iterator[tuple[str, Call]]:
        """Yields the rows of one graph at one batch size and length, each with its call."""
        specs = [spec.at_length(length) for spec in (*timed.graph.inputs, *timed.graph.outputs)]
        yield timed.row, engine.bind({spec.name: self._buffer(spec)[:size] for spec in specs})
        if timed.gather is not None:
            carried = [self._buffer(spec.at_length(length))[:size] for spec in timed.carried]
            half = self._half_leave()[:size]
            yield (
                gather_row(timed.gather),
                lambda: self._device.split_rows(size, confidence=half, threshold=0.5, carried=carried),
            )

    def _buffer(self, spec: TensorSpec) -> Buffer:
        if spec not in self._buffers:
            buffer = self._device.allocate(spec, self._rows)
            if np.issubdtype(np.dtype(spec.dtype), np.floating):
                noise = self._random.standard_normal((self._rows, *spec.row_shape), np.float32)
                self._device.upload(noise.astype(spec.dtype), buffer)
            elif spec.name == self._mask:
                self._device.upload(np.ones((self._rows, *spec.row_shape), spec.dtype), buffer)
            self._buffers[spec] = buffer
        return self._buffers[spec]

    def _half_leave(self) -> Buffer:
        spec = TensorSpec(name="every second row leaves", dtype="float32", row_shape=())
        if spec not in self._buffers:
            self._buffers[spec] = self._device.allocate(spec, self._rows)
            self._device.upload((np.arange(self._rows) % 2 == 0).astype(np.float32), self._buffers[spec])
        return self._buffers[spec]


def _matrix(
    times: CallTimes, sizes: tuple[int, ...], *, backend: str, threads: int, fixed: bool
) -> InferenceTimeMatrix:
    """Returns the matrix of the largest length, or of rows of one shape."""
    median_ms, spread_ms = _summarise(times, sizes, max((key[2:] for key in times.seconds), default=()))
    return InferenceTimeMatrix(
        backend=backend, threads=threads, batch_sizes=sizes, fixed=fixed, median_ms=median_ms, spread_ms=spread_ms,
        environment={**environment_fingerprint(), "timing_rounds": str(times.rounds)},
    )  # fmt: skip


def _add_lengths(matrix: InferenceTimeMatrix, times: CallTimes, lengths: tuple[int, ...]) -> InferenceTimeMatrix:
    """Returns a matrix with the times at shorter lengths too."""
    if not lengths:
        return matrix
    shorter = {}
    for length in lengths[:-1]:
        median_ms, spread_ms = _summarise(times, matrix.batch_sizes, (length,))
        shorter[str(length)] = LengthTimes(median_ms=median_ms, spread_ms=spread_ms)
    return replace(matrix, largest_length=lengths[-1], shorter=shorter)


def _summarise(times: CallTimes, sizes: tuple[int, ...], end: tuple[int, ...]) -> tuple[Row, Row]:
    """Returns medians and interquartile ranges in milliseconds of the keys that end so, by row."""
    rows = dict.fromkeys(key[0] for key in times.seconds if key[2:] == end)
    quartiles = {
        (row, size): np.percentile(times.seconds[row, size, *end], (25, 50, 75)) * 1e3 for row in rows for size in sizes
    }
    return (
        {row: tuple(float(quartiles[row, size][1]) for size in sizes) for row in rows},
        {row: tuple(float(np.ptp(quartiles[row, size])) for size in sizes) for row in rows},
    )


@work_alone
def ensure_itm(
    run: RunFolder,
    model: Model,
    config: PlanConfig,
    *,
    command: str | None = None,
    report: Callable[[str], None] = lambda _: None,
    clock: Clock = time.perf_counter,
) -> tuple[Artifact, InferenceTimeMatrix]:
    """Returns the run's matrix; times the engines first unless model, settings and machine are those of the last time.

    Args:
        run: holds ``itm/`` and the engine cache.
        model: whose graphs are timed.
        config: its backend, profiles, threads and timing decide how.
        command: the command line to record; ``None``: the planner's with this config.
        report: receives lines on the progress.
        clock: seconds.
    """
    inputs, parameters = _itm_origin(model, config)
    if not is_current(run.itm, kind="itm", inputs=inputs, parameters=parameters):
        graphs = model_graphs(model)
        report(f"timing {len(graphs)} engines of {model.spec.name} at {len(config.timing.batch_sizes)} batch sizes")
        itm = time_graphs(graphs, model.spec, run.engines, config.timing, EngineSettings.of(config), clock=clock)
        report(f"timed in {itm.environment['timing_rounds']} rounds")
        notes = {COMMAND: command or planner_command(run.root, config)}
        with new_artifact(run.itm, kind="itm", inputs=inputs, parameters=parameters, notes=notes) as staging:
            write_json(staging / ITM_JSON, itm)
    artifact = open_artifact(run.itm, kind="itm", remedy=run.remedy("planner"))
    return artifact, read_json(artifact.path(ITM_JSON), InferenceTimeMatrix)


def is_itm_current(run: RunFolder, model: Model, config: PlanConfig) -> bool:
    """Tells whether ``ensure_itm`` would reuse the matrix that is there."""
    inputs, parameters = _itm_origin(model, config)
    return is_current(run.itm, kind="itm", inputs=inputs, parameters=parameters)


def _itm_origin(model: Model, config: PlanConfig) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns the inputs and parameters of a matrix, as in its manifest."""
    timing, settings = config.timing, EngineSettings.of(config)
    options = BuildOptions(max_batch_size=timing.batch_sizes[-1], profiles=settings.profiles)
    key = builder(settings.backend, options).key(model.path(model.spec.full))
    return {"model": model.digest}, {
        "backend": settings.backend,
        "engine_options": dict(key.options),
        "threads": settings.threads,
        "timing": to_plain(timing),
        "environment": environment_fingerprint(),
    }

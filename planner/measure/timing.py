"""Measures the inference time matrix (ITM): the very engines that ship, over the batch sizes that may occur.

Every row is timed at every batch size once per round (A B C .. A B C ..), so that a slow moment of the machine falls
upon all rows alike instead of spoiling one; the median over the rounds stands, the interquartile range says how sure
it is. Rounds stop early when the time budget is spent, but never before the third.

In a round every row finds the caches filled by the others. A deployed chain is the same few stages over and over, so
that an engine that is short enough to stay in the caches runs warm there: it runs twice in a row, and the second time
counts. What the host does between two engines (gathering rows, serving a batch) always finds cold caches, which makes
it several times as slow as in a loop of its own: it runs once, right behind an engine.
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
    Artifact,
    EngineError,
    GraphSpec,
    InferenceTimeMatrix,
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
    write_json,
)
from artifacts.console import say, track
from engines import (
    BuildOptions,
    Device,
    DeviceOptions,
    Engine,
    builder,
    ensure_engine,
    fixed_batch_sizes,
    open_device,
    open_engine,
)
from planner.config import TimingConfig
from planner.measure.host_overhead import serving_calls
from planner.predict.costs import SERVING, gather_row

ITM_JSON = "itm.json"
_MIN_ROUNDS = 3
_WARM_BELOW_S = 0.005

Call = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """What ``time_calls`` found: name -> seconds (rounds,) per call, and how many rounds there were."""

    seconds: Mapping[tuple[str, int], tuple[float, ...]]
    rounds: int


def time_calls(
    calls: Mapping[tuple[str, int], Call], config: TimingConfig, *, clock: Clock, cold: Container[str] = (),
    wait: Call | None = None,
) -> Timings:  # fmt: skip
    """Times calls in interleaved rounds.

    Args:
        calls: (row, batch size) -> what to run.
        cold: the rows that never run twice in a row.
        config: rounds, warm-up and budget.
        clock: seconds, e.g. ``time.perf_counter``.
        wait: waits until all that was called is done, where calls come back before; ``None`` where they do not.
    """
    for call in calls.values():
        for _ in range(config.warm_up):
            call()
    if wait is not None:
        calls = {key: _then(call, wait) for key, call in calls.items()}
        wait()
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in calls}
    short: set[tuple[str, int]] = set()
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
    return Timings(seconds={key: tuple(values) for key, values in seconds.items()}, rounds=done)


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
        gather: the exit behind it, when rows may leave there: adds the row ``gather_<gather>``.
        carried: the tensors that survivors take along.
    """

    row: str
    onnx: Path
    graph: GraphSpec
    gather: str | None = None
    carried: tuple[TensorSpec, ...] = ()


def model_graphs(model: Model) -> tuple[TimedGraph, ...]:
    """Returns everything of a model that the planner prices, in the order of the data flow."""
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
    graphs: Sequence[TimedGraph], spec: ModelSpec, cache: Path, config: TimingConfig,
    *, backend: str, threads: int, profiles: str | None = None, device: int = 0, clock: Clock = time.perf_counter,
) -> InferenceTimeMatrix:  # fmt: skip
    """Builds the engines of some graphs where the cache lacks them, and times them together.

    Args:
        graphs: in the order of the data flow, so that every engine reads what the one before it wrote.
        spec: the network that they come from, for the row ``serving``.
        cache: folder of compiled engines.
        config: how to time.
        backend: e.g. ``onnxruntime``.
        threads: of each engine.
        profiles: TensorRT's shape profiles, as in ``PlanConfig``.
        device: the ordinal of the GPU, for a backend that runs on one.
        clock: seconds.

    Returns:
        One row per graph and gather, and ``serving``; the environment also holds ``timing_rounds``, their number.
    """
    largest = config.batch_sizes[-1]
    options = BuildOptions(max_batch_size=largest, batch_sizes=config.batch_sizes, profiles=profiles)
    options = replace(options, batch_sizes=fixed_batch_sizes(backend, options))
    with ExitStack() as stack:
        place = open_device(backend, DeviceOptions(index=device, kernel_folder=cache))
        stack.callback(place.close)
        bench = _Bench(place, largest)
        engines = []
        for timed in track(graphs, description="opening engines", total=len(graphs)):
            folder = ensure_engine(timed.onnx, timed.graph, cache, backend=backend, options=options)
            engine = open_engine(folder, timed.graph, threads=threads, device=place)
            stack.callback(engine.close)
            engines.append(engine)
        sizes = _common_sizes(engines, config.batch_sizes)
        serving = serving_calls(spec, sizes, place)
        calls: dict[tuple[str, int], Call] = {}
        for size in reversed(sizes):  # the largest first: its warm-up fills all rows of the buffers
            for timed, engine in zip(graphs, engines, strict=True):
                calls.update({(row, size): call for row, call in bench.calls(timed, engine, size)})
            calls.update({key: call for key, call in serving.items() if key[1] == size})
        cold = {SERVING, *(gather_row(timed.gather) for timed in graphs if timed.gather is not None)}
        timings = time_calls(
            calls, config, clock=clock, cold=cold, wait=place.synchronize if place.bind_early else None
        )
        key = engines[0].key
    return _matrix(timings, sizes, backend=f"{key.backend} {key.backend_version}", threads=threads,
                   fixed=bool(key.batch_sizes))  # fmt: skip


def _common_sizes(engines: Sequence[Engine], wanted: tuple[int, ...]) -> tuple[int, ...]:
    sizes = {engine.key.batch_sizes or wanted for engine in engines}
    if len(sizes) != 1:
        raise EngineError(f"the engines to time were built for different batch sizes: {sorted(sizes)}; build them anew")
    return sizes.pop()


class _Bench:
    """The buffers that all timed engines share, by tensor; inputs of the network hold seeded noise."""

    def __init__(self, device: Device, rows: int) -> None:
        self._device = device
        self._rows = rows
        self._random = np.random.default_rng(0)
        self._buffers: dict[TensorSpec, Any] = {}

    def calls(self, timed: TimedGraph, engine: Engine, size: int) -> Iterator[tuple[str, Call]]:
        """Yields the rows of one graph at one batch size with what to run."""
        specs = (*timed.graph.inputs, *timed.graph.outputs)
        yield timed.row, engine.bind({spec.name: self._buffer(spec)[:size] for spec in specs})
        if timed.gather is not None:
            carried = [self._buffer(spec)[:size] for spec in timed.carried]
            half = self._half_leave()[:size]
            yield (
                gather_row(timed.gather),
                lambda: self._device.split_rows(size, confidence=half, threshold=0.5, carried=carried),
            )

    def _buffer(self, spec: TensorSpec) -> Any:
        if spec not in self._buffers:
            buffer = self._device.allocate(spec, self._rows)
            if np.issubdtype(np.dtype(spec.dtype), np.floating):
                noise = self._random.standard_normal((self._rows, *spec.row_shape), np.float32)
                self._device.upload(noise.astype(spec.dtype), buffer)
            self._buffers[spec] = buffer
        return self._buffers[spec]

    def _half_leave(self) -> Any:
        spec = TensorSpec(name="every second row leaves", dtype="float32", row_shape=())
        if spec not in self._buffers:
            self._buffers[spec] = self._device.allocate(spec, self._rows)
            self._device.upload((np.arange(self._rows) % 2 == 0).astype(np.float32), self._buffers[spec])
        return self._buffers[spec]


def _matrix(
    timings: Timings, sizes: tuple[int, ...], *, backend: str, threads: int, fixed: bool
) -> InferenceTimeMatrix:
    rows = dict.fromkeys(row for row, _ in timings.seconds)
    quartiles = {key: np.percentile(values, (25, 50, 75)) * 1e3 for key, values in timings.seconds.items()}
    return InferenceTimeMatrix(
        backend=backend, threads=threads, batch_sizes=sizes, fixed=fixed,
        median_ms={row: tuple(float(quartiles[row, size][1]) for size in sizes) for row in rows},
        spread_ms={row: tuple(float(np.ptp(quartiles[row, size])) for size in sizes) for row in rows},
        environment={**environment_fingerprint(), "timing_rounds": str(timings.rounds)},
    )  # fmt: skip


def ensure_itm(
    run: RunFolder, model: Model, config: TimingConfig, *, backend: str, threads: int, profiles: str | None = None,
    clock: Clock = time.perf_counter,
) -> tuple[Artifact, InferenceTimeMatrix]:  # fmt: skip
    """Returns the run's matrix; times the engines first unless model, settings and machine are those of the last time.

    Args:
        run: holds ``itm/`` and the engine cache.
        model: what to time.
        config: how.
        backend: e.g. ``onnxruntime``.
        threads: of each engine.
        profiles: TensorRT's shape profiles, as in ``PlanConfig``.
        clock: seconds.
    """
    inputs = {"model": model.digest}
    made_by = builder(backend, BuildOptions(max_batch_size=config.batch_sizes[-1], profiles=profiles))
    key = made_by.key(model.path(model.spec.full))
    parameters = {
        "backend": backend, "engine_options": dict(key.options), "threads": threads, "timing": to_plain(config),
        "environment": environment_fingerprint(),
    }  # fmt: skip
    remedy = "python -m planner --tolerance 0.01"
    if not is_current(run.itm, kind="itm", inputs=inputs, parameters=parameters):
        graphs = model_graphs(model)
        say(f"timing {len(graphs)} engines of {model.spec.name} at {len(config.batch_sizes)} batch sizes")
        itm = time_graphs(
            graphs, model.spec, run.engines, config, backend=backend, threads=threads, profiles=profiles, clock=clock
        )
        say(f"timed in {itm.environment['timing_rounds']} rounds")
        with new_artifact(run.itm, kind="itm", inputs=inputs, parameters=parameters) as staging:
            write_json(staging / ITM_JSON, itm)
    artifact = open_artifact(run.itm, kind="itm", remedy=remedy)
    return artifact, read_json(artifact.path(ITM_JSON), InferenceTimeMatrix)

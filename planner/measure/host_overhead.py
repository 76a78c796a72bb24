"""Host overhead of serving: the time of a batch outside its engines, the row ``serving`` of the inference time matrix.

The runtime checks a batch, copies it into its buffers, and hands every answer to its query. That is measured by a real
``Runtime`` around an engine that does next to nothing, over the network's own inputs and answers. Every plan pays it
once per batch, also the one without exits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from artifacts import BundleSpec, EngineKey, ExitPlan, GraphSpec, ModelSpec, PredictedLatency, StageSpec
from engines import Buffer, Device, Engine, EngineSet, Execution, FakeEngine, HostDevice, plan_covers
from planner.predict.costs import SERVING


def serving_calls(
    spec: ModelSpec, sizes: tuple[int, ...], device: Device
) -> dict[tuple[Any, ...], Callable[[], object]]:
    """Returns (row, batch size) -> a call that serves one batch around an idle engine; where rows have several lengths,
    (row, batch size, length) -> likewise.

    Args:
        spec: the network whose inputs and answers are served.
        sizes: batch sizes, ascending.
        device: where the buffers are; the caller closes it.
    """
    from runtime import Runtime

    full, largest = spec.full, sizes[-1]
    if full.confidence is None:
        return {}
    engine = _make_idle_engine(full, largest, device)
    covers = plan_covers({largest: 0.0}, largest=largest, fixed=False)
    runtime = Runtime(_idle_bundle(spec, largest), [EngineSet(engine, covers)], device)
    calls: dict[tuple[Any, ...], Callable[[], object]] = {}
    ends: list[tuple[int, ...]] = [(length,) for length in spec.lengths] or [()]
    for size in sizes:
        for end in ends:
            tensors = spec.full.at_length(*end).inputs if end else full.inputs
            batch = {tensor.name: np.ones((size, *tensor.row_shape), tensor.dtype) for tensor in tensors}
            calls[SERVING, size, *end] = _serve(runtime.run, batch)
    return calls


def _make_idle_engine(graph: GraphSpec, largest: int, device: Device) -> Engine:
    """Returns an engine that answers zeros on the host, and does nothing on any other device."""
    answer = {output.name: np.zeros((1, *output.row_shape), output.dtype) for output in graph.outputs}
    fake = FakeEngine(graph, max_batch_size=largest, outputs=lambda _: answer)
    return fake if isinstance(device, HostDevice) else _IdleEngine(fake)


class _IdleEngine:
    """Idle engine: takes buffers of any device and leaves them as they are."""

    def __init__(self, like: Engine) -> None:
        self._like = like

    @property
    def key(self) -> EngineKey:
        return self._like.key

    @property
    def graph(self) -> GraphSpec:
        return self._like.graph

    def bind(self, buffers: Mapping[str, Buffer]) -> Execution:
        del buffers
        return lambda: None

    def close(self) -> None:
        self._like.close()


def _serve(run: Callable[[Mapping[str, np.ndarray]], object], batch: Mapping[str, np.ndarray]) -> Callable[[], object]:
    return lambda: run(batch)


def _idle_bundle(spec: ModelSpec, largest: int) -> BundleSpec:
    nothing = PredictedLatency(full_ms=0, mean_ms=0, batch_ms=0, oracle_mean_ms=0)
    plan = ExitPlan(
        model_digest="",
        trace_digest="",
        search="",
        tolerance=0,
        delta=None,
        batch_size=largest,
        backend="fake",
        threads=1,
        exits=(),
        full_metric=1,
        predicted_metric=1,
        predicted=nothing,
    )
    answers = tuple(spec.full.output(name) for name in spec.full.answers)
    return BundleSpec(
        name=spec.name,
        task=spec.task,
        backend="fake",
        threads=1,
        max_batch_size=largest,
        inputs=spec.full.inputs,
        outputs=answers,
        plan=plan,
        stages=(StageSpec(graph=spec.full, engine="", threshold=None, median_ms={}),),
        sequence=spec.sequence,
    )

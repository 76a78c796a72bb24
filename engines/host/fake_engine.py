"""``FakeEngine``: an engine without a backend, for the tests of PAME and of hosts that embed it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from artifacts import EngineError, EngineKey, GraphSpec, UsageError
from engines.host.buffer_checks import check_host_buffers, view_graph
from engines.protocols import Buffer, Execution

Outputs = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


class FakeEngine:
    """Deterministic, with programmable outputs, times and faults.

    Args:
        graph: the interface that it has.
        max_batch_size: the most rows that it takes.
        batch_sizes: the only batch sizes that it takes; () for any up to ``max_batch_size``.
        outputs: name -> array (B, ...) of every input to name -> array (B, ...) of every output. By default
            ``default_outputs``.
        pause: called with the batch size of every run, to let its time pass: ``lambda rows: time.sleep(rows / 1000)``,
            or a fake clock that moves on. By default no time passes.
        faults: number of a run, counted from 0 over the engine's life -> the error that it raises instead of running.

    Attributes:
        batches: the batch size of every run so far, failed ones included.

    Raises:
        UsageError: a batch size below 1 or above ``max_batch_size``.
    """

    def __init__(
        self,
        graph: GraphSpec,
        *,
        max_batch_size: int = 32,
        batch_sizes: Sequence[int] = (),
        outputs: Outputs | None = None,
        pause: Callable[[int], None] | None = None,
        faults: Mapping[int, Exception] | None = None,
    ) -> None:
        if max_batch_size < 1 or any(not 1 <= size <= max_batch_size for size in batch_sizes):
            raise UsageError(f"FakeEngine: batch sizes {tuple(batch_sizes)} must lie within 1 to {max_batch_size}")
        self._graph = graph
        self._key = EngineKey(
            onnx_digest="0" * 64,
            backend="fake",
            backend_version="1",
            device="cpu",
            precision="float32",
            batch_sizes=tuple(batch_sizes),
            max_batch_size=max_batch_size,
            options={},
            lengths=graph.lengths,
        )
        self._outputs = outputs
        self._pause = pause or (lambda _: None)
        self._faults = dict(faults or {})
        self._closed = False
        self.batches: list[int] = []

    @property
    def key(self) -> EngineKey:
        return self._key

    @property
    def graph(self) -> GraphSpec:
        return self._graph

    def bind(self, buffers: Mapping[str, Buffer]) -> Execution:
        """As ``Engine.bind``, with the same checks as a real engine on the host."""
        self._check_open()
        graph = view_graph(self._graph, self._key, buffers)
        bound, rows = check_host_buffers(graph, self._key, buffers)

        def execute() -> None:
            self._check_open()
            self.batches.append(rows)
            fault = self._faults.get(len(self.batches) - 1)
            if fault is not None:
                raise fault
            self._pause(rows)
            inputs = {spec.name: bound[spec.name] for spec in graph.inputs}
            made = default_outputs(graph, inputs) if self._outputs is None else self._outputs(inputs)
            for spec in graph.outputs:
                if spec.name not in made:
                    raise EngineError(f"{self._graph.name}: the fake's outputs lack '{spec.name}'; return every output")
                bound[spec.name][...] = made[spec.name]

        return execute

    def close(self) -> None:
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError(f"{self._graph.name}: the engine is closed; open it again")


def default_outputs(graph: GraphSpec, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns outputs, each row of which depends on every value of the same row of the inputs and on nothing else.

    An output's row is a ramp that starts at the mean over the row of every input; the confidence is the fraction
    of ten times that mean, so that it lies in [0, 1) and differs from row to row.
    """
    rows = len(next(iter(inputs.values())))
    means = sum((array.reshape(rows, -1).astype(np.float64).mean(axis=1) for array in inputs.values()), np.zeros(rows))
    made = {}
    for spec in graph.outputs:
        ramp = np.arange(int(np.prod(spec.row_shape, dtype=np.int64)), dtype=np.float64).reshape(spec.row_shape)
        value = np.mod(means * 10, 1.0) if spec.name == graph.confidence else means
        made[spec.name] = (value.reshape(rows, *[1] * ramp.ndim) + ramp).astype(spec.dtype)
    return made

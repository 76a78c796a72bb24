"""Rows about the cost of a launch: what the host pays for a kernel, a captured graph, a run of a one-node engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from artifacts import TensorSpec
from benchmarks.gpu.record import Record
from benchmarks.gpu.stages import CUDA_BACKEND, Setting


def add_launch_rows(record: Record, setting: Setting) -> None:
    """Adds one row: microseconds of the host per launch, and per launch with the wait for it."""
    record.attempt("the cost of a launch", partial(_measure, setting))


def _measure(setting: Setting) -> dict[str, Any]:
    from engines import open_device
    from engines.gpu.driver import call
    from engines.gpu.graphs import run_and_capture

    device: Any = open_device(CUDA_BACKEND)
    try:
        rows = 32
        buffer = device.allocate(TensorSpec(name="x", dtype="float32", row_shape=(1024,)), rows)
        half = device.allocate(TensorSpec(name="c", dtype="float32", row_shape=()), rows)
        device.upload((np.arange(rows) % 2).astype(np.float32), half)
        cuda = device.cuda
        fill = partial(call, "cuMemsetD8Async", buffer.pointer, 0, buffer.nbytes)
        graph = run_and_capture(cuda, lambda stream: fill(stream), what="a memset")
        calls: dict[str, Callable[[], object]] = {
            "one memset": lambda: fill(cuda.stream_handle),
            "rows split, and the count read": lambda: device.split_rows(
                rows, confidence=half, threshold=0.5, carried=[buffer]
            ),
        }
        if graph is not None:
            calls["a graph of one memset"] = graph.launch
        return {"host_us": {name: _time(run, device.synchronize, setting) for name, run in calls.items()}}
    finally:
        device.close()


def _time(run: Callable[[], object], wait: Callable[[], None], setting: Setting) -> dict[str, float]:
    """Returns the median microseconds of the host for calls in a row, and for a call with the wait behind it."""
    repeats = setting.choose(500, 5)
    for _ in range(3):
        run()
    wait()
    spent: list[float] = []
    waited: list[float] = []
    for _ in range(repeats):
        started = perf_counter()
        run()
        spent.append(perf_counter() - started)
    wait()
    for _ in range(repeats):
        started = perf_counter()
        run()
        wait()
        waited.append(perf_counter() - started)
    return {"call": float(np.median(spent)) * 1e6, "call_and_wait": float(np.median(waited)) * 1e6}

"""Part times: how long the engines of some graphs take on this machine, before it is known what will be deployed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from artifacts import GraphSpec
from calibration.tracing.all_exits import EngineChoice
from engines import Buffer, BuildOptions, DeviceOptions, ensure_engine, open_device, open_engine, share_scratch

TIMED_ROWS = 8
_MIN_ROUNDS = 3
_MAX_ROUNDS = 15
_BUDGET_S = 4.0


def time_parts(
    parts: Sequence[tuple[Path, GraphSpec]], cache: Path, engine: EngineChoice,
    *, clock: Callable[[], float] = time.perf_counter,
) -> list[float]:  # fmt: skip
    """Times graphs one after the other, again and again, so that a slow moment of the machine affects all alike.

    Args:
        parts: file and interface of each; one that reads what an earlier one wrote comes behind it.
        cache: where their engines are built; they are for ``TIMED_ROWS`` rows and of no use later.
        engine: backend and threads.
        clock: seconds.

    Returns:
        The median time of each in milliseconds, for a batch of ``TIMED_ROWS`` rows.
    """
    share_scratch()
    with ExitStack() as stack:
        device = open_device(engine.backend, DeviceOptions(kernel_folder=cache))
        stack.callback(device.close)
        buffers: dict[str, Buffer] = {}
        runs = []
        for path, graph in parts:
            folder = ensure_engine(
                path, graph, cache, backend=engine.backend, options=BuildOptions(max_batch_size=TIMED_ROWS)
            )
            opened = open_engine(folder, graph, threads=engine.threads, device=device)
            stack.callback(opened.close)
            tensors = {tensor.name: tensor for tensor in (*graph.inputs, *graph.outputs)}
            for name, tensor in tensors.items():
                if name not in buffers:
                    buffers[name] = device.allocate(tensor, TIMED_ROWS)
            runs.append(opened.bind({name: buffers[name] for name in tensors}))
        seconds: list[list[float]] = []
        began = clock()
        while len(seconds) < _MIN_ROUNDS or (len(seconds) < _MAX_ROUNDS and clock() - began < _BUDGET_S):
            seconds.append([])
            for run in runs:
                start = clock()
                run()
                if device.bind_early:
                    device.synchronize()
                seconds[-1].append(clock() - start)
    return [float(value) * 1000 for value in np.median(seconds[1:], axis=0)]  # the first round warms up

"""Whole networks timed in turns, on whatever engines: how their times compare at one and the same moment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts import GraphSpec, Model
from engines import BuildOptions, DeviceOptions, ensure_engine, open_device, open_engine
from planner.measure.timing import Clock, EngineSettings

_MIN_ROUNDS, _MAX_ROUNDS, _BUDGET_S = 5, 25, 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeNetwork:
    """A network to time: the model folder and the graph in it, its engine, and the cache that the engine is in."""

    model: Model
    graph: GraphSpec
    settings: EngineSettings
    cache: Path


def time_whole_networks(
    networks: Sequence[WholeNetwork], batch_size: int, *, clock: Clock = time.perf_counter
) -> list[float]:
    """Returns the median milliseconds of a batch through each network.

    A machine is faster at some times than at others, and each network's own times were taken at another time. Here
    they take turns, so that all had the same.

    Args:
        networks: on any backends.
        batch_size: rows.
        clock: seconds.
    """
    with ExitStack() as stack:
        runs = []
        for network in networks:
            graph, settings = network.graph, network.settings
            device = open_device(settings.backend, DeviceOptions(index=settings.device, kernel_folder=network.cache))
            stack.callback(device.close)
            options = BuildOptions(max_batch_size=batch_size, profiles=settings.profiles)
            folder = ensure_engine(
                network.model.path(graph), graph, network.cache, backend=settings.backend, options=options
            )
            engine = open_engine(folder, graph, threads=settings.threads, device=device)
            stack.callback(engine.close)
            tensors = [tensor.at_length(graph.lengths[-1]) if tensor.length_axes else tensor
                       for tensor in (*graph.inputs, *graph.outputs)]  # fmt: skip
            buffers = {tensor.name: device.allocate(tensor, batch_size) for tensor in tensors}
            for spec in tensors[: len(graph.inputs)]:
                device.upload(np.ones((batch_size, *spec.row_shape), spec.dtype), buffers[spec.name])
            runs.append((engine.bind(buffers), device.synchronize))
        taken: list[list[float]] = []
        began = clock()
        while len(taken) < _MIN_ROUNDS or (len(taken) < _MAX_ROUNDS and clock() - began < _BUDGET_S):
            taken.append([])
            for run, wait in runs:
                start = clock()
                run()
                wait()
                taken[-1].append((clock() - start) * 1000)
    found: list[float] = np.median(taken[1:], axis=0).tolist()  # the first round warms up
    return found

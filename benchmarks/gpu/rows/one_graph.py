"""Rows about the chain as one CUDA graph: answers, time beside the stages' own, and what the host still does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any, Literal

import numpy as np

from artifacts import EngineError, GraphSpec
from benchmarks.gpu.nets.subjects import EXITS, FULL, STAY, Subject, time_in_turns
from benchmarks.gpu.rows.chain import Job, count_calls, host_answers
from benchmarks.gpu.stages import Setting
from engines import BuildOptions, DeviceOptions, ensure_engine, open_device, open_engine

CHAIN: Literal["chain"] = "chain"


def add_one_graph_rows(job: Job, sizes: Sequence[int]) -> None:
    """Adds, per batch size, times of the chain as one graph and stage by stage, and the driver calls of a batch."""
    with ExitStack() as stack:
        opened = job.record.attempt(f"{job.name}: one graph: open", partial(_open, job, stack), needs_s=5)
        if opened is None:
            return
        for size in sizes:
            compare = partial(_compare, job, opened, size)
            job.record.attempt(f"{job.name}: one graph, batches of {size}", compare, needs_s=job.setting.choose(5, 1))
        calls = partial(count_calls, opened[f"{EXITS}, one graph"], job.subject.batch(sizes[0]))
        job.record.attempt(f"{job.name}: one graph: driver calls, a batch of {sizes[0]}", calls)


def _open(job: Job, stack: ExitStack) -> dict[str, Any]:
    """Opens both ways as one graph and stage by stage, and the whole network; fails where nothing was captured."""
    opened = {}
    for way in (EXITS, STAY, FULL):
        opened[f"{way}, one graph"] = job.open(stack, ways=(way,), cuda_graphs=CHAIN)[way]
        opened[f"{way}, stage by stage"] = job.open(stack, ways=(way,))[way]
    if not all(runtime.chain_captured for name, runtime in opened.items() if name.endswith("one graph")):
        raise RuntimeError("a chain was not captured; the log has the driver's words")
    return opened


def _compare(job: Job, opened: dict[str, Any], size: int) -> dict[str, Any]:
    batch = job.subject.batch(size)
    one, many = (opened[f"{EXITS}, {how}"].run(batch) for how in ("one graph", "stage by stage"))
    difference = float(np.abs(host_answers(one) - host_answers(many)).max())
    serves = {name: runtime.run for name, runtime in opened.items()}
    times = time_in_turns(serves, batch, rounds=job.setting.choose(300, 3), budget_s=job.setting.choose(3, 1))
    rounds = job.setting.choose(50, 2)
    gpu_ms = {
        name: float(np.median([runtime.run(batch).engine_ms for _ in range(rounds)]))
        for name, runtime in opened.items()
    }
    entering = [size, *(int((one.exit_index > stage).sum()) for stage in range(len(job.subject.spec.stages) - 1))]
    found: dict[str, Any] = {
        "ways": times, "gpu_ms": gpu_ms, "exits_equal": bool(np.array_equal(one.exit_index, many.exit_index)),
        "worst_difference": difference, "rows_that_enter": entering,
    }  # fmt: skip
    for way, rows in ((EXITS, entering), (STAY, [size] * len(entering))):
        alone = [
            time_captured(job.subject, graph, job.setting, job.backend, count)["graph_ms"]
            for graph, count in zip(job.subject.spec.stages, rows, strict=True)
            if count
        ]
        found[f"engines_ms_{way}"] = alone
        found[f"graph_over_engines_{way}"] = gpu_ms[f"{way}, one graph"] / sum(alone)
    return found


def time_captured(subject: Subject, graph: GraphSpec, setting: Setting, backend: str, size: int) -> dict[str, Any]:
    """Captures one run of an engine on the device's own stream, replays it, compares answers, and times it.

    Returns:
        ``graph_ms`` and ``plain_ms``: medians by the GPU's own clock, one replay or run at a time.

    Raises:
        EngineError: it cannot be captured.
        ArithmeticError: the replay answers otherwise, so not all of it was.
    """
    from engines.gpu.driver import call, load_driver

    onnx, options = subject.folder / graph.file, BuildOptions(max_batch_size=size)
    folder = ensure_engine(onnx, graph, setting.scratch / "captured", backend=backend, options=options)
    device: Any = open_device(backend, DeviceOptions(cuda_graphs=False))
    with ExitStack() as stack:
        stack.callback(device.close)
        engine = open_engine(folder, graph, threads=1, device=device)
        stack.callback(engine.close)
        buffers = {spec.name: device.allocate(spec, size) for spec in (*graph.inputs, *graph.outputs)}
        batch = subject.batch(size)
        for spec in graph.inputs:
            noise = np.random.default_rng(0).standard_normal((size, *spec.row_shape)).astype(spec.dtype)
            device.upload(batch.get(spec.name, noise), buffers[spec.name])
        run = engine.bind(buffers)
        for _ in range(3):
            run()
        answer, stream = buffers[graph.answers[0]], device.cuda.stream
        wanted = device.download(answer, range(size))
        call("cuStreamBeginCapture", stream, load_driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED)
        try:
            run()
        except EngineError:
            with suppress(EngineError):  # the first error is the one that says why
                call("cuStreamEndCapture", stream)
            raise
        executable = call("cuGraphInstantiate", call("cuStreamEndCapture", stream), 0)
        device.upload(np.zeros_like(wanted), answer)
        call("cuGraphLaunch", executable, stream)
        worst = float(np.abs(device.download(answer, range(size)) - wanted).max())
        if not worst <= 1e-3 * float(np.abs(wanted).max()):
            raise ArithmeticError(f"the replayed graph answers otherwise, by {worst}: not all was captured")
        rounds = setting.choose(50, 2)
        return {
            "worst_difference": worst,
            "graph_ms": _time(device, lambda: call("cuGraphLaunch", executable, stream), rounds),
            "plain_ms": _time(device, run, rounds),
        }


def _time(device: Any, work: Any, rounds: int) -> float:
    spent = []
    for _ in range(rounds):
        started = device.mark()
        work()
        spent.append(device.seconds_between(started, device.mark()) * 1e3)
    return float(np.median(spent))

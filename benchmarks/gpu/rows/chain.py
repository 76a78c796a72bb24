"""Rows about a chain of stages on a backend: its answers against the processor's, its speed, the host's waits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from benchmarks.gpu.environment import load_cuda_libraries
from benchmarks.gpu.nets.subjects import EXITS, STAY, WAYS, Batch, Subject, publish_bundle, time_in_turns
from benchmarks.gpu.record import Record
from benchmarks.gpu.stages import Setting
from engines import DEFAULT_BACKEND
from runtime import Result, Runtime

WAITS = frozenset({"cuEventSynchronize", "cuStreamSynchronize", "cuCtxSynchronize"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One network on one backend, to be measured.

    Attributes:
        record: takes the rows.
        setting: how the stage runs.
        subject: the network.
        backend: of ``engines.BACKENDS``.
        max_batch_size: the largest batch.
    """

    record: Record
    setting: Setting
    subject: Subject
    backend: str
    max_batch_size: int = 32

    @property
    def name(self) -> str:
        """What every row of the job begins with."""
        return f"{self.subject.name} on {self.backend}"

    @property
    def folder(self) -> Path:
        """Where its bundles and engines lie."""
        return self.setting.scratch / "bundles"

    def open(
        self,
        stack: ExitStack,
        *,
        ways: Sequence[str] = WAYS,
        backend: str = "",
        cuda_graphs: bool | Literal["chain"] = True,
    ) -> dict[str, Runtime]:
        """Builds and opens the subject's bundles, by way (``subjects.WAYS``); ``stack`` closes them."""
        opened = {}
        for way in ways:
            bundle = publish_bundle(
                self.subject, backend or self.backend, self.folder, way=way, max_batch_size=self.max_batch_size
            )
            runtime = Runtime.load(bundle, cuda_graphs=cuda_graphs, kernel_folder=self.folder)
            opened[way] = stack.enter_context(runtime)
        return opened


def measure_chain(job: Job, *, tolerance: float) -> None:
    """Adds every row about one subject's chain on one backend.

    Args:
        job: the subject and the backend.
        tolerance: by how much an answer may differ from the processor's, relative to the largest of its batch.
    """
    record, largest = job.record, job.max_batch_size
    sizes = tuple(sorted({largest, max(1, largest // 4), 1}, reverse=True))
    record.attempt(f"{job.name}: CUDA libraries", load_cuda_libraries)
    with ExitStack() as stack:
        open_cpu = partial(job.open, stack, ways=(EXITS,), backend=DEFAULT_BACKEND)
        cpu = record.attempt(f"{job.subject.name} on {DEFAULT_BACKEND}: open", open_cpu)
        opened = record.attempt(f"{job.name}: build and open", partial(job.open, stack))
        if opened is None:
            return
        if cpu is not None:
            compare_answers(job, opened[EXITS], cpu[EXITS], (*sizes, 3), tolerance=tolerance)
        for size in sizes[:2]:
            for way in (EXITS, STAY):
                count = partial(count_calls, opened[way], job.subject.batch(size))
                record.attempt(f"{job.name}: driver calls, {way}, a batch of {size}", count)
        time_ways(job, opened, sizes, budget_s=job.setting.choose(5, 1))
        if not job.setting.rehearsal:
            record.attempt(f"{job.name}: CUPTI", partial(profile_waits, opened[EXITS], job.subject.batch(largest)))


def compare_answers(job: Job, found: Runtime, wanted: Runtime, sizes: Sequence[int], *, tolerance: float) -> None:
    """Adds a row per batch size: the samples answered by both runtimes, row by row.

    A row of another exit counts as a flip; of the others the largest difference counts. More than one flip per
    hundred rows, or a difference above ``tolerance``, is an error.
    """
    rows = min(job.subject.rows, job.setting.choose(2_000, 2 * job.max_batch_size))
    for size in sizes:
        compare = partial(_compare, job.subject, found, wanted, size, rows=rows, tolerance=tolerance)
        job.record.attempt(f"{job.name}: answers, batches of {size}", compare, needs_s=2)


def _compare(
    subject: Subject, found: Runtime, wanted: Runtime, size: int, *, rows: int, tolerance: float
) -> dict[str, Any]:
    compared, flips, changed, worst, confidence = 0, 0, 0, 0.0, 0.0
    for start in range(0, rows - size + 1, size):
        batch = subject.batch(size, start)
        ours, theirs = found.run(batch), wanted.run(batch)
        same = ours.exit_index == theirs.exit_index
        compared, flips = compared + size, flips + int((~same).sum())
        answers, expected = host_answers(ours), host_answers(theirs)
        difference = np.abs(answers[same].astype(np.float64) - expected[same])
        scale = np.abs(expected).max() or 1.0
        worst = max(worst, float(difference.max(initial=0.0) / scale))
        confidence = max(confidence, float(np.abs(ours.confidence - theirs.confidence)[same].max(initial=0.0)))
        changed += int((answers.argmax(-1) != expected.argmax(-1))[same].sum())
    values = {
        "rows_compared": compared, "exit_flips": flips, "answers_changed": changed,
        "worst_relative_difference": worst, "worst_confidence_difference": confidence,
    }  # fmt: skip
    if flips > 0.01 * compared or not worst <= tolerance:
        raise ArithmeticError(f"answers are not those of the processor: {values}, allowed {tolerance}")
    return values


def host_answers(result: Result) -> np.ndarray:
    """Returns the answers of a network with one output, as numpy has them."""
    return cast("np.ndarray", result.outputs)


def time_ways(job: Job, opened: dict[str, Runtime], sizes: Sequence[int], *, budget_s: float, label: str = "") -> None:
    """Adds a row per batch size: the ways in turns, from host array to host array, and the overhead of the chain."""
    for size in sizes:
        time = partial(_time, job, opened, size, budget_s)
        job.record.attempt(f"{job.name}: {label}host to host, batches of {size}", time, needs_s=budget_s)


def _time(job: Job, opened: dict[str, Runtime], size: int, budget_s: float) -> dict[str, Any]:
    batch = job.subject.batch(size)
    serves: dict[str, Callable[[Batch], Result]] = {way: runtime.run for way, runtime in opened.items()}
    found: dict[str, Any] = {"ways": time_in_turns(serves, batch, rounds=job.setting.choose(300, 3), budget_s=budget_s)}
    if EXITS in opened:
        left = opened[EXITS].run(batch).exit_index
        found["left_at"] = np.bincount(left, minlength=len(job.subject.spec.stages)).tolist()
    for way in (EXITS, STAY):
        if way in opened:
            found[f"overhead_{way}"] = _overhead(opened[way], batch, rounds=job.setting.choose(50, 2))
    return found


def _overhead(runtime: Runtime, batch: Batch, *, rounds: int) -> dict[str, float]:
    """Returns batch time over time inside engines, each batch by itself."""
    results = [runtime.run(batch) for _ in range(rounds)]
    pairs = [(float(result.latency_ms.max()), result.engine_ms) for result in results]
    return {
        "batch_ms": float(np.median([batch_ms for batch_ms, _ in pairs])),
        "engine_ms": float(np.median([engine_ms for _, engine_ms in pairs])),
        "ratio": float(np.median([batch_ms / engine_ms for batch_ms, engine_ms in pairs if engine_ms > 0] or [0.0])),
    }


def count_calls(runtime: Runtime, batch: Batch) -> dict[str, Any]:
    """Returns the driver calls of our own layer in one batch, and how many of them make the host wait.

    What the backend calls by itself is not among them; ``profile_waits`` sees that.
    """
    from engines.gpu.driver import watch_calls

    runtime.run(batch)
    seen: Counter[str] = Counter()
    stop = watch_calls(lambda name: seen.update([name]))
    try:
        runtime.run(batch)
    finally:
        stop()
    return {"host_waits": sum(seen[name] for name in WAITS), "calls": dict(seen)}


def profile_waits(runtime: Runtime, batch: Batch, *, batches: int = 10) -> dict[str, Any]:
    """Returns the CUDA calls per batch that CUPTI sees, whoever makes them; needs a torch that is built for CUDA."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if not torch.cuda.is_available():
        raise RuntimeError("CUPTI is asked through torch, and this torch sees no GPU")
    runtime.run(batch)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        for _ in range(batches):
            runtime.run(batch)
    calls = {event.key: event.count / batches for event in found.key_averages() if event.key.startswith("cu")}
    return {
        "waits_per_batch": sum(count for name, count in calls.items() if "Synchronize" in name),
        "copies_per_batch": sum(count for name, count in calls.items() if "Memcpy" in name),
        "launches_per_batch": sum(count for name, count in calls.items() if "Launch" in name),
        "calls_per_batch": calls,
    }

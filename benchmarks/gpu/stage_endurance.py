"""Stage f: memory over ten thousand batches, two runtimes in two threads, torch in the same context."""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from benchmarks.gpu.environment import load_cuda_libraries
from benchmarks.gpu.nets.making import ensure_subject
from benchmarks.gpu.nets.subjects import EXITS, Batch
from benchmarks.gpu.record import Record
from benchmarks.gpu.rows.chain import Job, host_answers
from benchmarks.gpu.stages import CUDA_BACKEND, Setting
from runtime import Runtime

BATCHES = 10_000


def measure(record: Record, setting: Setting) -> None:
    """Measures the demo on ONNX Runtime's CUDA provider."""
    record.attempt("CUDA libraries", load_cuda_libraries)
    name = setting.demos[0][0]
    subject = record.attempt(f"{name}: get", partial(ensure_subject, name, setting))
    if subject is None:
        return
    job = Job(record=record, setting=setting, subject=subject, backend=CUDA_BACKEND,
              max_batch_size=setting.choose(32, 8))  # fmt: skip
    record.attempt(f"{job.name}: two runtimes, two threads", partial(_run_in_threads, job))
    record.attempt(f"{job.name}: torch in the same context", partial(_run_beside_torch, job))
    record.attempt(f"{job.name}: memory over {BATCHES:,} batches", partial(_watch_memory, job))


def _open(job: Job, stack: ExitStack) -> Runtime:
    return job.open(stack, ways=(EXITS,))[EXITS]


def _watch_memory(job: Job) -> dict[str, Any]:
    """Runs batches of all sizes, half of them with answers that stay on the GPU; a row per tenth."""
    with ExitStack() as stack:
        runtime, largest = _open(job, stack), job.max_batch_size
        batches = [job.subject.batch(size) for size in (largest, 1, max(1, largest // 4), largest)]
        for _ in range(job.setting.choose(50, 2)):
            _run_all(runtime, batches)
        first = _memory(runtime)
        total, done, began = job.setting.choose(BATCHES, 40), 0, monotonic()
        while done < total:
            if job.record.remaining_s < 3:
                job.record.add(
                    "memory: cut short", skipped=f"{done} of {total} batches, {job.record.remaining_s:.0f} s left"
                )
                break
            for _ in range(max(1, total // 10 // (2 * len(batches)))):
                _run_all(runtime, batches)
                done += 2 * len(batches)
            job.record.add("memory so far", batches=done, **_memory(runtime))
        last = _memory(runtime)
    growth = {name: last[name] - first[name] for name in first}
    return {"batches": done, "batch_ms": (monotonic() - began) / max(done, 1) * 1e3, "first": first, "growth": growth}


def _run_all(runtime: Runtime, batches: Sequence[Batch]) -> None:
    for batch in batches:
        runtime.run(batch)
        runtime.run(batch, on_device=True)


def _memory(runtime: Runtime) -> dict[str, int]:
    from engines.gpu.driver import call

    runtime.stats()  # counts what is pending, which would be objects otherwise
    gc.collect()
    free, total = call("cuMemGetInfo")
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    return {"gpu_used_bytes": int(total) - int(free), "resident_bytes": resident, "objects": sys.getallocatedblocks()}


def _run_in_threads(job: Job) -> dict[str, Any]:
    """Runs two runtimes from two threads each and compares every answer with the same batch's alone."""
    rounds = job.setting.choose(200, 4)
    with ExitStack() as stack:
        runtimes = [_open(job, stack) for _ in range(2)]
        batches = [job.subject.batch(job.max_batch_size, start) for start in (0, 11, 23, 37)]
        wanted = [host_answers(runtimes[0].run(batch)) for batch in batches]

        def work(index: int) -> int:
            wrong = 0
            for number in range(rounds):
                chosen = (index + number) % len(batches)
                found = host_answers(runtimes[index % 2].run(batches[chosen]))
                wrong += not np.allclose(found, wanted[chosen], rtol=1e-4, atol=1e-5)
            return wrong

        with ThreadPoolExecutor(4) as pool:
            wrong = sum(pool.map(work, range(4)))
    if wrong:
        raise ArithmeticError(f"{wrong} of {4 * rounds} batches were answered otherwise than alone")
    return {"batches": 4 * rounds, "wrong": wrong}


def _run_beside_torch(job: Job) -> dict[str, Any]:
    """Feeds a tensor from a stream of torch that is busy, takes answers back by DLPack, compares."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} sees no GPU: torch.cuda.is_available() is False")
    from engines.gpu.driver import call

    with ExitStack() as stack:
        runtime, batch = _open(job, stack), job.subject.batch(job.max_batch_size)
        wanted, context = host_answers(runtime.run(batch)), int(call("cuCtxGetCurrent"))
        stream, worst = torch.cuda.Stream(), 0.0
        for _ in range(20):
            with torch.cuda.stream(stream):
                noise = torch.randn(2048, 2048, device="cuda")
                for _ in range(10):
                    noise = noise @ noise / 2048
                inputs = {name: torch.from_numpy(array).to("cuda") + 0 for name, array in batch.items()}
                result = runtime.run(inputs, stream=stream, on_device=True)
            answers = torch.utils.dlpack.from_dlpack(result.outputs).cpu().numpy()
            worst = max(worst, float(np.abs(answers - wanted).max()))
        same = int(call("cuCtxGetCurrent")) == context
    if not same or worst > 1e-3 * float(np.abs(wanted).max()):
        raise ArithmeticError(f"beside torch: worst difference {worst}, context unchanged: {same}")
    return {"batches": 20, "worst_difference": worst, "context_unchanged": same}

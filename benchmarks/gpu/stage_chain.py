"""Stage b: the demo's chain on ONNX Runtime's CUDA provider, row by row against the processor, and its speed."""

from __future__ import annotations

from functools import partial

from benchmarks.gpu.nets.making import ensure_subject
from benchmarks.gpu.record import Record
from benchmarks.gpu.rows.chain import Job, measure_chain
from benchmarks.gpu.stages import CUDA_BACKEND, Setting


def measure(record: Record, setting: Setting) -> None:
    """Measures the demo in float32, then in float16."""
    for name, tolerance in setting.demos:
        subject = record.attempt(f"{name}: get", partial(ensure_subject, name, setting))
        if subject is not None:
            job = Job(
                record=record, setting=setting, subject=subject, backend=CUDA_BACKEND,
                max_batch_size=setting.choose(32, 8),
            )  # fmt: skip
            measure_chain(job, tolerance=tolerance)

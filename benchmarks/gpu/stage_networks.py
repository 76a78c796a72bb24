"""Stage d: ResNet-50 and an encoder of BERT-base's size, engine by engine and end to end.

The tail's curve is to be held against the paper's, for the share of a batch that goes on (25 / 50 / 75 %): ResNet-101
at batch 32 .38 / .59 / .84, BERT-base at batch 16 .57 / .66 / .83, OCRNet at batch 8 .27 / .52 / .77.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from benchmarks.gpu.environment import load_cuda_libraries
from benchmarks.gpu.nets.making import ensure_subject
from benchmarks.gpu.record import Record
from benchmarks.gpu.rows.chain import Job, time_ways
from benchmarks.gpu.rows.launches import add_launch_rows
from benchmarks.gpu.rows.times import show_matrix, show_tails, survivor_sizes, time_subject
from benchmarks.gpu.stages import CUDA_BACKEND, Setting

PAPER = {
    "ResNet-101, batch 32": (0.38, 0.59, 0.84),
    "OCRNet, batch 8": (0.27, 0.52, 0.77),
    "BERT-base, batch 16": (0.57, 0.66, 0.83),
}


def measure(record: Record, setting: Setting) -> None:
    """Measures engines first, then the chain end to end."""
    names = setting.networks or (("toy",) if setting.rehearsal else ("resnet50", "bert"))
    sizes = (8, 4) if setting.rehearsal else (32, 8, 128)
    record.note(paper=PAPER, batch_sizes=sizes)
    record.attempt("CUDA libraries", load_cuda_libraries)
    add_launch_rows(record, setting)
    jobs = []
    for name in names:
        subject = record.attempt(f"{name}: export", partial(ensure_subject, name, setting))
        if subject is not None:
            jobs.append(Job(record=record, setting=setting, subject=subject, backend=CUDA_BACKEND,
                            max_batch_size=max(sizes)))  # fmt: skip
            _time_engines(jobs[-1], sizes)
    for job in jobs:
        _time_end_to_end(job, sizes)


def _time_engines(job: Job, sizes: tuple[int, ...]) -> None:
    """Adds a row per batch size, and one with the whole matrix that they are read from."""
    time = partial(
        time_subject, job.subject, job.backend, job.setting, survivor_sizes(sizes), budget_s=job.setting.choose(8, 1)
    )
    itm = job.record.attempt(f"{job.name}: engines", time, needs_s=job.setting.choose(10, 1))
    if itm is None:
        return
    job.record.add(f"{job.name}: time matrix", **show_matrix(itm))
    for size in sizes:
        job.record.add(f"{job.name}: engines, batch {size}", **show_tails(itm, size, len(job.subject.spec.stages)))


def _time_end_to_end(job: Job, sizes: tuple[int, ...]) -> None:
    with ExitStack() as stack:
        opened = job.record.attempt(
            f"{job.name}: build and open", partial(job.open, stack), needs_s=job.setting.choose(8, 1)
        )
        if opened is not None:
            time_ways(job, opened, sizes, budget_s=job.setting.choose(2, 1))

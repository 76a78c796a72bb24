"""Rows of times: engine by engine and batch size by batch size, each call followed by a wait for the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from artifacts import InferenceTimeMatrix, ModelSpec
from benchmarks.gpu.nets.subjects import Subject
from benchmarks.gpu.rows.chain import Job
from benchmarks.gpu.stages import Setting
from planner.config import TimingConfig
from planner.measure.timing import EngineSettings, TimedGraph, time_graphs

SHARES = (0.25, 0.5, 0.75)


def time_subject(
    subject: Subject, backend: str, setting: Setting, sizes: Sequence[int], *, budget_s: float
) -> InferenceTimeMatrix:
    """Times the whole network, its stages, the gathers behind them and the exit heads alone."""
    spec, folder = subject.spec, subject.folder
    graphs = [TimedGraph(row="full", onnx=folder / spec.full.file, graph=spec.full)]
    for index, graph in enumerate(spec.stages):
        last = index == len(spec.stages) - 1
        read = {tensor.name for later in spec.stages[index + 1 :] for tensor in later.inputs}
        carried = tuple(tensor for tensor in (*graph.inputs, *graph.outputs) if tensor.name in read)
        graphs.append(TimedGraph(
            row=f"stage_{index}", onnx=folder / graph.file, graph=graph, gather=None if last else str(index),
            carried=() if last else carried,
        ))  # fmt: skip
    graphs += [
        TimedGraph(row=f"head_{index}", onnx=folder / graph.file, graph=graph) for index, graph in enumerate(spec.heads)
    ]
    config = TimingConfig(
        batch_sizes=tuple(sorted(set(sizes))), rounds=setting.choose(30, 3), warm_up=setting.choose(3, 1),
        budget_s=budget_s,
    )  # fmt: skip
    model = ModelSpec(name=subject.name, family="onnx", task="classification", full=spec.full)
    return time_graphs(graphs, model, setting.scratch / "timed", config, EngineSettings(backend=backend, threads=2))


def add_time_matrix(job: Job, sizes: Sequence[int], *, needs_s: float) -> None:
    """Adds the matrix as one row."""

    def measure() -> dict[str, Any]:
        return show_matrix(time_subject(job.subject, job.backend, job.setting, sizes, budget_s=0.6 * needs_s))

    job.record.attempt(f"{job.name}: time matrix up to {max(sizes)}", measure, needs_s=needs_s)


def show_matrix(itm: InferenceTimeMatrix) -> dict[str, Any]:
    """Returns a matrix as it is recorded: sizes, medians and interquartile ranges in milliseconds."""
    return {
        "batch_sizes": itm.batch_sizes, "median_ms": dict(itm.median_ms), "spread_ms": dict(itm.spread_ms),
        "timing_rounds": itm.environment.get("timing_rounds"),
    }  # fmt: skip


def survivor_sizes(batch_sizes: Sequence[int]) -> tuple[int, ...]:
    """Returns the batch sizes of the tail's curve: 1, and of each batch a quarter, half, three quarters and all."""
    shares = {max(1, round(share * size)) for share in (*SHARES, 1.0) for size in batch_sizes}
    return tuple(sorted({1, *shares}))


def show_tails(itm: InferenceTimeMatrix, batch_size: int, stages: int) -> dict[str, Any]:
    """Returns the time of everything behind each exit for a share of the batch, relative to the whole batch."""
    column = {size: index for index, size in enumerate(itm.batch_sizes)}
    tails = {}
    for exit_ in range(stages - 1):
        rows = [itm.row_ms(f"stage_{later}") for later in range(exit_ + 1, stages)]
        whole = sum(row[column[batch_size]] for row in rows)
        tails[f"behind exit {exit_}"] = {
            f"{share:.0%}": sum(row[column[max(1, round(share * batch_size))]] for row in rows) / whole
            for share in SHARES
        }
    full = itm.row_ms("full")[column[batch_size]]
    chained = sum(itm.row_ms(f"stage_{index}")[column[batch_size]] for index in range(stages))
    parts = {
        name: row[column[batch_size]] for name, row in itm.median_ms.items() if name.startswith(("head_", "gather_"))
    }
    return {
        "full_ms": full, "stages_ms": chained, "stages_over_full": chained / full, "tails": tails, "parts_ms": parts,
        "parts_over_full": {name: ms / full for name, ms in parts.items()},
    }  # fmt: skip

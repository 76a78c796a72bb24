"""Subjects: networks with two exits, cut into stages, as folders that one machine makes and another measures.

A subject's folder holds ``subject.json``, the ONNX files that it names, and ``samples.npz``: all that a stage of the
measurement needs, without torch. ``benchmarks.gpu.nets.making`` makes them; ``benchmarks.gpu.prepare`` does so ahead.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import numpy as np

from artifacts import (
    BUNDLE_JSON,
    BundleSpec,
    ExitPlan,
    GraphSpec,
    PlannedExit,
    PredictedLatency,
    StageSpec,
    new_artifact,
    read_json,
    write_json,
)
from engines import BuildOptions, ensure_engine, fixed_batch_sizes, run_graph

SUBJECT_JSON = "subject.json"
SAMPLES = "samples.npz"
FULL, EXITS, STAY = WAYS = ("full", "exits", "stay")
_ABOVE_ALL = 2.0  # no confidence reaches it

Batch = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectSpec:
    """What a subject's folder holds.

    Attributes:
        name: of the network.
        full: the whole network, with the confidence of its answers.
        stages: what is deployed; the last has no threshold.
        heads: the exit heads alone, in the order of the stages that contain them.
        thresholds: of the exits, one fewer than stages.
    """

    name: str
    full: GraphSpec
    stages: tuple[GraphSpec, ...]
    heads: tuple[GraphSpec, ...]
    thresholds: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """An opened subject: ``samples`` are its inputs by name, all with the same number of rows."""

    folder: Path
    spec: SubjectSpec
    samples: Batch

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def rows(self) -> int:
        return len(next(iter(self.samples.values())))

    def batch(self, rows: int, start: int = 0) -> dict[str, np.ndarray]:
        """Returns ``rows`` samples from ``start`` on, from the beginning again where they end."""
        chosen = np.arange(start, start + rows) % self.rows
        return {name: array[chosen] for name, array in self.samples.items()}


def write_subject(folder: Path, spec: SubjectSpec, samples: Batch) -> None:
    """Completes the folder of a subject whose ONNX files are in place; its JSON is written last."""
    np.savez(folder / SAMPLES, **samples)  # type: ignore[arg-type]
    write_json(folder / SUBJECT_JSON, spec)


def open_subject(folder: Path) -> Subject:
    """Opens a subject's folder; errors as ``read_json``."""
    spec = read_json(folder / SUBJECT_JSON, SubjectSpec)
    with np.load(folder / SAMPLES, allow_pickle=False) as stored:
        samples = {tensor.name: stored[tensor.name] for tensor in spec.full.inputs}
    return Subject(folder=folder, spec=spec, samples=samples)


def set_thresholds(folder: Path, spec: SubjectSpec, samples: Mapping[str, np.ndarray]) -> SubjectSpec:
    """Sets every threshold to the median confidence of some samples, by the processor."""
    known: dict[str, np.ndarray] = {name: array[:16] for name, array in samples.items()}
    found = []
    for graph in spec.stages[:-1]:
        known |= run_graph(folder / graph.file, {tensor.name: known[tensor.name] for tensor in graph.inputs})
        found.append(float(np.median(known[str(graph.confidence)])))
    return replace(spec, thresholds=tuple(found))


def publish_bundle(subject: Subject, backend: str, folder: Path, *, way: str = EXITS, max_batch_size: int = 32) -> Path:
    """Builds a subject's engines on this machine and publishes them as a bundle; returns its folder.

    Args:
        subject: the network.
        backend: of ``engines.BACKENDS``.
        folder: where the bundle and the cache of engines lie.
        way: ``full`` the whole network, ``exits`` the chain, ``stay`` the chain with thresholds that no row reaches.
        max_batch_size: the largest batch.

    Raises:
        EngineError, MissingExtraError: the backend is not here or refuses a graph.
    """
    spec = subject.spec
    graphs = (spec.full,) if way == FULL else spec.stages
    reached = tuple(_ABOVE_ALL for _ in spec.thresholds) if way == STAY else spec.thresholds
    thresholds = (None,) if way == FULL else (*reached, None)
    quarters = {math.ceil(max_batch_size * count / 4) for count in range(1, 5)}
    sizes = tuple(sorted({1, min(8, max_batch_size), *quarters}))
    wanted = BuildOptions(max_batch_size=max_batch_size, batch_sizes=sizes)
    options = replace(wanted, batch_sizes=fixed_batch_sizes(backend, wanted))
    target = folder / f"{subject.name}-{backend}-{way}"
    stages = []
    with new_artifact(target, kind="bundle") as staging:
        for graph, threshold in zip(graphs, thresholds, strict=True):
            onnx = subject.folder / graph.file
            built = ensure_engine(onnx, graph, folder / "engines", backend=backend, options=options)
            shutil.copytree(built, staging / "engines" / graph.name, copy_function=os.link)
            stages.append(StageSpec(
                graph=graph, engine=f"engines/{graph.name}", threshold=threshold,
                median_ms={str(size): 1.0 + size / max_batch_size for size in sizes},  # one run covers any batch
            ))  # fmt: skip
        write_json(staging / BUNDLE_JSON, _bundle_spec(subject, backend, stages, max_batch_size))
    return target


def _bundle_spec(subject: Subject, backend: str, stages: Sequence[StageSpec], max_batch_size: int) -> BundleSpec:
    nothing = PredictedLatency(full_ms=0, mean_ms=0, batch_ms=0, oracle_mean_ms=0)
    exits = tuple(
        PlannedExit(cut=stage.graph.name, threshold=stage.threshold, leaving_share=0.5, metric=1.0, arrival_ms=1.0)
        for stage in stages
        if stage.threshold is not None
    )
    plan = ExitPlan(
        model_digest="", trace_digest="", search="", tolerance=0, delta=None, batch_size=max_batch_size,
        backend=backend, threads=1, exits=exits, full_metric=1, predicted_metric=1, predicted=nothing,
    )  # fmt: skip
    full = subject.spec.full
    return BundleSpec(
        name=subject.name, task="classification", backend=backend, threads=2, max_batch_size=max_batch_size,
        inputs=full.inputs, outputs=tuple(full.output(name) for name in full.answers), stages=tuple(stages), plan=plan,
    )  # fmt: skip


def time_in_turns(
    serves: Mapping[str, Callable[[Batch], object]], batch: Batch, *, rounds: int, budget_s: float
) -> dict[str, dict[str, float]]:
    """Runs the same batch through all servers in turns, in both orders; milliseconds from call to answers.

    Args:
        serves: name -> what answers a batch.
        batch: inputs by name.
        rounds: how often each is called; fewer, but at least three, where ``budget_s`` is spent before.
        budget_s: seconds.
    """
    for serve in serves.values():
        for _ in range(3):
            serve(batch)
    spent: dict[str, list[float]] = {name: [] for name in serves}
    began = perf_counter()
    for number in range(rounds):
        if number >= 3 and perf_counter() - began > budget_s:
            break
        for name in list(serves)[:: 1 if number % 2 == 0 else -1]:
            started = perf_counter()
            serves[name](batch)
            spent[name].append((perf_counter() - started) * 1e3)
    return {
        name: {
            "median_ms": float(np.median(values)), "p99_ms": float(np.percentile(values, 99)),
            "iqr_ms": float(np.subtract(*np.percentile(values, (75, 25)))), "rounds": len(values),
        }
        for name, values in spent.items()
    }  # fmt: skip


def between_cuts(cuts: Sequence[str]) -> list[tuple[str | None, str | None]]:
    """Returns the bounds of the stages that some exits make."""
    return list(pairwise([None, *cuts, None]))

"""Measuring of a bundle against the full network of its run, on held-out data, in one interleaved run.

Both contenders run on the same backend with the same number of threads, in one process, batch by batch next to each
other and in alternating order (A B, B A ...), for several rounds after a warm-up, over the same batches in the same
seeded random order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import (
    Model,
    RunFolder,
    StaleArtifactError,
    Task,
    UsageError,
    environment_fingerprint,
    find_first_true,
    find_task,
    open_model,
    to_plain,
)
from calibration import DataSource, load_run_data
from engines import BuildOptions, DeviceOptions, Engine, ensure_engine, in_float32, open_engine
from runtime.bench.contenders import NO_EXIT_BATCHES, Contenders, Recording
from runtime.bench.figures import (
    compare_times,
    describe_exits,
    describe_latencies,
    describe_lengths,
    describe_times,
    divide,
    paired_ratio,
    replay_mean_ms,
    speedup_by_round,
)
from runtime.bench.held_out import calibration_digests, check_held_out
from runtime.bench.queries import Queries
from runtime.checks import check_task
from runtime.loading import OpenBundle, open_bundle
from runtime.remedy import bundle_remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """How to measure.

    Attributes:
        batch_size: queries per batch; ``None``: what the bundle was planned for.
        rounds: how often every batch goes through both contenders.
        threads: of each engine; ``None``: what the bundle was timed with.
        samples: how many of the test samples; ``None``: all.
        seed: decides the order in which they form batches.
        device: which GPU, for a bundle that runs on one, and how engines work there.
        task: grades the answers, where the bundle's task is not one of ``artifacts.TASKS``.
    """

    batch_size: int | None = None
    rounds: int = 5
    threads: int | None = None
    samples: int | None = None
    seed: int = 0
    device: DeviceOptions = field(default_factory=DeviceOptions)
    task: Task | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds", "threads", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: expected a number from 1")


def measure_bundle(
    run: RunFolder, bundle: Path, config: BenchConfig, *, data: DataSource | None = None,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> dict[str, Any]:  # fmt: skip
    """Measures a bundle against the full network of its run.

    Args:
        run: holds ``model/`` and the engine cache.
        bundle: the bundle's folder.
        config: how to measure.
        data: ``--data``; ``None``: what the run was calibrated on.
        track: passes the numbers of the rounds on one by one, to show how far the measurement is.

    Returns:
        The JSON object of the contract.

    Raises:
        UsageError: the batch size is more than the bundle takes, or the task is not the bundle's.
        StaleArtifactError: the bundle is of another model or machine, or has seen the test data.
        PameError: model, bundle or data cannot be used; the message says what to do.
    """
    with ExitStack() as stack:
        opened = open_bundle(bundle, threads=config.threads, device=config.device)
        stack.callback(opened.close)
        spec = opened.spec
        task = check_task(spec, config.task) or find_task(spec.task, spec.settings)
        batch_size = check_batch_size(config.batch_size, opened)
        model = open_model(run.model, remedy=run.remedy("export"))
        check_model(opened, model)
        samples = load_run_data(run, data)
        digests = calibration_digests(opened.artifact, run)
        held_out = check_held_out(digests, samples.digests(), where=str(bundle), remedy=bundle_remedy(bundle))
        queries = Queries(samples, batch_size=batch_size, count=config.samples, seed=config.seed)
        full = open_full(run, model, opened, threads=config.threads)
        stack.callback(full.close)
        contenders = stack.enter_context(Contenders(opened, full, batch_size=batch_size))
        recording = contenders.record(queries, task, track(range(config.rounds)))
        figures = describe_recording(recording, opened, batch_size, contenders.stage_costs_ms())
    return {
        "model": spec.name, "engine": spec.backend, "batch_size": batch_size, "samples": len(queries),
        "rounds": config.rounds, "threads": config.threads or spec.threads, "precision": model.spec.precision,
        **({"full_precision": spec.plan.against} if spec.plan.against else {}),
        **({} if spec.plan.batch_form is None else {"batch_form": spec.plan.batch_form.form or "stages"}),
        "metric_name": task.metric_name, "data": samples.name, "test_data": held_out,
        "bundle_digest": opened.artifact.digest, **figures, "environment": environment_fingerprint(),
    }  # fmt: skip


def open_full(run: RunFolder, model: Model, opened: OpenBundle, *, threads: int | None) -> Engine:
    """Opens the whole network on backend and device of the bundle, built like its stages, with the same threads; builds
    its engine if need be. It is the one that the plan's tolerance refers to: in float32, where the plan says so."""
    spec, key = opened.spec, opened.engine_sets[0].key
    graph, backend = model.spec.full, spec.backend
    if spec.plan.against:
        graph, backend = model.spec.reference or graph, in_float32(backend)
    folder = ensure_engine(
        model.path(graph), graph, run.engines, backend=backend,
        options=replace(BuildOptions.of(key), max_batch_size=spec.max_batch_size),
    )  # fmt: skip
    return open_engine(folder, graph, threads=threads or spec.threads, device=opened.device)


def check_batch_size(batch_size: int | None, opened: OpenBundle) -> int:
    """Returns the batch size to measure; one that the bundle does not take is a ``UsageError``."""
    largest, folder = opened.spec.max_batch_size, opened.artifact.folder
    if batch_size is not None and batch_size > largest:
        raise UsageError(
            f"--batch-size {batch_size}: {folder} was planned for batches up to {largest}. "
            f"Plan for larger ones with: {bundle_remedy(folder)} --batch-size {batch_size}"
        )
    return largest if batch_size is None else batch_size


def check_model(opened: OpenBundle, model: Model) -> None:
    """Raises ``StaleArtifactError`` when the bundle was planned for another model."""
    folder = opened.artifact.folder
    if opened.spec.plan.model_digest != model.digest:
        raise StaleArtifactError(
            f"{folder} was planned for model {opened.spec.plan.model_digest[:12]}, but {model.artifact.folder} is "
            f"{model.digest[:12]} now. Plan it again with: {bundle_remedy(folder)}"
        )


def describe_recording(
    recording: Recording, opened: OpenBundle, batch_size: int, stage_costs_ms: Sequence[np.ndarray]
) -> dict[str, Any]:
    """Returns the figures of the contract that come out of a recording."""
    plan, graded = opened.spec.plan, recording.graded
    lengths = opened.spec.lengths
    places = np.searchsorted(lengths, recording.batch_lengths) if lengths else None
    replay = functools.partial(replay_mean_ms, stage_cost_ms=stage_costs_ms, batch_size=batch_size, places=places)
    by_length = {
        "lengths": describe_lengths(
            lengths, recording.row_lengths, recording.batch_lengths, recording.full.batch_ms,
            recording.early_exit.batch_ms,
        )
    }  # fmt: skip
    full = describe_times(recording.full, None if graded.full is None else graded.full.metric())
    early = describe_times(recording.early_exit, None if graded.early is None else graded.early.metric())
    per_exit = describe_exits(
        plan.exits, recording.exit_index, graded.early, graded.agreement, recording.early_exit.latency_ms
    )
    return {
        "tolerance": plan.tolerance,
        "delta": plan.delta,
        "risk": plan.risk,
        "certificate": to_plain(plan.certificate),
        "exits": [planned.cut for planned in plan.exits],
        "thresholds": [planned.threshold for planned in plan.exits],
        "full": full,
        "early_exit": early,
        **compare_times(full, early),
        "exit_fractions": [exit_["share"] for exit_ in per_exit],
        "engine_ms": float(recording.engine_ms.mean()),
        "overhead_ratio": divide(float(recording.early_exit.batch_ms.sum()), float(recording.engine_ms.sum())),
        "predicted_mean_latency_ms": plan.predicted.mean_ms if batch_size == plan.batch_size else None,
        "replayed_mean_latency_ms": replay(recording.exit_index),
        "oracle_mean_latency_ms": replay(find_first_true(graded.exit_agreement >= 1)),
        "no_exit_ratio": paired_ratio(recording.no_exit_ms, recording.full.batch_ms[:, :NO_EXIT_BATCHES]),
        "agreement": float(graded.agreement.mean()),
        "speedup_mean_by_round": speedup_by_round(recording.full, recording.early_exit),
        "per_exit": per_exit,
        "latency_histogram": describe_latencies(recording.full, recording.early_exit),
        **(by_length if lengths else {}),
    }

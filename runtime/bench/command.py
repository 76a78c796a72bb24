"""``python -m runtime.bench``: the full network against the bundle, on held-out data, in one interleaved run.

A tool beside the embedded core, and the only module here that asks ``calibration`` for data. Both contenders run on the
same backend with the same number of threads, in one process, batch by batch next to each other and in alternating
order (A B, B A ...), for several rounds after a warm-up, over the same batches in the same seeded random order.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import (
    MANIFEST,
    Model,
    RunFolder,
    StaleArtifactError,
    UsageError,
    check_plot,
    environment_fingerprint,
    find_run,
    find_task,
    open_model,
    read_manifest,
    to_plain,
)
from artifacts.console import add_common_arguments, print_table, run_command, say, track
from calibration import Dataset, load_run_data
from engines import BuildOptions, DeviceOptions, Engine, ensure_engine, open_engine
from runtime.bench.contenders import NO_EXIT_BATCHES, Contenders, Recording
from runtime.bench.figures import (
    check_held_out,
    compare_timings,
    describe_exits,
    describe_latencies,
    describe_timings,
    divide,
    leave_when_right,
    paired_ratio,
    replay_mean_ms,
    speedup_by_round,
)
from runtime.bench.plot import draw_result
from runtime.loading import REMEDY, OpenBundle, open_bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchConfig:
    """How to measure.

    Attributes:
        batch_size: queries per batch; ``None``: what the bundle was planned for.
        rounds: how often every batch goes through both contenders.
        threads: of each engine; ``None``: what the bundle was timed with.
        samples: how many of the test samples; ``None``: all.
        seed: decides the order in which they form batches.
        device: the ordinal of the GPU, for a bundle that runs on one.
        cuda_graphs: whether engines on a GPU replay their work as CUDA graphs.
    """

    batch_size: int | None = None
    rounds: int = 5
    threads: int | None = None
    samples: int | None = None
    seed: int = 0
    device: int = 0
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds", "threads", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} {value}: expected a number from 1")


def make_parser() -> argparse.ArgumentParser:
    default = BenchConfig()
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench",
        description="Measure the full network against its bundle, on held-out data, in one interleaved run.",
    )
    add_common_arguments(parser)
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="another bundle than the run's own")
    parser.add_argument("--data", type=Path, metavar="DIR", help="your images: class folders or an .npz")
    parser.add_argument("--batch-size", type=int, help="queries per batch (default: what the bundle was planned for)")
    parser.add_argument("--rounds", type=int, default=default.rounds, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="of each engine (default: what the bundle was timed with)")
    parser.add_argument("--samples", type=int, help="how many test samples (default: all)")
    parser.add_argument("--device", type=int, default=default.device, help="ordinal of the GPU (default: %(default)s)")
    parser.add_argument("--no-cuda-graphs", action="store_true", help="have engines on a GPU enqueue their work anew")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw latency distributions and exit shares as a PNG")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(bench, make_parser().parse_args(argv))


def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the tables, draws the picture, and returns the result for ``--json``."""
    config = BenchConfig(
        batch_size=arguments.batch_size, rounds=arguments.rounds, threads=arguments.threads, samples=arguments.samples,
        device=arguments.device, cuda_graphs=not arguments.no_cuda_graphs,
    )  # fmt: skip
    if arguments.plot is not None:
        check_plot(arguments.plot)
    run = find_run_of(arguments.run, arguments.bundle)
    result = measure_bundle(run, arguments.bundle or run.bundle, config, data=arguments.data)
    print_result(result, to_stderr=arguments.json == "-")
    if arguments.plot is not None:
        draw_result(result, arguments.plot)
        say(f"drew {arguments.plot}")
    return result


def find_run_of(run: Path | None, bundle: Path | None) -> RunFolder:
    """Returns the run to measure in: the one that is named, or the one in which the bundle lies."""
    if run is None and bundle is not None and (bundle.parent / "model").is_dir():
        return RunFolder(root=bundle.parent)
    return find_run(run)


def measure_bundle(run: RunFolder, bundle: Path, config: BenchConfig, *, data: Path | None = None) -> dict[str, Any]:
    """Measures a bundle against the full network of its run.

    Args:
        run: holds ``model/`` and the engine cache.
        bundle: the bundle's folder.
        config: how to measure.
        data: ``--data``; ``None``: what the run was calibrated on.

    Returns:
        The JSON object of the contract.

    Raises:
        UsageError: the batch size is more than the bundle takes.
        StaleArtifactError: the bundle is of another model or machine, or has seen the test data.
        PameError: model, bundle or data cannot be used; the message says what to do.
    """
    device = DeviceOptions(index=config.device, cuda_graphs=config.cuda_graphs)
    with ExitStack() as stack:
        opened = open_bundle(bundle, threads=config.threads, device=device)
        stack.callback(opened.device.close)
        for engines in opened.engine_sets:
            stack.callback(engines.close)
        batch_size = check_batch_size(config.batch_size, opened)
        model = open_model(run.model, remedy="python -m export resnet --segments")
        check_model(opened, model)
        dataset = load_run_data(run, data)
        held_out = check_held_out(calibration_digests(opened, run), dataset.digests(), where=str(bundle))
        queries = Queries(dataset, batch_size=batch_size, samples=config.samples, seed=config.seed)
        full = open_full(run, model, opened, threads=config.threads)
        stack.callback(full.close)
        contenders = stack.enter_context(Contenders(opened, full, batch_size=batch_size))
        rounds = track(range(config.rounds), description="measuring", total=config.rounds)
        recording = contenders.record(queries.batch, queries.batch_count, rounds)
        exits = range(len(opened.spec.stages) - 1)
        exit_answers = [contenders.answers_of_exit(index, queries.batch, queries.batch_count) for index in exits]
        figures = describe_recording(recording, opened, queries, exit_answers, contenders.stage_costs_ms())
    return {
        "model": opened.spec.name, "engine": opened.spec.backend, "batch_size": batch_size,
        "samples": len(queries.rows), "rounds": config.rounds, "threads": config.threads or opened.spec.threads,
        "precision": model.spec.precision,
        "data": dataset.name, "test_data": held_out, "bundle_digest": opened.artifact.digest,
        **figures, "environment": environment_fingerprint(),
    }  # fmt: skip


def open_full(run: RunFolder, model: Model, opened: OpenBundle, *, threads: int | None) -> Engine:
    """Opens the whole network on backend and device of the bundle, built like its stages, with the same threads; builds
    its engine if need be."""
    graph, spec, key = model.spec.full, opened.spec, opened.engine_sets[0].key
    folder = ensure_engine(
        model.path(graph), graph, run.engines, backend=spec.backend,
        options=replace(BuildOptions.of(key), max_batch_size=spec.max_batch_size),
    )  # fmt: skip
    return open_engine(folder, graph, threads=threads or spec.threads, device=opened.device)


class Queries:
    """The test part of a data set in seeded random order, cut into batches; inputs are made batch by batch."""

    def __init__(self, dataset: Dataset, *, batch_size: int, samples: int | None, seed: int) -> None:
        test = dataset.split("test")
        if len(test) == 0:
            raise UsageError(f"{dataset.name} has no test part; name data that has one with --data")
        if samples is not None and samples > len(test):
            raise UsageError(f"--samples {samples}: {dataset.name} has {len(test)} test samples")
        self.rows = np.random.default_rng(seed).permutation(test)[:samples]
        self.labels = dataset.labels_of(self.rows) if dataset.labelled else None
        self.batch_size = batch_size
        self._dataset = dataset

    @property
    def batch_count(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def batch(self, index: int) -> np.ndarray:
        """Returns the inputs of one batch, (B, ...); the last may be smaller."""
        return self._dataset.inputs(self.rows[index * self.batch_size : (index + 1) * self.batch_size])


def check_batch_size(batch_size: int | None, opened: OpenBundle) -> int:
    """Returns the batch size to measure; one that the bundle does not take is a ``UsageError``."""
    largest = opened.spec.max_batch_size
    if batch_size is not None and batch_size > largest:
        raise UsageError(
            f"--batch-size {batch_size}: {opened.artifact.folder} was planned for batches up to {largest}. "
            f"Plan for larger ones with: {REMEDY} --batch-size {batch_size}"
        )
    return largest if batch_size is None else batch_size


def check_model(opened: OpenBundle, model: Model) -> None:
    """Raises ``StaleArtifactError`` when the bundle was planned for another model."""
    if opened.spec.plan.model_digest != model.digest:
        raise StaleArtifactError(
            f"{opened.artifact.folder} was planned for model {opened.spec.plan.model_digest[:12]}, but "
            f"{model.artifact.folder} is {model.digest[:12]} now. Plan it again with: {REMEDY}"
        )


def calibration_digests(opened: OpenBundle, run: RunFolder) -> dict[str, str]:
    """Returns the digests of the data that a bundle was made with: its own record, or that of the trace it names."""
    manifest = opened.artifact.manifest
    recorded = manifest.parameters.get("data")
    if isinstance(recorded, dict):
        return {str(name): str(digest) for name, digest in recorded.items()}
    if (run.trace / MANIFEST).is_file():
        trace = read_manifest(run.trace)
        if trace.digest == manifest.inputs.get("trace"):
            return dict(trace.inputs)
    return {}


def describe_recording(
    recording: Recording, opened: OpenBundle, queries: Queries, exit_answers: Sequence[tuple[np.ndarray, ...]],
    stage_costs_ms: Sequence[np.ndarray],
) -> dict[str, Any]:  # fmt: skip
    """Returns the figures of the contract that come out of a recording."""
    spec, plan = opened.spec, opened.spec.plan
    task = find_task(spec.task)
    full_metric, metric = (
        None if queries.labels is None else task.quality(answers, queries.labels)
        for answers in (recording.full_answers, recording.early_answers)
    )  # fmt: skip
    agreement = task.agreement(recording.early_answers, recording.full_answers)
    agreements = [task.agreement(answers, recording.full_answers) for answers in exit_answers]
    oracle = leave_when_right(np.array(agreements, np.bool_).reshape(len(agreements), len(agreement)))
    replay = functools.partial(replay_mean_ms, stage_cost_ms=stage_costs_ms, batch_size=queries.batch_size)
    full = describe_timings(recording.full, _mean(full_metric))
    early = describe_timings(recording.early_exit, _mean(metric))
    names = [planned.cut for planned in plan.exits]
    thresholds = [planned.threshold for planned in plan.exits]
    early_latency = recording.early_exit.latency_ms
    per_exit = describe_exits(names, thresholds, recording.exit_index, metric, agreement, early_latency)
    planned = queries.batch_size == plan.batch_size
    return {
        "tolerance": plan.tolerance,
        "delta": plan.delta,
        "risk": plan.risk,
        "certificate": to_plain(plan.certificate),
        "exits": names,
        "thresholds": thresholds,
        "full": full,
        "early_exit": early,
        **compare_timings(full, early),
        "exit_fractions": [one["share"] for one in per_exit],
        "engine_ms": float(recording.engine_ms.mean()),
        "overhead_ratio": divide(float(recording.early_exit.batch_ms.sum()), float(recording.engine_ms.sum())),
        "predicted_mean_latency_ms": plan.predicted.mean_ms if planned else None,
        "replayed_mean_latency_ms": replay(recording.exit_index),
        "oracle_mean_latency_ms": replay(oracle),
        "no_exit_ratio": paired_ratio(recording.no_exit_ms, recording.full.batch_ms[:, :NO_EXIT_BATCHES]),
        "agreement": float(agreement.mean()),
        "speedup_mean_by_round": speedup_by_round(recording.full, recording.early_exit),
        "per_exit": per_exit,
        "latency_histogram": describe_latencies(recording.full, recording.early_exit),
    }


def _mean(metric: np.ndarray | None) -> float | None:
    return None if metric is None else float(metric.mean(dtype=np.float64))


def print_result(result: dict[str, Any], *, to_stderr: bool = False) -> None:
    """Prints the tables for a person."""
    full, early = result["full"], result["early_exit"]
    rows = [
        ("metric", _number(full["metric"], 4), _number(early["metric"], 4), _times(result["metric_ratio"], 4)),
        ("answers as the full network", "-", f"{result['agreement']:.4f}", "-"),
        *(
            (label, f"{full[key]:.3f}", f"{early[key]:.3f}", _times(divide(full[key], early[key])))
            for label, key in (
                ("mean latency, ms", "mean_latency_ms"), ("p50 latency, ms", "p50_ms"), ("p99 latency, ms", "p99_ms"),
                ("whole batch, ms", "batch_ms"),
            )
        ),
        (
            "queries per second", f"{full['throughput_per_s']:.0f}", f"{early['throughput_per_s']:.0f}",
            _times(result["throughput_ratio"]),
        ),
    ]  # fmt: skip
    title = (
        f"{result['model']} on {result['engine']}, {result['threads']} threads: {result['samples']} test samples in "
        f"batches of {result['batch_size']}, {result['rounds']} rounds"
    )
    print_table(title, ["", "full", "early exit", "gain"], rows, to_stderr=to_stderr)
    exits = [
        (
            one["exit"], _number(one["threshold"], 3), f"{one['share']:.1%}", _number(one["metric"], 4),
            _number(one["agreement"], 4), _number(one["mean_latency_ms"], 3),
        )
        for one in result["per_exit"]
    ]  # fmt: skip
    columns = ["exit", "threshold", "leaving", "metric", "agreement", "latency, ms"]
    print_table("", columns, exits, to_stderr=to_stderr)
    predicted = _number(result["predicted_mean_latency_ms"], 3)
    print(
        f"mean latency predicted {predicted} ms, replayed {result['replayed_mean_latency_ms']:.3f} ms, "
        f"oracle {result['oracle_mean_latency_ms']:.3f} ms\n"
        f"engines {result['engine_ms']:.3f} ms of a batch (overhead {_times(result['overhead_ratio'], 3)}); "
        f"a batch that nobody leaves costs {result['no_exit_ratio']:.3f} of the full network",
        file=sys.stderr if to_stderr else sys.stdout,
    )


def _times(ratio: float | None, digits: int = 2) -> str:
    return "-" if ratio is None else f"{ratio:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

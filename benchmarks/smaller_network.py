"""Smaller networks without exits, as precise as the bundle: early exit has to beat those too.

    python benchmarks/smaller_network.py --run runs/resnet --json smaller.json

Every exit candidate makes such a network: cut off there, its exit head answers every query. Each of them, the full
network and the bundle answer the same batches of the test part in turns; every query of a network without exits waits
for its whole batch. The one to beat is the fastest that keeps the bundle's tolerance on the *calibrate* part.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from artifacts import Model, RunFolder, Trace, UsageError, environment_fingerprint, find_run, find_task, open_model
from artifacts.console import add_common_arguments, print_table, run_command, track
from calibration import EngineChoice, as_batch, ensure_trace, load_run_data
from engines import BuildOptions, ensure_engine, open_device, open_engine
from export import merge_stage
from runtime import Runtime
from runtime.bench.contenders import WholeNetwork

FULL, BUNDLE = "full network", "bundle"
Serve = Callable[[np.ndarray], tuple[np.ndarray, float]]


def open_networks(run: RunFolder, model: Model, runtime: Runtime, stack: ExitStack) -> dict[str, Serve]:
    """Returns the contenders by name; each answers a batch with (first output, milliseconds of the mean query)."""
    spec, folder = runtime.spec, Path(stack.enter_context(tempfile.TemporaryDirectory()))
    graphs = {FULL: (model.spec.full, model.path(model.spec.full))}
    for cut in model.spec.candidates:
        path = folder / f"{cut.name}.onnx"
        graphs[cut.name] = (merge_stage(model, after=None, until=cut.name, path=path), path)
    serves: dict[str, Serve] = {}
    device = open_device(spec.backend)
    stack.callback(device.close)
    for name, (graph, path) in graphs.items():
        options = BuildOptions(max_batch_size=spec.max_batch_size)
        built = ensure_engine(path, graph, run.engines, backend=spec.backend, options=options)
        engine = open_engine(built, graph, threads=spec.threads, device=device)
        stack.callback(engine.close)
        serves[name] = serve_whole(WholeNetwork(engine, spec.max_batch_size, device), graph.inputs[0].name)

    def serve_bundle(batch: np.ndarray) -> tuple[np.ndarray, float]:
        result = runtime.run(batch)
        return np.asarray(result.outputs), float(result.latency_ms.mean())

    return {**serves, BUNDLE: serve_bundle}


def serve_whole(network: WholeNetwork, name: str) -> Serve:
    """Returns a server whose every query waits for its batch."""

    def serve(batch: np.ndarray) -> tuple[np.ndarray, float]:
        started = perf_counter()
        answers = network.run({name: batch})
        return answers[0], (perf_counter() - started) * 1e3

    return serve


def measure(
    serves: dict[str, Serve], batches: Sequence[np.ndarray], rounds: int
) -> dict[str, tuple[np.ndarray, float]]:
    """Returns per contender its answers (N, classes) and the median over batches of the mean query's milliseconds."""
    answers: dict[str, list[np.ndarray]] = {name: [] for name in serves}
    spent: dict[str, list[float]] = {name: [] for name in serves}
    for batch in batches[:4]:
        for serve in serves.values():
            serve(batch)
    for number in track(range(rounds), description="measuring", total=rounds):
        for index, batch in enumerate(batches):
            order = list(serves.items())
            for name, serve in order if (index + number) % 2 == 0 else reversed(order):
                answer, ms = serve(batch)
                spent[name].append(ms)
                if number == 0:
                    answers[name].append(answer)
    return {name: (np.concatenate(answers[name]), float(np.median(spent[name]))) for name in serves}


def fastest_precise(trace: Trace, times_ms: dict[str, float], tolerance: float) -> str:
    """Returns the fastest network without exits that keeps the tolerance on the calibrate part."""
    required = (1 - tolerance) * trace.full_metric
    precise = [
        name
        for name, row in zip((*trace.exits, FULL), trace.metric, strict=True)
        if row.mean(dtype=np.float64) >= required
    ]
    return min(precise, key=times_ms.__getitem__)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the table and returns the result for ``--json``."""
    if arguments.rounds < 1:
        raise UsageError(f"--rounds {arguments.rounds}: expected at least 1")
    run = find_run(arguments.run)
    model = open_model(run.model, remedy=run.remedy("export"))
    samples = load_run_data(run)
    task = find_task(model.spec.task)
    with ExitStack() as stack:
        runtime = stack.enter_context(Runtime.load(run.bundle))
        spec = runtime.spec
        _, trace = ensure_trace(run, EngineChoice(backend=spec.backend, threads=spec.threads))
        rows = samples.indices_of("test")
        batches = [
            as_batch(samples.inputs(rows[start : start + spec.max_batch_size]))
            for start in range(0, len(rows), spec.max_batch_size)
        ]
        found = measure(open_networks(run, model, runtime, stack), batches, arguments.rounds)
    labels = samples.targets(rows)
    metric = {
        name: float(task.quality([answers], labels).mean(dtype=np.float64)) for name, (answers, _) in found.items()
    }
    times_ms = {name: ms for name, (_, ms) in found.items()}
    best = fastest_precise(trace, times_ms, spec.plan.tolerance)
    print_table(
        f"{model.spec.name}: the mean query in batches of {spec.max_batch_size}, {len(rows)} test samples, "
        f"{arguments.rounds} rounds; to beat: {best}",
        ["network", "metric", "mean latency, ms", "of the full network"],
        [[name, f"{metric[name]:.4f}", f"{ms:.3f}", f"{ms / times_ms[FULL]:.3f}"] for name, ms in times_ms.items()],
        to_stderr=arguments.json == "-",
    )
    return {
        "model": model.spec.name,
        "batch_size": spec.max_batch_size,
        "samples": len(rows),
        "rounds": arguments.rounds,
        "metric": metric,
        "mean_latency_ms": times_ms,
        "to_beat": best,
        "bundle_against_to_beat": times_ms[best] / times_ms[BUNDLE],
        "environment": environment_fingerprint(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python benchmarks/smaller_network.py", description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    return run_command(compare, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

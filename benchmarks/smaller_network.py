"""Smaller networks without exits, as precise as the bundle: early exit has to beat those too.

    python -m benchmarks.smaller_network --run runs/resnet --json smaller.json

Every exit candidate makes such a network: cut off there, its exit head answers every query. Each of them, the full
network and the bundle answer the same batches of the test part in turns; every query of a network without exits waits
for its whole batch. The one to beat is the fastest that keeps the bundle's tolerance on the *calibrate* part.
Beside each stands the fastest plan that keeps as much of the metric on that part, as the planner expects it (from the
times of the run, without a certificate): what exits give for the same loss.

Runs of images, masks, skeletons, and texts of one or several lengths.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from artifacts import (
    EXIT_PLAN_JSON,
    Answers,
    ExitPlan,
    Model,
    RunFolder,
    Task,
    Trace,
    UsageError,
    environment_fingerprint,
    find_run,
    find_task,
    open_model,
    read_json,
)
from artifacts.console import add_common_arguments, print_table, run_command, track
from calibration import EngineChoice, ensure_trace, load_run_data
from calibration.tracing.metrics import MetricSum, set_metrics
from engines import BuildOptions, ensure_engine, open_engine
from export import merge_stage
from planner.certify.evidence import risk_trace
from planner.search.searches import find_search
from planner.workflow.inputs import read_inputs
from planner.workflow.record import fresh_grids, open_plan, read_plan_config
from planner.workflow.searching import bound_no_exits, make_problem
from runtime import Runtime
from runtime.bench.contenders import WholeNetwork
from runtime.bench.queries import Queries
from runtime.loading import OpenBundle, open_bundle
from runtime.options import RuntimeOptions

FULL, BUNDLE = "full network", "bundle"
Batch = Mapping[str, np.ndarray]
Serve = Callable[[Batch], tuple[Answers, float]]


def open_networks(run: RunFolder, model: Model, opened: OpenBundle, stack: ExitStack) -> dict[str, Serve]:
    """Returns the contenders by name; each answers a batch with (outputs, milliseconds of the mean query)."""
    spec, folder = opened.spec, Path(stack.enter_context(tempfile.TemporaryDirectory()))
    graphs = {FULL: (model.spec.full, model.path(model.spec.full))}
    for cut in model.spec.candidates:
        path = folder / f"{cut.name}.onnx"
        graphs[cut.name] = (merge_stage(model, after=None, until=cut.name, path=path), path)
    serves: dict[str, Serve] = {}
    options = replace(BuildOptions.of(opened.engine_sets[0].key), max_batch_size=spec.max_batch_size)
    for name, (graph, path) in graphs.items():
        built = ensure_engine(path, graph, run.engines, backend=spec.backend, options=options)
        engine = open_engine(built, graph, threads=spec.threads, device=opened.device)
        stack.callback(engine.close)
        serves[name] = serve_whole(WholeNetwork(engine, spec.max_batch_size, opened.device, spec.sequence))
    watched = RuntimeOptions(drift=None)
    runtime = stack.enter_context(Runtime(spec, opened.engine_sets, opened.device, watched, opened.one_graph))

    def serve_bundle(batch: Batch) -> tuple[Answers, float]:
        result = runtime.run(batch)
        outputs = result.outputs if isinstance(result.outputs, tuple) else (result.outputs,)
        return [np.asarray(output) for output in outputs], float(result.latency_ms.mean())

    return {**serves, BUNDLE: serve_bundle}


def serve_whole(network: WholeNetwork) -> Serve:
    """Returns a server whose every query waits for its batch."""

    def serve(batch: Batch) -> tuple[Answers, float]:
        started = perf_counter()
        answers = network.run(batch)
        return answers, (perf_counter() - started) * 1e3

    return serve


def measure(serves: dict[str, Serve], queries: Queries, task: Task, rounds: int) -> dict[str, tuple[float, float]]:
    """Returns per contender its metric on all queries and the mean query's milliseconds, the median of the rounds."""
    metric = {name: MetricSum(task) for name in serves}
    spent = {name: np.zeros((rounds, len(queries))) for name in serves}
    for index in range(min(4, queries.batch_count)):
        for serve in serves.values():
            serve(queries.inputs(index))
    for number in track(range(rounds), description="measuring", total=rounds):
        for index in range(queries.batch_count):
            batch, targets = queries.inputs(index), queries.targets(index)
            rows = slice(index * queries.batch_size, (index + 1) * queries.batch_size)
            order = list(serves.items())
            for name, serve in order if (index + number) % 2 == 0 else reversed(order):
                answers, ms = serve(batch)
                spent[name][number, rows] = ms
                if number == 0 and targets is not None:
                    metric[name].add(answers, targets)
    return {name: (metric[name].value, float(np.median(spent[name].mean(axis=1)))) for name in serves}


def fastest_precise(trace: Trace, task: Task, times_ms: dict[str, float], tolerance: float) -> str:
    """Returns the fastest network without exits that keeps the tolerance on the calibrate part, of the best of them."""
    found = set_metrics(trace, task) or trace.metric.mean(axis=1, dtype=np.float64).tolist()
    metrics = dict(zip((*trace.exits, FULL), found, strict=True))
    required = (1 - tolerance) * metrics[FULL]
    return min((name for name, metric in metrics.items() if metric >= required), key=times_ms.__getitem__)


def plans_of_equal_metric(run: RunFolder) -> dict[str, float]:
    """Returns per candidate the mean latency of the fastest plan that loses no more of the metric on the calibrate part
    than the network that is cut off there; expected, of the full network's. A candidate that keeps nothing has none.
    """
    planned = open_plan(run)
    config = read_plan_config(planned.manifest, run.remedy("planner"))
    inputs = read_inputs(run).referring_to(config.certify.reference)
    plan = read_json(planned.path(EXIT_PLAN_JSON), ExitPlan)
    trace = risk_trace(inputs.trace, config.certify.risk).with_confidences(plan.confidences)
    costs, grids = inputs.costs(batch_size=config.batch_size, load=config.load), fresh_grids(config)
    found = {}
    for name, metric in zip(trace.exits, trace.metric.mean(axis=1, dtype=np.float64).tolist(), strict=False):
        tolerance = max(0.0, 1 - metric / trace.full_metric)
        if tolerance < 1:
            problem = make_problem(trace, costs, replace(config, tolerance=tolerance), grids)
            (result,) = find_search(config.search)(problem)
            best = bound_no_exits(problem, result).best
            found[name] = best.times.mean_ms / best.full_ms
    return found


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the table and returns the result for ``--json``."""
    if arguments.rounds < 1:
        raise UsageError(f"--rounds {arguments.rounds}: expected at least 1")
    run = find_run(arguments.run)
    model = open_model(run.model, remedy=run.remedy("export"))
    samples = load_run_data(run)
    if not samples.labelled:
        raise UsageError(f"{samples.name} has no labels: nothing tells how precise a smaller network is")
    task = find_task(model.spec.task, model.spec.settings)
    with ExitStack() as stack:
        opened = open_bundle(run.bundle)
        stack.callback(opened.close)
        spec = opened.spec
        _, trace = ensure_trace(run, EngineChoice(backend=spec.backend, threads=spec.threads))
        queries = Queries(samples, batch_size=spec.max_batch_size, count=arguments.samples, seed=0)
        found = measure(open_networks(run, model, opened, stack), queries, task, arguments.rounds)
    metric = {name: value for name, (value, _) in found.items()}
    times_ms = {name: ms for name, (_, ms) in found.items()}
    best = fastest_precise(trace, task, times_ms, spec.plan.tolerance)
    equal = plans_of_equal_metric(run)
    print_table(
        f"{model.spec.name}: the mean query in batches of {spec.max_batch_size}, {len(queries)} test samples, "
        f"{arguments.rounds} rounds; to beat: {best}",
        ["network", task.metric_name, "mean latency, ms", "of the full network", "a plan of its metric, expected"],
        [
            [name, f"{metric[name]:.4f}", f"{ms:.3f}", f"{ms / times_ms[FULL]:.3f}",
             f"{equal[name]:.3f}" if name in equal else "-"]
            for name, ms in times_ms.items()
        ],
        to_stderr=arguments.json == "-",
    )  # fmt: skip
    return {
        "model": model.spec.name,
        "batch_size": spec.max_batch_size,
        "samples": len(queries),
        "rounds": arguments.rounds,
        "metric": metric,
        "mean_latency_ms": times_ms,
        "plan_of_equal_metric": equal,
        "to_beat": best,
        "bundle_of_to_beat": times_ms[BUNDLE] / times_ms[best],
        "environment": environment_fingerprint(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.smaller_network", description=__doc__.splitlines()[0])
    add_common_arguments(parser)
    parser.add_argument("--samples", type=int, metavar="N", help="of the test part (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    return run_command(compare, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

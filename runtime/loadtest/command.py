"""``python -m runtime.loadtest``: the goodput of a running host by policy, beside what the simulation expects."""

from __future__ import annotations

import argparse
import asyncio
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import BundleSpec, RunFolder, UsageError, check_plot, environment_fingerprint, find_task
from artifacts.console import add_common_arguments, print_table, run_command, say, track
from calibration import DATA_HELP, load_run_data
from engines import DeviceOptions
from runtime.bench.command import find_run_of
from runtime.bench.held_out import calibration_digests, check_held_out
from runtime.bench.queries import Queries
from runtime.hosting.options import HostOptions
from runtime.loading import open_bundle, without_leaving
from runtime.loadtest.contenders import Contender, ContenderPlan, open_contender
from runtime.loadtest.goodput import (
    LoadConfig,
    QuerySet,
    begin_search,
    describe_search,
    measure_request_s,
    search_goodput,
)
from runtime.loadtest.mlperf import OFFLINE, SERVER, Scenario, run_scenario
from runtime.loadtest.plot import draw_goodput
from runtime.loadtest.search import Search
from runtime.options import RuntimeOptions
from runtime.remedy import bundle_remedy
from runtime.runtime import Runtime
from runtime.scheduling.decisions import parse_policy
from runtime.simulate.arrivals import ARRIVALS, make_arrivals
from runtime.simulate.sources import check_one_length, trace_exits

_POLICIES = "full,chain,pooled,auto"
_BATCHES_AT_ONCE = 4
_LEAST_BOUNDS = 20  # that a stream lasts: one at 5 % more than can be kept up with misses its bound by then


def make_parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    default = LoadConfig()
    parser = argparse.ArgumentParser(
        prog="python -m runtime.loadtest",
        description="Load a host in this process with requests of one held-out row, which do not wait for answers: "
        "the highest rate at which 99 %% are answered within a bound, policy against policy in turns, with the quality "
        "of the answers and the simulated rate beside it.",
    )
    add_common_arguments(parser)
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="another bundle than the run's own")
    parser.add_argument("--data", metavar="DATA", help=f"where test samples come from; {DATA_HELP}")
    parser.add_argument("--samples", type=int, default=1024, help="different queries (default: %(default)s)")
    parser.add_argument(
        "--arrivals", default=default.arrivals, metavar="KIND|FILE",
        help=f"{', '.join(ARRIVALS)}, or a .npy file of gaps in seconds (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--slo-ms", default="25", metavar="LIST", help="bounds (default: %(default)s)")
    parser.add_argument("--policies", default=_POLICIES, metavar="LIST", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="of a stream (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=default.repeats,
        help="streams at a rate, which passes with the median one (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=default.steps, help="rates per policy (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="of each engine (default: as the bundle was timed)")
    parser.add_argument("--max-waiting-rows", type=int, help="default: four of the largest batches")
    parser.add_argument(
        "--overhead-ms", type=float, default=0.15,
        help="of a stage run besides its engines, for the simulation (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=default.seed, help="default: %(default)s")
    parser.add_argument("--mlperf", action="store_true", help="MLPerf LoadGen's Server and Offline scenarios as well")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw goodput against the bounds")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(load_bundle, make_parser().parse_args(argv))


def load_bundle(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the table, draws, and returns the result for ``--json``."""
    bounds_ms, policies = read_bounds(arguments.slo_ms), read_policies(arguments.policies)
    config = LoadConfig(
        arrivals=arguments.arrivals, seconds=arguments.seconds, repeats=arguments.repeats, steps=arguments.steps,
        seed=arguments.seed,
    )  # fmt: skip
    make_arrivals(config.arrivals, 1, 1.0, config.seed)  # an unknown process is refused before anything is opened
    if arguments.plot is not None:
        check_plot(arguments.plot)
    if config.seconds < (least_s := _LEAST_BOUNDS * bounds_ms[-1] / 1e3):
        say(
            f"streams of {config.seconds:g} s are short for a bound of {bounds_ms[-1]:g} ms: they end before a queue "
            f"that only grows is too long. Give --seconds {least_s:g} or more"
        )
    run = find_run_of(arguments.run, arguments.bundle)
    bundle = arguments.bundle or run.bundle
    spec, queries, arrays = read_queries(run, bundle, arguments)
    found = []
    total = len(bounds_ms) * len(policies) * config.steps * config.repeats
    ticks = iter(track(range(total), description="loading", total=total))
    next(ticks)
    for bound_ms in bounds_ms:
        options = HostOptions(slo_ms=bound_ms, max_waiting_rows=arguments.max_waiting_rows, stats=False)
        plan = ContenderPlan(
            run=run, bundle=bundle, queries=arrays, options=options, threads=arguments.threads,
            overhead_ms=arguments.overhead_ms,
        )  # fmt: skip
        measured = asyncio.run(
            measure_bound(plan, policies, queries, config, mlperf=arguments.mlperf, done=lambda: next(ticks, None))
        )
        found.append({"slo_ms": bound_ms, "contenders": measured})
    result = {
        "model": spec.name, "engine": spec.backend, "batch_size": spec.max_batch_size, "arrivals": config.arrivals,
        "seconds": config.seconds, "repeats": config.repeats, "seed": config.seed, "queries": queries.count,
        "bounds": found, "environment": environment_fingerprint(),
    }  # fmt: skip
    print_result(result, to_stderr=arguments.json == "-")
    if arguments.plot is not None:
        draw_goodput(result, arguments.plot)
        say(f"drew {arguments.plot}")
    return result


def read_bounds(text: str) -> list[float]:
    """Returns the bounds of ``--slo-ms``; ``UsageError`` where these are no positive numbers."""
    try:
        bounds = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--slo-ms {text}: expected milliseconds with commas between them") from error
    if not all(math.isfinite(bound) and bound > 0 for bound in bounds):
        raise UsageError(f"--slo-ms {text}: expected positive numbers")
    return sorted(set(bounds))


def read_policies(text: str) -> list[str]:
    """Returns the policies of ``--policies``; ``UsageError`` where one does not exist."""
    policies = [part.strip() for part in text.split(",")]
    try:
        for policy in policies:
            parse_policy(policy)
    except ValueError as error:
        raise UsageError(f"--policies: {error}") from error
    return list(dict.fromkeys(policies))


def read_queries(
    run: RunFolder, bundle: Path, arguments: argparse.Namespace
) -> tuple[BundleSpec, QuerySet, list[np.ndarray]]:
    """Returns the bundle's description and held-out queries with the full network's answers, and their inputs."""
    opened = open_bundle(bundle, threads=arguments.threads, device=DeviceOptions(), stages_only=True)
    spec = opened.spec
    check_one_length(spec)
    samples = load_run_data(run, arguments.data, report=say)
    digests = calibration_digests(opened.artifact, run)
    check_held_out(digests, samples.digests(), where=str(bundle), remedy=bundle_remedy(bundle))
    asked = Queries(samples, batch_size=spec.max_batch_size, count=arguments.samples, seed=arguments.seed)
    batches = [asked.inputs(index) for index in range(asked.batch_count)]
    arrays = [np.concatenate([batch[tensor.name] for batch in batches]) for tensor in spec.inputs]
    whole = Runtime(without_leaving(spec), opened.engine_sets, opened.device, RuntimeOptions(drift=None))
    with whole as runtime:
        outputs = runtime.run(arrays).outputs
    targets = [asked.targets(index) for index in range(asked.batch_count)]
    known = [target for target in targets if target is not None]
    queries = QuerySet(
        count=len(asked), task=find_task(spec.task, spec.settings),
        full=[np.asarray(array) for array in (outputs if isinstance(outputs, tuple) else (outputs,))],
        targets=np.concatenate(known) if len(known) == len(targets) else None, exits=trace_exits(run, spec),
    )  # fmt: skip
    return spec, queries, arrays


async def measure_bound(
    plan: ContenderPlan, policies: Sequence[str], queries: QuerySet, config: LoadConfig, *, mlperf: bool,
    done: Callable[[], object],
) -> list[dict[str, Any]]:  # fmt: skip
    """Opens all contenders, searches their goodput in turns, and runs LoadGen's scenarios where that is asked for."""
    bound_ms = float(plan.options.slo_ms or 0)
    async with AsyncExitStack() as stack:
        contenders = [await open_contender(stack, plan, policy) for policy in policies]
        searches = []
        for contender in contenders:
            request_s = await measure_request_s(contender, queries, config, bound_s=bound_ms / 1e3)
            searches.append(begin_search(contender, queries, config, slo_ms=bound_ms, request_s=request_s))
        await search_goodput(searches, queries, config, bound_s=bound_ms / 1e3, done=done)
        found = [describe_search(search, queries) for search in searches]
        if mlperf:
            for search, described in zip(searches, found, strict=True):
                described["mlperf"] = await _run_loadgen(search, queries, config, bound_ms)
    return found


async def _run_loadgen(search: Search, queries: QuerySet, config: LoadConfig, bound_ms: float) -> list[dict[str, Any]]:
    contender: Contender = search.contender
    rate = contender.costs.chain_capacity / 2 if search.best is None else search.best.rate
    found = []
    for name in (SERVER, OFFLINE):
        scenario = Scenario(
            name=name, rate_per_s=rate if name == SERVER else contender.costs.pooled_capacity, bound_ms=bound_ms,
            seconds=config.seconds * config.repeats, samples=queries.count,
            at_once=_BATCHES_AT_ONCE * contender.costs.largest,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            found.append(await run_scenario(contender.target, scenario, Path(folder)))
    return found


def print_result(result: dict[str, Any], *, to_stderr: bool = False) -> None:
    """Prints a table per bound."""
    for entry in result["bounds"]:
        first = entry["contenders"][0]["goodput_per_s"]
        rows = [
            (
                found["policy"], f"{found['goodput_per_s']:.0f}",
                f"{found['goodput_per_s'] / first:.2f}" if first else "-", f"{found['simulated_per_s']:.0f}",
                _show(found, "mean_latency_ms", ".2f"), _show(found, "p99_ms", ".2f"), _show_spread(found),
                _show(found, "metric", ".4f"), _show(found, "agreement", ".4f"), *_show_loadgen(found),
            )
            for found in entry["contenders"]
        ]  # fmt: skip
        title = (
            f"{result['model']}, {result['arrivals']} arrivals: the highest rate at which 99 % are answered within "
            f"{entry['slo_ms']:g} ms (measured; of {result['repeats']} streams of {result['seconds']:g} s, the median)"
        )
        columns = [
            "policy",
            "requests/s",
            "ratio",
            "simulated",
            "mean, ms",
            "p99, ms",
            "of streams",
            "metric",
            "agreement",
        ]
        if "mlperf" in entry["contenders"][0]:
            columns += ["LoadGen Server", "LoadGen Offline"]
        print_table(title, columns, rows, to_stderr=to_stderr)
        streams, still, slow = (
            sum(found[name] for found in entry["contenders"]) for name in ("streams", "stood_still", "slow_runs")
        )
        if slow:
            say(
                f"the machine stood still in {still} of {streams} streams: {slow} engine runs took more than three "
                "times what they should"
            )


def _show(found: dict[str, Any], name: str, form: str) -> str:
    value = found.get(name)
    return "-" if value is None else format(value, form)


def _show_spread(found: dict[str, Any]) -> str:
    """Returns the range of the streams' p99 at the highest rate."""
    if "streams_p99_ms" not in found:
        return "-"
    low, high = found["streams_p99_ms"][0], found["streams_p99_ms"][-1]
    return f"{low:.1f} to {'-' if high is None else f'{high:.1f}'}"


def _show_loadgen(found: dict[str, Any]) -> list[str]:
    shown = []
    for run in found.get("mlperf", []):
        rate = run.get("completed_per_s") if run["scenario"] == SERVER else run.get("samples_per_s")
        shown.append(f"{'-' if rate is None else f'{rate:.0f}/s'}, {'VALID' if run['valid'] else 'INVALID'}")
    return shown

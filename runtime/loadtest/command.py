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

from artifacts import BundleSpec, RunFolder, UsageError, environment_fingerprint, find_task
from artifacts.console import add_common_arguments, add_plot_argument, run_command, say, track
from calibration import DATA_HELP, load_run_data
from engines import DeviceOptions
from runtime.bench.command import find_run_of
from runtime.bench.held_out import calibration_digests, check_held_out
from runtime.bench.queries import Queries
from runtime.hosting.options import HostOptions
from runtime.loading import open_bundle, without_leaving
from runtime.loadtest.contenders import ContenderPlan, HostContender, open_contender
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
from runtime.loadtest.remote import RemotePlan, RemoteQueries, load_server, make_random, read_arrays
from runtime.loadtest.tables import print_result
from runtime.loadtest.wire import RemoteModel, parse_url
from runtime.options import RuntimeOptions
from runtime.remedy import bundle_remedy
from runtime.runtime import Runtime
from runtime.scheduling.decisions import parse_policy
from runtime.serve.options import read_token
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
        description="Load a host in this process, or a server, with requests of one held-out row, which do not wait "
        "for answers: the highest rate at which 99 %% are answered within a bound, policy against policy in turns, "
        "with the quality of the answers and the simulated rate beside it.",
    )
    add_common_arguments(parser)
    _add_server_flags(parser)
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
    parser.add_argument(
        "--steps", type=int, default=default.steps,
        help="a policy has at most so many times --repeats streams (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, help="of each engine (default: as the bundle was timed)")
    parser.add_argument("--max-waiting-rows", type=int, help="default: four of the largest batches")
    parser.add_argument(
        "--overhead-ms", type=float, default=0.15,
        help="of a stage run besides its engines, for the simulation (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=default.seed, help="default: %(default)s")
    parser.add_argument("--mlperf", action="store_true", help="MLPerf LoadGen's Server and Offline scenarios as well")
    add_plot_argument(parser, "goodput against the bounds")
    return parser


def _add_server_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a server that runs already, of PAME, Triton, or any other")
    group.add_argument("--url", metavar="URL", help="http://HOST:PORT, grpc://HOST:PORT; https and grpcs with TLS")
    group.add_argument("--model", metavar="NAME", help="its name there (default: the only one)")
    group.add_argument("--token-file", type=Path, metavar="FILE", help="holds the token that the server asks for")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(load_bundle, make_parser().parse_args(argv), draw=draw_goodput)


def load_bundle(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the table, and returns the result for ``--json`` and ``--plot``."""
    bounds_ms, policies = read_bounds(arguments.slo_ms), read_policies(arguments.policies)
    config = LoadConfig(
        arrivals=arguments.arrivals, seconds=arguments.seconds, repeats=arguments.repeats, steps=arguments.steps,
        seed=arguments.seed,
    )  # fmt: skip
    make_arrivals(config.arrivals, 1, 1.0, config.seed)  # an unknown process is refused before anything is opened
    if config.seconds < (least_s := _LEAST_BOUNDS * bounds_ms[-1] / 1e3):
        say(
            f"streams of {config.seconds:g} s are short for a bound of {bounds_ms[-1]:g} ms: they end before a queue "
            f"that only grows is too long. Give --seconds {least_s:g} or more"
        )
    if arguments.url is not None:
        return _load_url(arguments, bounds_ms, config)
    if arguments.model is not None or arguments.token_file is not None:
        raise UsageError("--model and --token-file are for a server that runs already: name it with --url URL")
    run = find_run_of(arguments.run, arguments.bundle)
    bundle = arguments.bundle or run.bundle
    spec, queries, arrays = read_queries(run, bundle, arguments)
    found = []
    done = _progress(len(bounds_ms) * len(policies) * config.steps * config.repeats)
    for bound_ms in bounds_ms:
        options = HostOptions(slo_ms=bound_ms, max_waiting_rows=arguments.max_waiting_rows, stats=False)
        plan = ContenderPlan(
            run=run, bundle=bundle, queries=arrays, options=options, threads=arguments.threads,
            overhead_ms=arguments.overhead_ms,
        )  # fmt: skip
        measured = asyncio.run(measure_bound(plan, policies, queries, config, mlperf=arguments.mlperf, done=done))
        found.append({"slo_ms": bound_ms, "contenders": measured})
    return _finish(arguments, config, {
        "model": spec.name, "engine": spec.backend, "batch_size": spec.max_batch_size, "queries": queries.count,
        "bounds": found,
    })  # fmt: skip


def _load_url(arguments: argparse.Namespace, bounds_ms: Sequence[float], config: LoadConfig) -> dict[str, Any]:
    """Measures a server, as ``load_bundle`` the hosts of this process."""
    url = parse_url(arguments.url)
    here = {
        "--policies": arguments.policies != _POLICIES, "--mlperf": arguments.mlperf,
        "--threads": arguments.threads is not None, "--max-waiting-rows": arguments.max_waiting_rows is not None,
    }  # fmt: skip
    if given := [flag for flag, is_given in here.items() if is_given]:
        raise UsageError(f"{given[0]} is for hosts of this process; the server at {url.text} has its own")
    if arguments.samples < 1:
        raise UsageError(f"--samples {arguments.samples}: expected a number from 1")

    def make_queries(model: RemoteModel) -> RemoteQueries:
        if arguments.run is not None or arguments.bundle is not None:
            run = find_run_of(arguments.run, arguments.bundle)
            spec, queries, arrays = read_queries(run, arguments.bundle or run.bundle, arguments)
            rows = {tensor.name: array for tensor, array in zip(spec.inputs, arrays, strict=True)}
            return RemoteQueries(queries, rows, [tensor.name for tensor in spec.outputs])
        if arguments.data is not None:
            return read_arrays(Path(arguments.data), model, arguments.samples)
        say("no data is named: the rows are random, and nothing tells how good the answers are")
        return make_random(model, arguments.samples, config.seed)

    plan = RemotePlan(
        url=url, model=arguments.model, queries=make_queries, bounds_ms=bounds_ms, config=config,
        token=None if arguments.token_file is None else read_token(arguments.token_file),
    )  # fmt: skip
    done = _progress(len(bounds_ms) * config.steps * config.repeats)
    return _finish(arguments, config, asyncio.run(load_server(plan, done=done)))


def _progress(total: int) -> Callable[[], object]:
    """Returns what moves a bar on by one stream."""
    ticks = iter(track(range(total), description="loading", total=total))
    next(ticks)
    return lambda: next(ticks, None)


def _finish(arguments: argparse.Namespace, config: LoadConfig, measured: dict[str, Any]) -> dict[str, Any]:
    """Returns the result, after it was printed."""
    result = measured | {
        "arrivals": config.arrivals, "seconds": config.seconds, "repeats": config.repeats, "seed": config.seed,
        "environment": environment_fingerprint(),
    }  # fmt: skip
    print_result(result, to_stderr=arguments.json == "-")
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
        targets=np.concatenate(known) if len(known) == len(targets) else None,
        exits=trace_exits(run, spec) if arguments.url is None else np.empty(0, np.int64),  # a server is not simulated
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
            for contender, search, described in zip(contenders, searches, found, strict=True):
                rate = contender.costs.chain_capacity / 2 if search.best is None else search.best.rate
                described["mlperf"] = await _run_loadgen(contender, rate, queries, config, bound_ms)
    return found


async def _run_loadgen(
    contender: HostContender, rate: float, queries: QuerySet, config: LoadConfig, bound_ms: float
) -> list[dict[str, Any]]:
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

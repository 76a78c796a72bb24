"""``python -m runtime.simulate``: what a bundle could serve, by the host's own scheduler and measured times."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts import UsageError, find_run
from artifacts.console import add_common_arguments, print_table, run_command, track
from runtime.remedy import find_own_run
from runtime.scheduling.decisions import Policy, parse_policy
from runtime.simulate.arrivals import ARRIVALS
from runtime.simulate.device import loop_cost
from runtime.simulate.goodput import SimulationConfig, describe, find_goodput, play_rate
from runtime.simulate.sources import bundle_costs, read_bundle, trace_exits

_POLICIES = "full,chain,pooled,auto"


def make_parser() -> argparse.ArgumentParser:
    default = SimulationConfig()
    parser = argparse.ArgumentParser(
        prog="python -m runtime.simulate",
        description="Simulate the serving of a bundle: goodput at a latency bound, or latencies at given rates.",
    )
    add_common_arguments(parser)
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="another bundle than the run's own")
    parser.add_argument(
        "--arrivals", default=default.arrivals, metavar="KIND|FILE",
        help=f"{', '.join(ARRIVALS)}, or a .npy file of gaps in seconds (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--slo-ms", type=float, default=default.slo_ms, help="the bound (default: %(default)s)")
    parser.add_argument("--timeout-ms", type=float, help="the deadline of every request (default: none)")
    parser.add_argument("--policies", default=_POLICIES, metavar="LIST", help="default: %(default)s")
    parser.add_argument("--rates", metavar="LIST", help="requests per second (default: the goodput is searched)")
    parser.add_argument("--requests", type=int, default=default.requests, help="default: %(default)s")
    parser.add_argument("--max-waiting-rows", type=int, help="default: four of the largest batches")
    parser.add_argument(
        "--overhead-ms", type=float, default=0.15, help="of a stage run, besides its engines (default: %(default)s)"
    )
    parser.add_argument(
        "--request-ms", type=float, default=0.05,
        help="of the event loop for a request; engines wait meanwhile where their threads take all processors "
        "(default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--spread", type=float, default=default.spread, help="relative spread of a run's time (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="default: %(default)s")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(simulate_bundle, make_parser().parse_args(argv))


def simulate_bundle(arguments: argparse.Namespace) -> dict[str, Any]:
    """Simulates, prints the table, and returns the result for ``--json``."""
    config, policies, rates = read_flags(arguments)
    own = None if arguments.run is not None or arguments.bundle is None else find_own_run(arguments.bundle)
    run = find_run(arguments.run) if own is None else own
    folder = arguments.bundle or run.bundle
    spec = read_bundle(folder)
    costs = bundle_costs(folder, spec, overhead_ms=arguments.overhead_ms)
    exits = trace_exits(run, spec)
    config = replace(config, loop=loop_cost(arguments.request_ms / 1e3, spec.threads))
    cases = [(policy, rate) for policy in policies for rate in rates]
    found = []
    for policy, rate in track(cases, description="simulating", total=len(cases)):
        if rate is None:
            best, stream = find_goodput(costs, exits, policy, config)
        else:
            best, stream = rate, play_rate(costs, exits, policy, rate, config)
        figures = {"rate_per_s": 0.0} if stream is None else describe(stream, best, config.slo_ms)
        found.append({"policy": describe_policy(policy), **figures})
    result = {
        "model": spec.name, "engine": spec.backend, "batch_size": spec.max_batch_size, "arrivals": config.arrivals,
        "requests": config.requests, "slo_ms": config.slo_ms, "timeout_ms": config.timeout_ms, "seed": config.seed,
        "overhead_ms": arguments.overhead_ms, "request_ms": arguments.request_ms, "spread": config.spread,
        "gain": costs.gain, "chain_capacity_per_s": costs.chain_capacity,
        "pooled_capacity_per_s": costs.pooled_capacity, "searched": arguments.rates is None, "policies": found,
    }  # fmt: skip
    print_result(result, to_stderr=arguments.json == "-")
    return result


def read_flags(arguments: argparse.Namespace) -> tuple[SimulationConfig, list[Policy], Sequence[float | None]]:
    """Returns what is simulated, with which policies and at which rates.

    Raises:
        UsageError: a value is out of range.
    """
    positive = ("slo_ms", "timeout_ms", "requests", "max_waiting_rows")
    for name in (*positive, "overhead_ms", "request_ms", "spread"):
        value = getattr(arguments, name)
        if value is not None and not (math.isfinite(value) and (value > 0 if name in positive else value >= 0)):
            least = "above" if name in positive else "from"
            raise UsageError(f"--{name.replace('_', '-')} {value}: expected a number {least} 0")
    try:
        policies = [parse_policy(text.strip()) for text in arguments.policies.split(",")]
    except ValueError as error:
        raise UsageError(f"--policies: {error}") from error
    rates: Sequence[float | None] = [None]
    if arguments.rates is not None:
        try:
            rates = [float(text) for text in arguments.rates.split(",")]
        except ValueError as error:
            raise UsageError(f"--rates {arguments.rates}: expected numbers with commas between them") from error
        if any(rate is not None and not (math.isfinite(rate) and rate > 0) for rate in rates):
            raise UsageError(f"--rates {arguments.rates}: expected positive numbers")
    config = SimulationConfig(
        arrivals=arguments.arrivals, requests=arguments.requests, slo_ms=arguments.slo_ms,
        timeout_ms=arguments.timeout_ms, max_waiting_rows=arguments.max_waiting_rows, spread=arguments.spread,
        seed=arguments.seed,
    )  # fmt: skip
    return config, policies, rates


def describe_policy(policy: Policy) -> str:
    """Returns a policy as its flag has it."""
    return f"{policy.kind}:{policy.margin_s * 1e3:g}" if policy.margin_s else policy.kind


def print_result(result: dict[str, Any], *, to_stderr: bool = False) -> None:
    """Prints the table for a person."""
    rows = [
        (
            found["policy"], f"{found['rate_per_s']:.0f}", *(
                (
                    f"{found['answered_in_time']:.1%}", f"{found['mean_latency_ms']:.2f}", f"{found['p99_ms']:.2f}",
                    f"{found['busy']:.0%}", " ".join(f"{rows:.1f}" for rows in found["rows_per_run"]),
                )
                if found.get("p99_ms") is not None
                else ("-", "-", "-", "-", "-")
            ),
        )
        for found in result["policies"]
    ]  # fmt: skip
    what = "the highest rate at which 99 % are answered in time" if result["searched"] else "at given rates"
    title = (
        f"{result['model']}, {result['arrivals']} arrivals, {result['slo_ms']:g} ms: {what} (simulated; "
        f"{result['requests']} requests of one row; pooling is worth at most {result['gain']:.2f})"
    )
    columns = ["policy", "requests/s", "in time", "mean, ms", "p99, ms", "busy", "rows per run of each stage"]
    print_table(title, columns, rows, to_stderr=to_stderr)

"""``python -m planner validate``: how often the tolerance is exceeded, certified or not, where the truth is known."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import Trace, check_plot, environment_fingerprint, find_run
from artifacts.console import add_common_arguments, print_table, run_command, say, track
from planner.certify.certified import plan_certified
from planner.certify.evidence import metric_word, risk_trace
from planner.certify.ladders import make_ladder, make_price
from planner.config import CertifyConfig, PlanConfig
from planner.predict.costs import NetworkCosts
from planner.predict.replay import ChosenExits
from planner.search.greedy import TailRule, check_tolerance
from planner.search.threshold_grids import threshold_grid
from planner.validate.resampling import Method, MethodRecord, ValidationConfig, plan_per_exit, validate_methods
from planner.workflow.inputs import read_recorded

_BINS = 40
_DEFAULT = ValidationConfig()


def make_parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    plan = PlanConfig()
    parser = argparse.ArgumentParser(
        prog="python -m planner validate",
        description="Draw calibration sets from a trace whose truth is known, plan on each, and count how often the "
        "plan loses more than the tolerance.",
    )
    add_common_arguments(parser)
    parser.add_argument(
        "--tolerance", type=float, default=_DEFAULT.tolerance, help="allowed relative loss (default: %(default)s)"
    )
    parser.add_argument(
        "--delta", type=float, default=plan.certify.delta,
        help="probability with which a certificate may fail (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--risk",
        choices=("metric", "agreement"),
        default=plan.certify.risk,
        help="as in planning (default: %(default)s)",
    )
    parser.add_argument(
        "--resplits", type=int, default=_DEFAULT.resplits, help="calibration sets to draw (default: %(default)s)"
    )
    parser.add_argument("--samples", type=int, help="samples of each (default: as many as the trace has)")
    parser.add_argument("--search", choices=("joint", "greedy"), default="joint", help="default: %(default)s")
    parser.add_argument(
        "--thorough", action="store_true",
        help="the whole joint search every time; without, its survey alone: up to three exits over coarse thresholds, "
        "a tenth of the time",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, default=plan.batch_size, help="default: %(default)s")
    parser.add_argument("--grid-step", type=float, default=plan.grid_step, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=_DEFAULT.seed, help="of the draws (default: %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the losses as a PNG")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(validate, make_parser().parse_args(argv))


def validate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Validates, prints the table, draws the picture, and returns the result for ``--json``."""
    if arguments.plot is not None:
        check_plot(arguments.plot)
    config = ValidationConfig(
        tolerance=arguments.tolerance, resplits=arguments.resplits, samples=arguments.samples, seed=arguments.seed
    )
    certify = CertifyConfig(risk=arguments.risk, delta=arguments.delta)
    threshold_grid(arguments.grid_step)
    run = find_run(arguments.run)
    recorded = read_recorded(run, risk=arguments.risk)
    population = risk_trace(recorded.trace, arguments.risk)
    check_tolerance(config.tolerance, population)
    costs = NetworkCosts(itm=recorded.itm, cuts=recorded.cuts, batch_size=arguments.batch_size)
    say(
        f"drawing {config.resplits} calibration sets of {config.samples or population.sample_count} samples from the "
        f"{population.sample_count} of {run.trace}"
    )
    methods = make_methods(costs, config, certify, search=_name_search(arguments), step=arguments.grid_step)
    records = validate_methods(population, costs, methods, config, over=_progress(config.resplits))
    result = describe_validation(records, config, certify, samples=config.samples or population.sample_count)
    result |= {"run": str(run.root), "trace": recorded.trace_artifact.digest, "itm": recorded.itm_artifact.digest}
    print_validation(result, to_stderr=arguments.json == "-")
    if arguments.plot is not None:
        from planner.validate.plot import draw_validation

        draw_validation(result, arguments.plot)
        say(f"drew {arguments.plot}")
    return result


def _name_search(arguments: argparse.Namespace) -> str:
    return "joint survey" if arguments.search == "joint" and not arguments.thorough else str(arguments.search)


def _progress(total: int) -> Callable[[Any], Any]:
    return lambda loop: track(loop, description="planning on redrawn sets", total=total)


def make_methods(
    costs: NetworkCosts, config: ValidationConfig, certify: CertifyConfig, *, search: str, step: float
) -> dict[str, Method]:
    """Returns the methods to compare by name: the search certified, the same uncertified, and others for comparison.

    Args:
        costs: the prices of the stages.
        config: the tolerance.
        certify: risk and delta.
        search: one of ``ladders.LADDERS``.
        step: distance of the thresholds of the grids.
    """
    tail = TailRule()
    ladders = {name: make_ladder(name, costs, step=step, tail=tail) for name in dict.fromkeys((search, "greedy"))}
    price = make_price(costs)

    def certified(drawn: Trace, seed: int) -> ChosenExits:
        settings = CertifyConfig(risk=certify.risk, delta=certify.delta, seed=seed)
        return plan_certified(drawn, ladders[search], price, tolerance=config.tolerance, settings=settings).boldest

    def uncertified(name: str) -> Method:
        return lambda drawn, _: ladders[name](drawn, (config.tolerance,))[0]

    return {
        f"{search}, certified": certified,
        **({} if search == "greedy" else {f"{search}, not certified": uncertified(search)}),
        "greedy (the paper's)": uncertified("greedy"),
        "per-exit grid": lambda drawn, _: plan_per_exit(drawn, tolerance=config.tolerance, step=step),
    }


def describe_validation(
    records: Sequence[MethodRecord], config: ValidationConfig, certify: CertifyConfig, *, samples: int
) -> dict[str, Any]:
    """Returns the JSON object: the question, and one entry per method."""
    scale = config.tolerance or max(1e-3, *(float(np.abs(one.loss).max()) for one in records))
    edges = np.linspace(-1, 3, _BINS + 1) * scale
    methods = []
    for one in records:
        counts, _ = np.histogram(np.clip(one.loss, edges[0], edges[-1]), edges)
        methods.append({**one.summarise(config.tolerance), "loss_histogram": counts.tolist()})
    return {
        "tolerance": config.tolerance, "delta": certify.delta, "risk": certify.risk, "resplits": config.resplits,
        "samples": samples, "seed": config.seed, "loss_edges": edges.tolist(), "methods": methods,
        "environment": environment_fingerprint(),
    }  # fmt: skip


def print_validation(result: Mapping[str, Any], *, to_stderr: bool = False) -> None:
    """Prints the table for a person."""
    rows = [
        [
            one["method"],
            f"{one['violation_frequency']:.3f}",
            "{:.3f}-{:.3f}".format(*one["violation_interval"]),
            f"{one['held_out_violation_frequency']:.3f}",
            f"{one['mean_metric_ratio']:.4f}",
            f"{one['worst_metric_ratio']:.4f}",
            f"{one['mean_latency_ratio']:.4f}",
            f"{one['no_exits_frequency']:.3f}",
        ]
        for one in result["methods"]
    ]
    what = metric_word(result["risk"])
    title = (
        f"{result['resplits']} calibration sets of {result['samples']} samples, tolerance {result['tolerance']:g}, "
        f"delta {result['delta']:g}"
    )
    columns = [
        "method", "exceeds it", "95 % interval", "on a test draw", f"{what} kept", "worst", "latency ratio", "no exits",
    ]  # fmt: skip
    print_table(title, columns, rows, to_stderr=to_stderr)
    print(
        "exceeds it: share of the plans whose true loss is above the tolerance; on a test draw: the same as seen on "
        f"{max(1, result['samples'] // 2)} fresh samples, whose own noise is in it;\n"
        f"{what} kept and latency ratio: plan over full network, in the mean",
        file=sys.stderr if to_stderr else sys.stdout,
        flush=True,
    )

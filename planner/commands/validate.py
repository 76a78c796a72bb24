"""``python -m planner validate``: how often the tolerance is exceeded, certified or not, where the truth is known."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from artifacts import MAX_SOFTMAX, find_run
from artifacts.console import add_common_arguments, add_plot_argument, print_table, run_command, say, track
from planner.certify.evidence import metric_word, risk_trace
from planner.confidence.fitting import can_learn
from planner.config import CertifyConfig, PlanConfig
from planner.flags import BY_FIELD, add_flags, read_batches, set_fields
from planner.search.problem import check_tolerance
from planner.search.rules import COARSE, JOINT, OFFERED_SEARCHES
from planner.search.threshold_grids import threshold_grid
from planner.validate.methods import describe_validation, make_methods
from planner.validate.plot import draw_validation
from planner.validate.resampling import ValidationConfig, validate_methods
from planner.workflow.inputs import read_inputs

_DEFAULT = ValidationConfig()
_RULES = ("max_exits", "tail.share", "tail.allowance", "tail.stay_allowance")
_PLANNING = ("batch_size", "load", "certify.delta", "grid_step", "confidence", *_RULES)


def make_parser() -> argparse.ArgumentParser:
    """Returns the command line; flags that planning has too are those of ``planner.flags``."""
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
        "--risk",
        choices=("metric", "agreement"),
        default=PlanConfig().certify.risk,
        help="as in planning (default: %(default)s)",
    )
    parser.add_argument(
        "--resplits", type=int, default=_DEFAULT.resplits, help="calibration sets to draw (default: %(default)s)"
    )
    parser.add_argument("--samples", type=int, help="samples of each (default: as many as the trace has)")
    parser.add_argument("--search", choices=OFFERED_SEARCHES, default=JOINT, help="default: %(default)s")
    parser.add_argument(
        "--thorough",
        action="store_true",
        help="the whole joint search every time; without, its coarse part alone: up to three exits over coarse "
        "thresholds, a tenth of the time",
    )
    parser.add_argument("--seed", type=int, default=_DEFAULT.seed, help="of the draws (default: %(default)s)")
    add_plot_argument(parser, "the losses")
    add_flags(parser, [BY_FIELD[field] for field in _PLANNING])
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_command(validate, make_parser().parse_args(argv), draw=draw_validation)


def validate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Validates, prints the table, and returns the result for ``--json`` and ``--plot``."""
    config = ValidationConfig(
        tolerance=arguments.tolerance, resplits=arguments.resplits, samples=arguments.samples, seed=arguments.seed,
        rules=set_fields(
            PlanConfig(), {field: getattr(arguments, BY_FIELD[field].attribute) for field in _RULES}
        ).rules,
    )  # fmt: skip
    certify = CertifyConfig(risk=arguments.risk, delta=arguments.delta)
    threshold_grid(arguments.grid_step)
    batch_size, load = read_batches(arguments)
    run = find_run(arguments.run)
    inputs = read_inputs(run, risk=arguments.risk)
    population = risk_trace(inputs.trace, arguments.risk)
    check_tolerance(config.tolerance, population)
    costs = inputs.costs(batch_size=batch_size, load=load)
    samples = config.samples or population.sample_count
    say(
        f"drawing {config.resplits} calibration sets of {samples} samples from the {population.sample_count} of "
        f"{run.trace}"
    )
    methods = make_methods(
        costs, config, certify, search=_name_search(arguments), step=arguments.grid_step,
        learns=arguments.confidence != MAX_SOFTMAX and can_learn(population),
    )  # fmt: skip
    records = validate_methods(population, costs, methods, config, over=_progress(config.resplits))
    result = describe_validation(records, config, certify, samples=samples) | {
        "run": str(run.root),
        "metric": metric_word(arguments.risk, inputs.task),
        "trace": inputs.trace_artifact.digest,
        "itm": inputs.itm_artifact.digest,
        "load": {} if load is None else load.to_plain(),
    }
    print_validation(result, to_stderr=arguments.json == "-")
    return result


def _name_search(arguments: argparse.Namespace) -> str:
    return COARSE if arguments.search == JOINT and not arguments.thorough else str(arguments.search)


def _progress(total: int) -> Callable[[Any], Any]:
    return lambda loop: track(loop, description="planning on redrawn sets", total=total)


def print_validation(result: Mapping[str, Any], *, to_stderr: bool = False) -> None:
    """Prints the table for a person."""
    rows = [
        [
            method["method"],
            f"{method['violation_frequency']:.3f}",
            "{:.3f}-{:.3f}".format(*method["violation_interval"]),
            f"{method['held_out_violation_frequency']:.3f}",
            f"{method['mean_metric_ratio']:.4f}",
            f"{method['worst_metric_ratio']:.4f}",
            f"{method['mean_latency_ratio']:.4f}",
            f"{method['no_exits_frequency']:.3f}",
        ]
        for method in result["methods"]
    ]
    metric = result["metric"]
    title = (
        f"{result['resplits']} calibration sets of {result['samples']} samples, tolerance {result['tolerance']:g}, "
        f"delta {result['delta']:g}"
    )
    columns = ["method", "exceeds it", "95 % interval", "on a test draw", f"{metric} kept", "worst"]
    print_table(title, [*columns, "latency ratio", "no exits"], rows, to_stderr=to_stderr)
    print(
        "exceeds it: share of the plans whose true loss is above the tolerance; on a test draw: the same as seen on "
        f"{max(1, result['samples'] // 2)} fresh samples, whose own noise is in it;\n"
        f"{metric} kept and latency ratio: plan over full network, on average",
        file=sys.stderr if to_stderr else sys.stdout,
        flush=True,
    )

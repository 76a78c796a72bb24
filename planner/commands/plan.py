"""``python -m planner``: finds the plan, measures it, ships the bundle, and prints what a person wants to know."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import PRECISIONS, ExitPlan, find_run, to_plain
from artifacts.console import add_common_arguments, print_table, run_command, say
from planner.certify.evidence import metric_word
from planner.commands.sweep import read_tolerances, sweep
from planner.flags import add_flags, planner_command, read_config
from planner.search.prices import BATCH, MEAN, P99

if TYPE_CHECKING:
    from planner.workflow.planning import PlanningResult

_SHOWN_PLANS = 6


def make_parser(*, epilog: str = "") -> argparse.ArgumentParser:
    """Returns the command line; its flags are those of ``planner.flags``, with the defaults of ``planner.config``."""
    parser = argparse.ArgumentParser(
        prog="python -m planner",
        description="Find the exits and thresholds that save the most time within a tolerance, and build the bundle.",
        epilog=epilog,
    )
    add_common_arguments(parser)
    parser.add_argument("--precision", metavar="|".join(PRECISIONS), help="refuse a network of another precision")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="your images: class folders or an .npz; queries without labels: a folder or an .npz of images alone",
    )
    parser.add_argument(
        "--sweep",
        type=read_tolerances,
        nargs="?",
        const=(),
        metavar="T,T,...",
        help="show the fastest plan at every tolerance of the whole range, or of a list, and build no bundle",
    )
    add_flags(parser)
    return parser


def main(argv: Sequence[str], *, epilog: str = "") -> int:
    """Runs the command; returns its exit code."""
    arguments = make_parser(epilog=epilog).parse_args(argv)
    return run_command(plan if arguments.sweep is None else sweep, arguments)


def plan(arguments: argparse.Namespace) -> dict[str, Any]:
    """Plans, prints the tables and returns the result for ``--json``."""
    config = read_config(arguments)
    run = find_run(arguments.run)
    command = planner_command(run.root, config, data=arguments.data, distribution=arguments.batch_distribution)
    from planner.workflow.inputs import is_imported

    if is_imported(run):
        from planner.foreign.planning import plan_imported

        result = plan_imported(run, config, command=command, report=say)
    else:
        from planner.workflow.planning import ensure_plan

        result = ensure_plan(run, config, data=arguments.data, precision=arguments.precision)
    print_result(result, to_stderr=arguments.json == "-")
    return {
        "run": str(run.root),
        "bundle": None if result.bundle is None else str(result.bundle),
        "plan_digest": result.plan_digest,
        "reused": result.reused,
        "plan": to_plain(result.plan),
        "considered": list(result.considered),
        "certification": result.certification,
    }


def print_result(result: PlanningResult, *, to_stderr: bool = False) -> None:
    """Prints the committed plan, its expectation against the full network, and the runner-up plans."""
    plan, predicted = result.plan, result.plan.predicted
    committed = result.considered[0]
    full = next(one for one in result.considered if not one["exits"])
    compared = "measured" if committed["measured_mean_ms"] is not None else "predicted"
    faster = full[f"{compared}_mean_ms"] / committed[f"{compared}_mean_ms"]
    _print_exits(plan, committed["arrival_ms"], to_stderr=to_stderr)
    kept = plan.predicted_metric / plan.full_metric
    perfect = predicted.oracle_mean_ms
    stream = sys.stderr if to_stderr else sys.stdout
    print(
        f"\n{metric_word(plan.risk)} {plan.predicted_metric:.4f} of {plan.full_metric:.4f}: {kept:.2%} kept, "
        f"asked for {1 - plan.tolerance:.2%}\n"
        f"{describe_certificate(plan)}\n"
        f"mean latency {predicted.mean_ms:.3f} ms predicted{_measured(committed)}\n"
        f"full network {predicted.full_ms:.3f} ms timed{_measured(full)}: "
        f"{faster:.2f} times as fast in the mean\n"
        f"whole batch {predicted.batch_ms:.3f} ms predicted; mean if each query knew when to leave: {perfect:.3f} ms\n"
        f"{describe_reference(result)}",
        file=stream,
    )
    _print_considered(result, to_stderr=to_stderr)
    made = f"bundle: {result.bundle}" if result.bundle else "imported run: a plan (exit_plan.json), no model to bundle"
    print(f"\n{made}", file=stream, flush=True)


def _measured(considered: Mapping[str, Any]) -> str:
    mean = considered["measured_mean_ms"]
    return "" if mean is None else f", {mean:.3f} ms measured"


def describe_reference(result: PlanningResult) -> str:
    """Returns the line that compares the committed plan with the greedy search's; empty where that was the search."""
    found = next((one for one in result.considered if one["reference"]), None)
    if found is None:
        return ""
    said = []
    for title, key in (("expected", "searched"), ("measured", "measured")):
        for objective in (MEAN, BATCH, P99):
            name = f"{key}_{objective}_ms"
            mine = result.considered[0][name]
            if objective == result.plan.objective and mine is not None and found[name] is not None:
                said.append(f"{title} {mine:.3f} ms against {found[name]:.3f} ms, a factor of {found[name] / mine:.3f}")
    return f"beside the greedy search's plan ({_name_exits(found)}): {'; '.join(said)}\n"


def describe_certificate(plan: ExitPlan) -> str:
    """Returns the line that says what is guaranteed of a plan."""
    certificate = plan.certificate
    if certificate is None:
        return "certificate: none (--certify none); the tolerance holds on the calibration data only"
    if not plan.exits:
        return "certificate: without exits nothing is lost"
    what = {"metric": "relative loss of the metric", "agreement": "disagreement with the final head"}.get(
        certificate.risk, f"relative loss of {certificate.risk}"
    )
    sure = "" if certificate.finite_sample else " (asymptotically: a bootstrap, no finite-sample guarantee)"
    return (
        f"certificate: {what} at most {certificate.bound:g}, except with probability {certificate.delta:g}{sure}\n"
        f"  {certificate.method} test on {certificate.samples} samples that were not tuned on: p = "
        f"{certificate.p_value:.3g}, observed {certificate.observed:.4f}"
    )


def _print_exits(plan: ExitPlan, arrival_ms: Sequence[float], *, to_stderr: bool) -> None:
    shares = [one.leaving_share for one in plan.exits]
    there = "agreement" if plan.risk == "agreement" else "precision"
    rows = [
        [one.cut, f"{one.threshold:.4g}", f"{one.leaving_share:.1%}", _show(one.metric, ".4f"), f"{one.arrival_ms:.3f}"]
        for one in plan.exits
    ]
    final = _show(_final_metric(plan, 1 - sum(shares)), ".4f")
    rows.append(["final head", "-", f"{abs(1 - sum(shares)):.1%}", final, f"{arrival_ms[-1]:.3f}"])
    print_table(
        f"exit plan ({plan.search}, tolerance {plan.tolerance:g}) for batches of {plan.batch_size} "
        f"on {plan.backend} with {plan.threads} threads",
        ["exit", "threshold", "leave here", f"{there} there", "arrival ms"],
        rows,
        to_stderr=to_stderr,
    )


def _final_metric(plan: ExitPlan, leaving: float) -> float | None:
    if leaving < 1e-9:
        return None
    before = sum(one.leaving_share * one.metric for one in plan.exits if one.metric is not None)
    return (plan.predicted_metric - before) / leaving


def _print_considered(result: PlanningResult, *, to_stderr: bool) -> None:
    what = metric_word(result.plan.risk)
    rows = [
        [
            _name_exits(one),
            f"{one['metric']:.4f}",
            f"{one['predicted_mean_ms']:.3f}",
            _show(one["measured_mean_ms"], ".3f"),
            _show(one["stay_ratio"], ".3f"),
            f"{one['predicted_full_ms'] / one['predicted_mean_ms']:.2f}",
            "yes" if one["allowed"] else "no",
        ]
        for one in result.considered[:_SHOWN_PLANS]
    ]
    print_table(
        f"plans considered: {len(result.considered)}; the committed one first",
        ["plan", what, "predicted ms", "measured ms", "nobody leaves", "times as fast", "allowed"],
        rows,
        to_stderr=to_stderr,
    )


def _name_exits(considered: Mapping[str, Any]) -> str:
    pairs = zip(considered["exits"], considered["thresholds"], strict=True)
    return ", ".join(f"{cut} >= {threshold:.3g}" for cut, threshold in pairs) or "no exits"


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

"""``python -m planner --tolerance 0.01``: finds the plan, measures it, ships the bundle, prints what a person wants."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import PRECISIONS, ExitPlan, UsageError, find_run, to_plain, unknown_name
from artifacts.console import add_common_arguments, print_table, run_command, say
from calibration import RISKS
from engines import BACKENDS, PROFILE_WAYS
from planner.certify.evidence import metric_word
from planner.config import (
    CERTIFY_METHODS,
    CertifyConfig,
    MeasureConfig,
    PlanConfig,
    TimingConfig,
    batch_sizes_up_to,
)
from planner.predict.objectives import OBJECTIVES
from planner.search.rules import OFFERED_SEARCHES, SlowBatchRule

if TYPE_CHECKING:
    from planner.workflow.record import ConsideredPlan, PlanningResult

COMMANDS: Mapping[str, str] = {  # further commands: python -m planner NAME -> the module whose main(argv) it is
    "report": "planner.commands.report",
    "validate": "planner.commands.validate",
    "import-trace": "planner.commands.import_trace",
}
_SHOWN_PLANS = 6
_PLAN, _TIMING, _MEASURE, _TAIL = PlanConfig(), TimingConfig(), MeasureConfig(), SlowBatchRule()


def make_parser() -> argparse.ArgumentParser:
    """Returns the command line; defaults come from ``planner.config``."""
    parser = argparse.ArgumentParser(
        prog="python -m planner",
        description="Find the exits and thresholds that save the most time within a tolerance, and build the bundle.",
        epilog="Further commands, each with --help: " + ", ".join(f"python -m planner {name}" for name in COMMANDS),
    )
    add_common_arguments(parser)
    parser.add_argument(
        "--tolerance", type=float, default=_PLAN.tolerance,
        help="allowed relative loss of the metric: 0.01 keeps 99 %% (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--batch-size", type=int, help=f"queries per batch (default: {_PLAN.batch_size})")
    parser.add_argument(
        "--batch-distribution", type=Path, metavar="FILE",
        help="instead of --batch-size: JSON or CSV, batch size -> share or count of the batches that enter",
    )  # fmt: skip
    parser.add_argument("--engine", default=_PLAN.backend, help="engine backend (default: %(default)s)")
    parser.add_argument("--profiles", choices=PROFILE_WAYS, help="TensorRT's shape profiles (default: the backend's)")
    parser.add_argument("--precision", metavar="|".join(PRECISIONS), help="refuse a network of another precision")
    parser.add_argument("--threads", type=int, help="threads of each engine (default: all cores)")
    parser.add_argument(
        "--search", choices=OFFERED_SEARCHES, default=_PLAN.search, help="how to search (default: %(default)s)"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR",
        help="your images: class folders or an .npz; queries without labels: a folder or an .npz of images alone",
    )  # fmt: skip
    parser.add_argument(
        "--sweep", type=read_tolerances, nargs="?", const=(), metavar="T,T,...",
        help="show the fastest plan at every tolerance of the whole range, or of a list, and build no bundle",
    )  # fmt: skip
    _add_certify_arguments(parser)
    _add_search_arguments(parser)
    _add_timing_arguments(parser)
    return parser


def _add_certify_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("certificate")
    default = _PLAN.certify
    group.add_argument(
        "--certify", choices=CERTIFY_METHODS, default=default.method,
        help="ltt: the tolerance holds on data that nobody tuned on, except with probability --delta; "
        "none: the paper's way, no guarantee (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--delta", type=float, default=default.delta,
        help="probability with which the guarantee may fail (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--risk", choices=RISKS, default=default.risk,
        help="what --tolerance bounds: relative loss of the metric; disagreement with the final head, which needs no "
        "labels; relative loss of F1 or of the Matthews correlation, by bootstrap (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--certify-seed", type=int, default=default.seed, metavar="N",
        help="decides which half of the samples is tuned on and which is tested on (default: %(default)s)",
    )  # fmt: skip


def _add_search_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument(
        "--objective", choices=OBJECTIVES, default=_PLAN.objective,
        help="what to make small: latency of the mean query, its 99th percentile, or the time until a whole batch is "
        "done (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--max-exits", type=int, metavar="N", help="the most exits of a plan (default: as many as pay)")
    group.add_argument(
        "--grid-step", type=float, default=_PLAN.grid_step,
        help="distance of the greedy search's thresholds (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--tail-share", type=float, default=_TAIL.share,
        help="share of batches that must not be slower than the full network (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--tail-allowance", type=float, default=_TAIL.allowance,
        help="relative excess that counts as not slower (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--stay-allowance", type=float, default=_TAIL.stay_allowance,
        help="relative excess that a batch may cost which nobody leaves; a larger one lets more exits in "
        "(default: %(default)s)",
    )  # fmt: skip


def _add_timing_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("timing")
    group.add_argument(
        "--batch-sizes", type=_read_sizes, metavar="N,N,...",
        help="batch sizes to time, up to --batch-size (default: 1,2,4,8,12,16,24,32 and on)",
    )  # fmt: skip
    group.add_argument(
        "--rounds", type=int, default=_TIMING.rounds, help="timed runs per engine and batch size (default: %(default)s)"
    )
    group.add_argument(
        "--time-budget", type=float, default=_TIMING.budget_s, metavar="S",
        help="seconds after which timing stops early (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--max-engines", type=int, metavar="N",
        help="the most engines of the bundle, for backends whose engines are bound to a batch size (default: any)",
    )  # fmt: skip
    group.add_argument(
        "--memory-mb", type=float, metavar="MB", help="likewise, the most megabytes of engine files (default: any)"
    )
    group.add_argument(
        "--contenders", type=int, default=_MEASURE.contenders,
        help="how many of the best plans are measured end to end (default: %(default)s)",
    )  # fmt: skip


def read_tolerances(text: str) -> tuple[float, ...]:
    """Reads ``0.01,0.02``; the order does not matter."""
    try:
        return tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': expected tolerances with commas, e.g. 0,0.01,0.05") from None


def _read_sizes(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': expected numbers with commas, e.g. 1,8,32") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, or the one of ``COMMANDS`` that comes first; returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in COMMANDS:
        command: Callable[[Sequence[str]], int] = importlib.import_module(COMMANDS[words[0]]).main
        return command(words[1:])
    return run_command(plan, make_parser().parse_args(words))


def plan(arguments: argparse.Namespace) -> dict[str, Any]:
    """Plans, prints the tables and returns the result for ``--json``."""
    config = read_config(arguments)
    run = find_run(arguments.run)
    if arguments.sweep is not None:
        from planner.commands.sweep import run_sweep

        return run_sweep(arguments, run, config)
    from planner.workflow.inputs import is_imported

    if is_imported(run):
        from planner.foreign.planning import plan_imported

        result = plan_imported(run, config)
    else:
        from planner.workflow.planning import ensure_plan

        result = ensure_plan(run, config, say, data=arguments.data, precision=arguments.precision)
    print_result(result, to_stderr=arguments.json == "-")
    return {
        "run": str(run.root), "bundle": None if result.bundle is None else str(result.bundle),
        "plan_digest": result.plan_digest, "reused": result.reused,
        "plan": to_plain(result.plan), "considered": to_plain(result.considered),
        "certification": result.certification,
    }  # fmt: skip


def read_config(arguments: argparse.Namespace) -> PlanConfig:
    """Turns the flags into a validated config; errors are ``UsageError``."""
    from planner.workflow.inputs import read_load

    load = None if arguments.batch_distribution is None else read_load(arguments.batch_distribution)
    batch_size = arguments.batch_size
    if batch_size is None:
        batch_size = _PLAN.batch_size if load is None else load.largest
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: expected at least 1")
    threads = os.cpu_count() or 1 if arguments.threads is None else arguments.threads
    if arguments.engine not in BACKENDS:
        raise unknown_name("engine backend", arguments.engine, BACKENDS)
    sizes = arguments.batch_sizes or _TIMING.batch_sizes
    TimingConfig(batch_sizes=sizes)
    return PlanConfig(
        tolerance=arguments.tolerance,
        batch_size=batch_size,
        backend=arguments.engine,
        profiles=arguments.profiles,
        threads=threads,
        load=load,
        search=arguments.search,
        objective=arguments.objective,
        max_exits=arguments.max_exits,
        max_engines=arguments.max_engines,
        memory_mb=arguments.memory_mb,
        grid_step=arguments.grid_step,
        tail=SlowBatchRule(
            share=arguments.tail_share,
            allowance=arguments.tail_allowance,
            stay_allowance=arguments.stay_allowance,
        ),
        certify=CertifyConfig(
            method=arguments.certify, risk=arguments.risk, delta=arguments.delta, seed=arguments.certify_seed
        ),
        timing=TimingConfig(
            batch_sizes=batch_sizes_up_to(batch_size, sizes), rounds=arguments.rounds, budget_s=arguments.time_budget
        ),
        measure=MeasureConfig(contenders=arguments.contenders),
    )


def print_result(result: PlanningResult, *, to_stderr: bool = False) -> None:
    """Prints the committed plan, its expectation against the full network, and the runner-up plans."""
    plan, predicted = result.plan, result.plan.predicted
    committed = result.considered[0]
    full = next(plan for plan in result.considered if not plan.exits)
    faster = full.predicted_mean_ms / committed.predicted_mean_ms
    if committed.measured_mean_ms is not None and full.measured_mean_ms is not None:
        faster = full.measured_mean_ms / committed.measured_mean_ms
    _print_exits(plan, committed.arrival_ms, to_stderr=to_stderr)
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


def _measured(considered: ConsideredPlan) -> str:
    mean_ms = considered.measured_mean_ms
    return "" if mean_ms is None else f", {mean_ms:.3f} ms measured"


def describe_reference(result: PlanningResult) -> str:
    """Returns the line that compares the committed plan with the greedy search's; empty where that was the search."""
    baseline = next((plan for plan in result.considered if plan.reference), None)
    if baseline is None:
        return ""
    mine, objective = result.considered[0], result.plan.objective
    said = []
    for title, mine_ms, its_ms in (
        ("expected", mine.searched_ms(objective), baseline.searched_ms(objective)),
        ("measured", mine.measured_ms(objective), baseline.measured_ms(objective)),
    ):
        if mine_ms is not None and its_ms is not None:
            said.append(f"{title} {mine_ms:.3f} ms against {its_ms:.3f} ms, a factor of {its_ms / mine_ms:.3f}")
    return f"beside the greedy search's plan ({baseline.label}): {'; '.join(said)}\n"


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
            considered.label,
            f"{considered.metric:.4f}",
            f"{considered.predicted_mean_ms:.3f}",
            _show(considered.measured_mean_ms, ".3f"),
            _show(considered.stay_ratio, ".3f"),
            f"{considered.predicted_full_ms / considered.predicted_mean_ms:.2f}",
            "yes" if considered.allowed else "no",
        ]
        for considered in result.considered[:_SHOWN_PLANS]
    ]
    print_table(
        f"plans considered: {len(result.considered)}; the committed one first",
        ["plan", what, "predicted ms", "measured ms", "nobody leaves", "times as fast", "allowed"],
        rows,
        to_stderr=to_stderr,
    )


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

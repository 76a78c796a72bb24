"""``python -m planner``: finds the plan, measures it, ships the bundle, and prints what a person wants to know."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from artifacts import (
    FINAL_HEAD_LABEL,
    ExitPlan,
    MissingExtraError,
    RunFolder,
    UsageError,
    find_run,
    load_task,
    to_plain,
)
from artifacts.console import add_common_arguments, print_table, run_command, say
from calibration import CalibrationOptions, add_calibration_flags, read_training
from export import SOURCE_HELP, ExportOptions, add_network_flags, find_wanted_family, read_name, read_options
from planner.certify.evidence import metric_word
from planner.commands.compare import add_variant_flags, plan_variants
from planner.commands.sweep import read_tolerances, sweep
from planner.flags import add_flags, planner_command, read_config
from planner.foreign.planning import plan_imported
from planner.workflow.inputs import is_imported, read_task, settle_engine
from planner.workflow.record import ConsideredPlan, PlanningResult

if TYPE_CHECKING:
    from export import Family

_SHOWN_PLANS = 6


def make_parser(family: Family | None = None, *, epilog: str = "") -> argparse.ArgumentParser:
    """Returns the command line.

    Its flags are those of ``planner.flags``, with the defaults of ``planner.config``; and, for a source, those of
    ``python -m export`` and ``python -m calibration``, with the options of a family.
    """
    parser = argparse.ArgumentParser(
        prog="python -m planner",
        description="Find the exits and thresholds that save the most time within a tolerance, and build the bundle. "
        "With SOURCE: from a network and its data to the bundle, in one command.",
        epilog=epilog,
    )
    parser.add_argument("source", metavar="SOURCE", nargs="?", help=f"{SOURCE_HELP} (default: the run's own network)")
    add_common_arguments(parser)
    _add_source_flags(parser, family)
    parser.add_argument(
        "--sweep",
        type=read_tolerances,
        nargs="?",
        const=(),
        metavar="T,T,...",
        help="show the fastest plan at every tolerance of the whole range, or of a list, and build no bundle",
    )
    add_flags(parser)
    add_variant_flags(parser)
    return parser


def _add_source_flags(parser: argparse.ArgumentParser, family: Family | None = None) -> None:
    """Adds the flags of export and calibration, under the commands that own them."""
    parser.set_defaults(segments=True)  # which is a flag of python -m export alone
    add_network_flags(parser, family)
    add_calibration_flags(parser)


def main(argv: Sequence[str], *, epilog: str = "") -> int:
    """Runs the command; returns its exit code."""
    words = list(argv)

    def body(_: argparse.Namespace) -> dict[str, Any]:
        if arguments.engines or arguments.precisions:
            return plan_several(arguments, family, words)
        if arguments.source is None:
            _check_no_source_flags(arguments)
        run = _find_run(arguments)
        arguments.engine, arguments.precision = settle_engine(arguments.engine, arguments.precision, run, say)
        if arguments.source is not None:
            return plan_from_source(arguments, family, words)
        return plan(arguments) if arguments.sweep is None else sweep(arguments)

    try:
        family = find_wanted_family(words, make_parser)
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    arguments = make_parser(family, epilog=epilog).parse_args(words)
    return run_command(body, arguments)


def _find_run(arguments: argparse.Namespace) -> RunFolder:
    if arguments.source is None:
        return find_run(arguments.run)
    return find_run(arguments.run, name=read_name(arguments, ExportOptions(source=arguments.source)))


def plan_from_source(arguments: argparse.Namespace, family: Family | None, words: Sequence[str]) -> dict[str, Any]:
    """Does all that leads from a source to a bundle, prints the tables and returns the result for ``--json``."""
    if arguments.sweep is not None:
        raise UsageError(f"--sweep looks at a run that is there; leave {arguments.source} out and name it with --run")
    config, training = read_config(arguments), read_training(arguments)
    export = read_options(arguments, family)
    run = find_run(arguments.run, name=read_name(arguments, export))
    options = _read_calibration(arguments, words)
    try:
        from planner.workflow.from_source import plan_network
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or "").partition(".")[0], export.extra) from error
    result = plan_network(
        export, data=arguments.data, run=run.root, config=config, training=training, options=options
    )  # fmt: skip
    found = show_result(result, run, to_stderr=arguments.json == "-")
    say(f"measure it on held-out data: python -m runtime.bench --run {shlex.quote(str(run.root))}")
    return found


def plan_several(arguments: argparse.Namespace, family: Family | None, words: Sequence[str]) -> dict[str, Any]:
    """Plans the fastest of several variants of a network, prints the tables and returns the result for ``--json``."""
    export = None
    if arguments.source is None:
        _check_no_source_flags(arguments)
        run = find_run(arguments.run)
    else:
        export = read_options(arguments, family)
        run = find_run(arguments.run, name=read_name(arguments, export))
    result, chosen = plan_variants(arguments, run, export, _read_calibration(arguments, words))
    found = show_result(result, chosen, to_stderr=arguments.json == "-")
    say(f"measure it on held-out data: python -m runtime.bench --run {shlex.quote(str(chosen.root))}")
    return found


def _read_calibration(arguments: argparse.Namespace, words: Sequence[str]) -> CalibrationOptions:
    return CalibrationOptions(
        task=None if arguments.task is None else load_task(arguments.task),
        parts=arguments.parts,
        trace_samples=arguments.trace_samples,
        command=shlex.join(["python", "-m", "planner", *words]),
        report=say,
        force=arguments.force,
        memory_gb=arguments.memory_gb,
        workers=arguments.workers,
    )


def _check_no_source_flags(arguments: argparse.Namespace) -> None:
    """Refuses flags that mean something with a source only."""
    parser = argparse.ArgumentParser(add_help=False)
    _add_source_flags(parser)
    without = {"data", "force", "precision"}
    for name, default in vars(parser.parse_args([])).items():
        if name not in without and getattr(arguments, name) != default:
            raise UsageError(
                f"--{name.replace('_', '-')} goes with a network to start from: python -m planner SOURCE --data DATA; "
                "or with python -m export or python -m calibration"
            )


def plan(arguments: argparse.Namespace) -> dict[str, Any]:
    """Plans, prints the tables and returns the result for ``--json``."""
    config = read_config(arguments)
    run = find_run(arguments.run)
    command = planner_command(run.root, config, data=arguments.data, distribution=arguments.batch_distribution)
    if is_imported(run):
        result = plan_imported(run, config, say, command=command)
    else:
        from calibration import EngineChoice, ensure_trace  # not above: they load onnx
        from planner.workflow.planning import ensure_plan

        if arguments.force:  # which is about the network that a trace is made of, and a trace that is there is kept
            ensure_trace(
                run, EngineChoice(backend=config.backend, threads=config.threads), data=arguments.data,
                risk=config.certify.risk, options=CalibrationOptions(report=say, command=command, force=True),
            )  # fmt: skip
        result = ensure_plan(run, config, say, data=arguments.data, precision=arguments.precision, command=command)
    return show_result(result, run, to_stderr=arguments.json == "-")


def show_result(result: PlanningResult, run: RunFolder, *, to_stderr: bool) -> dict[str, Any]:
    """Prints the tables of a planning and returns its result for ``--json``."""
    print_result(result, metric_word(result.plan.risk, read_task(run)), to_stderr=to_stderr)
    return {
        "run": str(run.root),
        "bundle": None if result.bundle is None else str(result.bundle),
        "plan_digest": result.plan_digest,
        "reused": result.reused,
        "plan": to_plain(result.plan),
        "considered": to_plain(result.considered),
        "certification": result.certification,
        "reference": None if result.reference is None else to_plain(result.reference),
    }


def print_result(result: PlanningResult, metric: str, *, to_stderr: bool = False) -> None:
    """Prints the committed plan, its expectation beside the full network, and the other plans.

    Args:
        result: of the planning.
        metric: how the metric is called.
        to_stderr: stdout is for something else.
    """
    plan, predicted = result.plan, result.plan.predicted
    committed = result.considered[0]
    full = next(considered for considered in result.considered if not considered.exits)
    faster = full.predicted_mean_ms / committed.predicted_mean_ms
    if committed.measured_mean_ms is not None and full.measured_mean_ms is not None:
        faster = full.measured_mean_ms / committed.measured_mean_ms
    _print_exits(plan, metric, committed.arrival_ms, to_stderr=to_stderr)
    kept = plan.predicted_metric / plan.full_metric
    against = f" of the network in {plan.against}" if plan.against else ""
    stream = sys.stderr if to_stderr else sys.stdout
    print(
        f"\n{metric} {plan.predicted_metric:.4f} of {plan.full_metric:.4f}: {kept:.2%} kept, "
        f"asked for {1 - plan.tolerance:.2%}{against}\n"
        f"{describe_certificate(plan)}\n"
        f"mean latency {predicted.mean_ms:.3f} ms predicted{_measured(committed)}\n"
        f"full network {predicted.full_ms:.3f} ms timed{_measured(full)}: "
        f"{faster:.2f} times as fast on average\n"
        f"whole batch {predicted.batch_ms:.3f} ms predicted; mean if every query left at the first exit "
        f"that agrees with the {FINAL_HEAD_LABEL}: {predicted.oracle_mean_ms:.3f} ms\n{describe_form(plan)}"
        f"{compare_with_baseline(result)}",
        file=stream,
    )
    _print_considered(result, metric, to_stderr=to_stderr)
    made = f"bundle: {result.bundle}" if result.bundle else "imported run: a plan (exit_plan.json), no model to bundle"
    print(f"\n{made}", file=stream, flush=True)


def _measured(considered: ConsideredPlan) -> str:
    mean_ms = considered.measured_mean_ms
    return "" if mean_ms is None else f", {mean_ms:.3f} ms measured"


def compare_with_baseline(result: PlanningResult) -> str:
    """Returns the line that compares the committed plan with the greedy search's; empty where that was the search."""
    baseline = next((plan for plan in result.considered if plan.reference), None)
    if baseline is None:
        return ""
    mine, objective = result.considered[0], result.plan.objective
    parts = []
    for title, mine_ms, its_ms in (
        ("expected", mine.searched_ms(objective), baseline.searched_ms(objective)),
        ("measured", mine.measured_ms(objective), baseline.measured_ms(objective)),
    ):
        if mine_ms is not None and its_ms is not None:
            parts.append(f"{title} {mine_ms:.3f} ms against {its_ms:.3f} ms, a factor of {its_ms / mine_ms:.3f}")
    return f"beside the greedy search's plan ({baseline.label}): {'; '.join(parts)}\n"


def describe_form(plan: ExitPlan) -> str:
    """Returns the line that says how whole batches run, where that was measured."""
    if plan.batch_form is None:
        return ""
    times = ", ".join(f"{form} {ms:.3f}" for form, ms in plan.batch_form.batch_ms.items())
    chosen = plan.batch_form.form
    words = "stage by stage" if chosen == "stages" else f"as one graph ({chosen}), whose answers come together"
    return f"batches run {words}; measured in turns, in ms: {times}\n"


def describe_certificate(plan: ExitPlan) -> str:
    """Returns the line that says what is guaranteed for a plan."""
    certificate = plan.certificate
    if certificate is None:
        return "certificate: none (--certify none); the tolerance holds on the calibration data only"
    if not plan.exits and not plan.against:
        return "certificate: without exits nothing is lost"
    risk = {"metric": "relative loss of the metric", "agreement": "disagreement with the final head"}.get(
        certificate.risk, f"relative loss of {certificate.risk}"
    )
    sure = "" if certificate.finite_sample else " (asymptotically: a bootstrap, no finite-sample guarantee)"
    return (
        f"certificate: {risk} at most {certificate.bound:g}, except with probability {certificate.delta:g}{sure}\n"
        f"  {certificate.method} test on {certificate.samples} samples that were not tuned on: p = "
        f"{certificate.p_value:.3g}, observed {certificate.observed:.4f}"
    )


def _print_exits(plan: ExitPlan, metric: str, arrival_ms: Sequence[float], *, to_stderr: bool) -> None:
    rest = 1 - sum(exit_.leaving_share for exit_ in plan.exits)
    rows = [
        [
            exit_.cut,
            f"{exit_.threshold:.4g}",
            f"{exit_.leaving_share:.1%}",
            _show(exit_.metric, ".4f"),
            f"{exit_.arrival_ms:.3f}",
        ]
        for exit_ in plan.exits
    ]
    final = _show(_final_metric(plan, rest), ".4f")
    rows.append([FINAL_HEAD_LABEL, "-", f"{abs(rest):.1%}", final, f"{arrival_ms[-1]:.3f}"])
    print_table(
        f"exit plan ({plan.search}, tolerance {plan.tolerance:g}) for batches of {plan.batch_size} "
        f"on {plan.backend} with {plan.threads} threads",
        ["exit", "threshold", "leave here", f"{metric} there", "arrival ms"],
        rows,
        to_stderr=to_stderr,
    )
    if plan.confidences:
        print(
            f"confidence: learned at {', '.join(plan.confidences)} (docs/confidence.md)",
            file=sys.stderr if to_stderr else sys.stdout,
        )


def _final_metric(plan: ExitPlan, leaving: float) -> float | None:
    if leaving < 1e-9:
        return None
    before = sum(exit_.leaving_share * exit_.metric for exit_ in plan.exits if exit_.metric is not None)
    return (plan.predicted_metric - before) / leaving


def _print_considered(result: PlanningResult, metric: str, *, to_stderr: bool) -> None:
    reference, shares, staying = result.reference, [1.0], ["no row leaves"]
    if reference is not None:
        shares, staying = [1.0, reference.own_ratio], ["no row leaves", f"of {reference.label}"]
    rows = [
        [
            considered.label,
            f"{considered.metric:.4f}",
            f"{considered.predicted_mean_ms:.3f}",
            _show(considered.measured_mean_ms, ".3f"),
            *(_show_share(considered.stay_ratio, share) for share in shares),
            f"{considered.predicted_full_ms / considered.predicted_mean_ms:.2f}",
            "yes" if considered.allowed else "no",
        ]
        for considered in result.considered[:_SHOWN_PLANS]
    ]
    print_table(
        f"plans considered: {len(result.considered)}; the committed one first",
        ["plan", metric, "predicted ms", "measured ms", *staying, "times as fast", "allowed"],
        rows,
        to_stderr=to_stderr,
    )


def _show_share(ratio: float | None, share: float) -> str:
    return "-" if ratio is None else f"{ratio * share:.3f}"


def _show(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)

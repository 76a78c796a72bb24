"""``python -m planner import-trace``: makes a run from a trace and times that come from elsewhere."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts import TASKS, RunFolder, UsageError, find_task
from artifacts.console import add_common_arguments, print_table, run_command
from planner.certify.evidence import metric_word
from planner.foreign.files import read_times, read_trace
from planner.foreign.publishing import describe_import, publish_import


def make_parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m planner import-trace",
        description="Make a run from a trace and times of a system that is not ours, so that python -m planner plans "
        "for it. docs/import-trace.md describes the files.",
    )
    add_common_arguments(parser)
    parser.add_argument("--trace", type=Path, required=True, metavar="FILE", help="an .npz or .csv")
    parser.add_argument("--itm", type=Path, required=True, metavar="FILE", help="a .csv of times in milliseconds")
    parser.add_argument(
        "--task", metavar="NAME", help=f"what the answers mean, for the name of the metric: {', '.join(TASKS)}"
    )
    parser.add_argument(
        "--fixed-batch-sizes",
        action="store_true",
        help="engines run at the timed batch sizes only; others are padded or split",
    )
    parser.add_argument("--threads", type=int, default=1, help="of each engine, for the record (default: %(default)s)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_command(import_run, make_parser().parse_args(argv))


def import_run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Imports, prints what was found, and returns the result for ``--json``."""
    if arguments.run is None:
        raise UsageError("name the run to make: --run runs/NAME")
    run = RunFolder(root=arguments.run)
    if run.model.exists():
        raise UsageError(f"{run.root} is the run of a model of ours; name another with --run runs/NAME")
    if arguments.task is not None:
        find_task(arguments.task)
    trace = read_trace(arguments.trace)
    itm = read_times(arguments.itm, trace.exits, fixed=arguments.fixed_batch_sizes, threads=max(1, arguments.threads))
    publish_import(run, trace, itm, trace_file=arguments.trace, itm_file=arguments.itm, task=arguments.task)
    result = describe_import(run, trace, itm) | {"metric": metric_word("metric", arguments.task)}
    print_import(result, to_stderr=arguments.json == "-")
    return result


def print_import(result: dict[str, Any], *, to_stderr: bool = False) -> None:
    """Prints the exits and what to do next."""
    rows = [
        [
            exit_["exit"],
            "-" if exit_["metric"] is None else f"{exit_['metric']:.4f}",
            f"{exit_['agreement']:.4f}",
            f"{exit_['mean_confidence']:.4f}",
        ]
        for exit_ in result["exits"]
    ]
    columns = ["exit", result["metric"], "agrees with final", "mean confidence"]
    print_table(f"{result['samples']} samples in {result['run']}", columns, rows, to_stderr=to_stderr)
    risk = "" if result["labelled"] else " --risk agreement"
    run, largest = shlex.quote(result["run"]), result["batch_sizes"][-1]
    print(
        f"plan with: python -m planner --run {run} --batch-size {largest}{risk}",
        file=sys.stderr if to_stderr else sys.stdout,
        flush=True,
    )

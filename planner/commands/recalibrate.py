"""``python -m planner recalibrate``: a newly certified bundle from what a running host has seen."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts import MissingExtraError, find_run
from artifacts.console import add_common_arguments, run_command, say
from calibration import DATA_HELP
from planner.commands.plan import show_result


def make_parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m planner recalibrate",
        description="Plan for the stream that a host serves now, from the rows in its shadow log, and replace the "
        "run's bundle. The tolerance bounds the disagreement with the final head, which needs no labels.",
    )
    add_common_arguments(parser)
    parser.add_argument("--log", type=Path, required=True, metavar="DIR", help="the host's shadow_log")
    parser.add_argument("--all-rows", action="store_true", help="rows from before the last alarm too")
    parser.add_argument("--tolerance", type=float, help="allowed disagreement (default: the run's tolerance)")
    parser.add_argument(
        "--delta", type=float, help="probability with which the guarantee may fail (default: the run's)"
    )
    parser.add_argument(
        "--data", metavar="DATA", help=f"what plans are measured on where the log holds no inputs; {DATA_HELP}"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_command(lambda arguments: recalibrate(arguments, argv), make_parser().parse_args(argv))


def recalibrate(arguments: argparse.Namespace, argv: Sequence[str]) -> dict[str, Any]:
    """Plans, prints the tables and returns the result for ``--json``, as that of ``python -m planner``."""
    try:
        from planner.workflow.recalibrating import Recalibration, recalibrate_run
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or "").partition(".")[0], "export") from error
    run = find_run(arguments.run)
    asked = Recalibration(
        log=arguments.log, every_row=arguments.all_rows, tolerance=arguments.tolerance, delta=arguments.delta,
        data=arguments.data, command=shlex.join(["python", "-m", "planner", "recalibrate", *argv]),
    )  # fmt: skip
    result = recalibrate_run(run, asked, say)
    found = show_result(result, run, to_stderr=arguments.json == "-")
    say(f"a host takes it over with: await rt.reload({str(run.bundle)!r})")
    return found

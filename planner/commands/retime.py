"""``python -m planner --retime``: whether the plan of a run is still the fastest where it runs now."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import Any

from artifacts import MissingExtraError, find_run, to_plain
from artifacts.console import add_common_arguments, print_table, run_command, say
from planner.predict.objectives import OBJECTIVE_WORDS

FLAG = "--retime"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog=f"python -m planner {FLAG}",
        description="Time the engines of a planned run again, as its plan was asked for, and say whether the plan is "
        "still the fastest, on another machine or with other versions. Thresholds and bundle stay as they are.",
    )
    add_common_arguments(parser)
    return run_command(retime, parser.parse_args(argv))


def retime(arguments: argparse.Namespace) -> dict[str, Any]:
    """Times, prints the table, and returns the result for ``--json``."""
    try:
        from planner.workflow.retiming import retime_run
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or "").partition(".")[0], "export") from error
    run = find_run(arguments.run)
    found = retime_run(run, say)
    for name, (then, now) in found.changes.items():
        say(f"since the run was timed, {name} has changed: {then} -> {now}")
    plans = {"no exits": found.no_exits, "committed": found.committed, "fastest now": found.fastest}
    print_table(
        f"{OBJECTIVE_WORDS[found.objective]} expected, in milliseconds",
        ["plan", "as timed for it", "now", "exits"],
        [
            [name, f"{plan.planned_ms:.3f}", f"{plan.now_ms:.3f}", ", ".join(plan.exits) or "none"]
            for name, plan in plans.items()
        ],
        to_stderr=arguments.json == "-",
    )
    if found.still_fastest:
        say("the committed plan is still the fastest, as far as the times of its parts tell")
    else:
        anew = "" if found.changes else f"rm -r {shlex.quote(str(run.itm))} && "  # times that are current would be kept
        say(
            f"another plan takes {found.fastest.now_ms / found.committed.now_ms:.3f} of the committed one's time here. "
            f"To plan again from the kept trace: {anew}{run.remedy('planner')}"
        )
    if found.changes:
        bundle = shlex.quote(str(run.bundle))
        say(f"where engines of the bundle are refused, build them again: python -m engines build --bundle {bundle}")
    return {"run": str(run.root), **to_plain(found)}

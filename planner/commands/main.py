"""Command line of the planner: the table of its commands, and the choice of one of them."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping, Sequence

from artifacts import UsageError
from planner.commands import compare, import_trace, plan, portable, recalibrate, report, retime, scout, validate

COMMANDS: Mapping[str, Callable[[Sequence[str]], int]] = {
    "scout": scout.main,
    "report": report.main,
    "compare": compare.main,
    "validate": validate.main,
    "portable": portable.main,
    "recalibrate": recalibrate.main,
    "import-trace": import_trace.main,
}
"""The word after ``python -m planner`` -> the command; without one of these words it is ``plan.main``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first word names, or else the planning; returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if retime.FLAG in words:
        return retime.main([word for word in words if word != retime.FLAG])
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]](words[1:])
    if words and (meant := difflib.get_close_matches(words[0], COMMANDS, n=1, cutoff=0.75)):
        print(f"error: unknown command '{words[0]}'. Did you mean: python -m planner {meant[0]}?", file=sys.stderr)
        return UsageError.exit_code
    further = ", ".join(f"python -m planner {name}" for name in (*COMMANDS, retime.FLAG))
    return plan.main(words, epilog=f"Further commands, each with --help: {further}")

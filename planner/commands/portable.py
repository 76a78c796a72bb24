"""``python -m planner portable``: the committed plan as one ONNX file, for any host that runs ONNX."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts import MissingExtraError, UsageError, check_target, find_run
from artifacts.console import add_common_arguments, run_command, say
from calibration import DATA_HELP, load_run_data

_SAMPLES = 1024


def make_parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m planner portable",
        description="Write the committed plan as one ONNX file that decides by itself who leaves where: inputs as the "
        "network's, outputs as the network's and then exit_index and confidence. It is proven against the runtime, row "
        "by row, on held-out data.",
    )
    add_common_arguments(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.onnx", help="the file to write")
    parser.add_argument("--data", metavar="DATA", help=f"what it is proven on; {DATA_HELP} (default: the run's)")
    parser.add_argument(
        "--samples", type=int, default=_SAMPLES, metavar="N",
        help="prove and time it on at most N samples of the test part (default: %(default)s)",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_command(portable, make_parser().parse_args(argv))


def portable(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the file, says what was found and returns it for ``--json``."""
    if arguments.samples < 1:
        raise UsageError(f"--samples {arguments.samples}: expected at least 1")
    check_target("--output", arguments.output)
    try:
        from planner.portable.making import RUNTIME, make_portable
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or "").partition(".")[0], "export") from error
    run = find_run(arguments.run)
    samples = load_run_data(run, arguments.data, report=say)
    made = make_portable(run, arguments.output, samples, count=arguments.samples, report=say)
    times = ", ".join(f"{name} {ms:.3f}" for name, ms in made.batch_ms.items())
    ratio = made.batch_ms[made.form] / made.batch_ms[RUNTIME]
    say(
        f"wrote {made.path}: outputs {', '.join(spec.name for spec in made.graph.outputs)}\n"
        f"{made.rows} rows as the runtime answers them, {made.flips} of them left elsewhere with a confidence at a "
        f"threshold; largest difference of an answer {made.difference:.1e}\n"
        f"median time of a batch, in ms: {times}; the form '{made.form}' is {ratio:.3f} of the runtime"
    )
    return {
        "run": str(run.root), "output": str(made.path), "form": made.form, "rows": made.rows, "flips": made.flips,
        "difference": made.difference, "batch_ms": dict(made.batch_ms), "reason": made.reason,
        "outputs": [spec.name for spec in made.graph.outputs],
    }  # fmt: skip

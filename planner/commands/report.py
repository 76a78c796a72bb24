"""``python -m planner report``: one HTML page that explains a planned run, and its pictures in a folder beside it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts import find_run
from artifacts.console import add_common_arguments, run_command, say
from planner.report.benchmark import BENCH_JSON
from planner.report.drawing import check_matplotlib, encode_png
from planner.report.figures import draw_figures
from planner.report.gathering import gather_report
from planner.report.page import render_report
from planner.report.writing import check_output, write_report


def make_parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m planner report",
        description="Explain a planned run to anybody: one HTML page that needs no network, and its pictures as PNGs.",
    )
    add_common_arguments(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE.html", help="the page (default: report.html in the run's folder)"
    )
    parser.add_argument(
        "--bench",
        type=Path,
        metavar="FILE.json",
        help=f"what runtime.bench --json wrote (default: {BENCH_JSON} in the run's folder, if it is there)",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_command(report, make_parser().parse_args(argv))


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the page and the pictures, and returns where they are for ``--json``."""
    run = find_run(arguments.run)
    output = check_output(arguments.output or run.root / "report.html", run, given=arguments.output is not None)
    check_matplotlib()
    data = gather_report(run, arguments.bench, report=say)
    pictures = {name: encode_png(figure) for name, figure in draw_figures(data).items()}
    paths = write_report(output, render_report(data, pictures), pictures)
    say(f"wrote {output} and {len(paths)} pictures in {paths[0].parent}")
    if data.bench is None:
        say(data.bench_note)
    return {
        "run": str(run.root),
        "report": str(output),
        "figures": [str(path) for path in paths],
        "bench": data.bench is not None,
        "digests": dict(data.digests),
    }

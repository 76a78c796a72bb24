"""``python -m planner import-trace``: makes a run of a trace and times that come from elsewhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts import (
    TRACE_NPZ,
    InferenceTimeMatrix,
    RunFolder,
    Trace,
    UsageError,
    file_digest,
    new_artifact,
    open_artifact,
    write_json,
)
from artifacts.console import add_common_arguments, print_table, run_command
from planner.foreign.files import read_times, read_trace
from planner.measure.timing import ITM_JSON


def make_parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m planner import-trace",
        description="Make a run of a trace and times of a system that is not ours, so that python -m planner plans for "
        "it. The forms of the files stand in docs/import-trace.md.",
    )
    add_common_arguments(parser)
    parser.add_argument("--trace", type=Path, required=True, metavar="FILE", help="an .npz or .csv")
    parser.add_argument("--itm", type=Path, required=True, metavar="FILE", help="a .csv of times in milliseconds")
    parser.add_argument(
        "--fixed-batch-sizes", action="store_true",
        help="engines run at the timed batch sizes only; others are padded or split",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=1, help="of each engine, for the record (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(import_run, make_parser().parse_args(argv))


def import_run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Imports, prints what was found, and returns the result for ``--json``."""
    if arguments.run is None:
        raise UsageError("name the run to make: --run runs/NAME")
    run = RunFolder(root=arguments.run)
    if run.model.exists():
        raise UsageError(f"{run.root} is the run of a model of ours; name another with --run runs/NAME")
    trace = read_trace(arguments.trace)
    itm = read_times(arguments.itm, trace.exits, fixed=arguments.fixed_batch_sizes, threads=max(1, arguments.threads))
    publish_import(run, trace, itm, trace_file=arguments.trace, itm_file=arguments.itm)
    result = describe_import(run, trace, itm)
    print_import(result, to_stderr=arguments.json == "-")
    return result


def publish_import(run: RunFolder, trace: Trace, itm: InferenceTimeMatrix, *, trace_file: Path, itm_file: Path) -> None:
    """Publishes ``trace/`` and ``itm/``; what the run had of them before is replaced."""
    parameters = {"imported": True, "labelled": trace.labelled, "data_source": str(trace_file)}
    inputs = {"trace_file": file_digest(trace_file)}
    with new_artifact(run.trace, kind="trace", inputs=inputs, parameters=parameters) as staging:
        trace.save(staging / TRACE_NPZ)
    inputs = {"itm_file": file_digest(itm_file)}
    with new_artifact(run.itm, kind="itm", inputs=inputs, parameters={"imported": True}) as staging:
        write_json(staging / ITM_JSON, itm)


def describe_import(run: RunFolder, trace: Trace, itm: InferenceTimeMatrix) -> dict[str, Any]:
    """Returns the JSON object."""
    return {
        "run": str(run.root),
        "trace": open_artifact(run.trace, kind="trace", remedy="").digest,
        "itm": open_artifact(run.itm, kind="itm", remedy="").digest,
        "samples": trace.sample_count,
        "labelled": trace.labelled,
        "batch_sizes": list(itm.batch_sizes),
        "exits": trace.summarise(),
    }


def print_import(result: dict[str, Any], *, to_stderr: bool = False) -> None:
    """Prints the exits and what to do next."""
    rows = [
        [
            one["exit"], "-" if one["metric"] is None else f"{one['metric']:.4f}", f"{one['agreement']:.4f}",
            f"{one['mean_confidence']:.4f}",
        ]
        for one in result["exits"]
    ]  # fmt: skip
    columns = ["exit", "metric", "agrees with final", "mean confidence"]
    print_table(f"{result['samples']} samples in {result['run']}", columns, rows, to_stderr=to_stderr)
    risk = "" if result["labelled"] else " --risk agreement"
    print(
        f"plan with: python -m planner --run {result['run']} --batch-size {result['batch_sizes'][-1]}{risk}",
        file=sys.stderr if to_stderr else sys.stdout,
        flush=True,
    )

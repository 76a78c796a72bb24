"""``python -m runtime.bench``: the full network against the bundle, on held-out data, in one interleaved run.

A tool beside the embedded core; its folder is the only part of ``runtime`` that asks ``calibration`` for data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts import RunFolder, find_run, load_task
from artifacts.console import add_common_arguments, add_plot_argument, print_table, run_command, track
from calibration import DATA_HELP
from engines import DeviceOptions
from runtime.bench.figures import divide
from runtime.bench.measuring import BenchConfig, measure_bundle
from runtime.bench.plot import draw_result
from runtime.remedy import find_own_run


def make_parser() -> argparse.ArgumentParser:
    default = BenchConfig()
    parser = argparse.ArgumentParser(
        prog="python -m runtime.bench",
        description="Measure the full network against its bundle, on held-out data, in one interleaved run.",
    )
    add_common_arguments(parser)
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="another bundle than the run's own")
    parser.add_argument("--data", metavar="DATA", help=DATA_HELP)
    parser.add_argument("--task", metavar="MODULE:OBJECT", help="your own task, by which the answers are graded")
    parser.add_argument("--batch-size", type=int, help="queries per batch (default: what the bundle was planned for)")
    parser.add_argument("--rounds", type=int, default=default.rounds, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="of each engine (default: what the bundle was timed with)")
    parser.add_argument("--samples", type=int, help="how many test samples (default: all)")
    parser.add_argument(
        "--device", type=int, default=default.device.index, help="ordinal of the GPU (default: %(default)s)"
    )
    parser.add_argument("--no-cuda-graphs", action="store_true", help="have engines on a GPU enqueue their work anew")
    add_plot_argument(parser, "latency distributions and exit shares")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(bench, make_parser().parse_args(argv), draw=draw_result)


def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the tables, and returns the result for ``--json`` and ``--plot``."""
    config = BenchConfig(
        batch_size=arguments.batch_size, rounds=arguments.rounds, threads=arguments.threads, samples=arguments.samples,
        device=DeviceOptions(index=arguments.device, cuda_graphs=not arguments.no_cuda_graphs),
        task=None if arguments.task is None else load_task(arguments.task),
    )  # fmt: skip
    run = find_run_of(arguments.run, arguments.bundle)
    result = measure_bundle(
        run, arguments.bundle or run.bundle, config, data=arguments.data,
        track=lambda rounds: track(rounds, description="measuring", total=len(rounds)),
    )  # fmt: skip
    print_result(result, to_stderr=arguments.json == "-")
    return result


def find_run_of(run: Path | None, bundle: Path | None) -> RunFolder:
    """Returns the run to measure in: the one that is named, or the one in which the bundle lies."""
    own = None if run is not None or bundle is None else find_own_run(bundle)
    return find_run(run) if own is None else own


def print_result(result: dict[str, Any], *, to_stderr: bool = False) -> None:
    """Prints the tables for a person."""
    full, early = result["full"], result["early_exit"]
    rows = [
        (
            _metric_word(result), _number(full["metric"], 4), _number(early["metric"], 4),
            _times(result["metric_ratio"], 4),
        ),
        ("answers as the full network", "-", f"{result['agreement']:.4f}", "-"),
        *(
            (label, f"{full[key]:.3f}", f"{early[key]:.3f}", _times(divide(full[key], early[key])))
            for label, key in (
                ("mean latency, ms", "mean_latency_ms"), ("p50 latency, ms", "p50_ms"), ("p99 latency, ms", "p99_ms"),
                ("whole batch, ms", "batch_ms"),
            )
        ),
        (
            "queries per second", f"{full['throughput_per_s']:.0f}", f"{early['throughput_per_s']:.0f}",
            _times(result["throughput_ratio"]),
        ),
    ]  # fmt: skip
    title = (
        f"{result['model']} on {result['engine']}, {result['threads']} threads: {result['samples']} test samples in "
        f"batches of {result['batch_size']}, {result['rounds']} rounds"
    )
    full_name = f"full in {result['full_precision']}" if "full_precision" in result else "full"
    print_table(title, ["", full_name, "early exit", "gain"], rows, to_stderr=to_stderr)
    exits = [
        (
            exit_["exit"], _number(exit_["threshold"], 3), f"{exit_['share']:.1%}", _number(exit_["metric"], 4),
            _number(exit_["agreement"], 4), _number(exit_["mean_latency_ms"], 3),
        )
        for exit_ in result["per_exit"]
    ]  # fmt: skip
    columns = ["exit", "threshold", "leaving", _metric_word(result), "agreement", "latency, ms"]
    print_table("", columns, exits, to_stderr=to_stderr)
    if result.get("lengths"):
        lengths = [
            (
                str(here["length"]), f"{here['query_share']:.1%}", f"{here['batch_share']:.1%}",
                _number(here["full_batch_ms"], 3), _number(here["early_exit_batch_ms"], 3), _number(here["ratio"], 3),
            )
            for here in result["lengths"]
        ]  # fmt: skip
        columns = ["length", "queries", "batches", "full, ms", "early exit, ms", "ratio"]
        print_table("", columns, lengths, to_stderr=to_stderr)
    predicted = _number(result["predicted_mean_latency_ms"], 3)
    print(
        f"mean latency predicted {predicted} ms, replayed {result['replayed_mean_latency_ms']:.3f} ms, "
        f"oracle {result['oracle_mean_latency_ms']:.3f} ms\n"
        f"engines {result['engine_ms']:.3f} ms of a batch (overhead {_times(result['overhead_ratio'], 3)}); "
        f"a batch that no query leaves early costs {result['no_exit_ratio']:.3f} of the full network",
        file=sys.stderr if to_stderr else sys.stdout,
    )


def _metric_word(result: dict[str, Any]) -> str:
    """Returns the name of the task's metric; a result of an earlier release does not hold it."""
    return str(result.get("metric_name", "metric"))


def _times(ratio: float | None, digits: int = 2) -> str:
    return "-" if ratio is None else f"{ratio:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

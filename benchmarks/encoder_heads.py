"""Heads of encoders: mean pooling against the pooler (first token, a tanh layer), trained on one text run each.

    python -m benchmarks.encoder_heads --data DIR --weights MINILM --work heads --json heads.json

For every kind of head and every seed: the encoder is exported with final head and exit heads of that kind, all is
trained together on the data's train part (``--train joint``), traced on the calibrate part, planned without a
certificate, and measured on the test part. Reported per kind are the metric at every exit, what a head costs, and what
the plan of the tolerance takes, of the whole network of the same kind and in milliseconds; medians over the seeds.
Every step is kept in ``--work`` and not done again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import TRACE_NPZ, EngineError, RunFolder, Trace, UsageError, environment_fingerprint, open_artifact
from artifacts.console import print_table, run_command, say

KINDS = ("mean", "pooler")
FULL = "full network"


def run_step(*words: str) -> None:
    """Runs one of our commands, whose output is for the terminal.

    Raises:
        EngineError: it failed; it has said why.
    """
    say(f"python -m {' '.join(words)}")
    if subprocess.run([sys.executable, "-m", *words], stdout=sys.stderr, check=False).returncode != 0:
        raise EngineError(f"python -m {' '.join(words)} failed; its own message is above")


def make_run(arguments: argparse.Namespace, kind: str, seed: int) -> Path:
    """Exports, trains, traces and plans one run, as far as that is not done yet, and measures it."""
    root: Path = arguments.work / f"{kind}-{seed}"
    run, found = RunFolder(root=root), root / "bench.json"
    if found.is_file():
        say(f"{root} is there already")
        return root
    where, data = ["--run", str(root)], ["--data", str(arguments.data)]
    threads = ["--threads", str(arguments.threads)]
    if not run.model.exists():
        lengths = [] if arguments.lengths is None else ["--lengths", arguments.lengths]
        run_step("export", "bert", "--segments", "--weights", arguments.weights, "--head", kind, "--pooling", kind,
                 *lengths, *where)  # fmt: skip
    samples = [] if arguments.samples is None else ["--samples", str(arguments.samples)]
    run_step("calibration", *where, *data, *threads, "--train", "joint", "--epochs", str(arguments.epochs),
             "--seed", str(seed), *samples)  # fmt: skip
    run_step("planner", *where, *threads, "--tolerance", str(arguments.tolerance), "--certify", "none",
             "--json", str(root / "plan.json"))  # fmt: skip
    run_step("runtime.bench", *where, "--json", str(found))
    return root


def read_run(root: Path) -> dict[str, Any]:
    """Returns the figures of one run."""
    run = RunFolder(root=root)
    trace = Trace.load(open_artifact(run.trace, kind="trace", remedy="delete the folder").path(TRACE_NPZ))
    bench = json.loads((root / "bench.json").read_text())
    metrics = trace.metric.mean(axis=1, dtype=np.float64).tolist()
    full, early = bench["full"], bench["early_exit"]
    return {
        "metric": dict(zip((*trace.exits, FULL), metrics, strict=True)), "exits": bench["exits"],
        "full_ms": full["mean_latency_ms"], "early_ms": early["mean_latency_ms"],
        "full_test_metric": full["metric"], "early_test_metric": early["metric"],
        "mean_latency_ratio": early["mean_latency_ms"] / full["mean_latency_ms"],
    }  # fmt: skip


def summarise(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the medians over the seeds of one kind."""
    exits = list(runs[0]["metric"])
    metric = {name: float(np.median([run["metric"][name] for run in runs])) for name in exits}
    numbers = ("full_ms", "early_ms", "full_test_metric", "early_test_metric", "mean_latency_ratio")
    return {"metric": metric, **{name: float(np.median([run[name] for run in runs])) for name in numbers}}


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Makes and measures all runs, prints the table and returns the result for ``--json``."""
    if arguments.seeds < 1:
        raise UsageError(f"--seeds {arguments.seeds}: expected at least 1")
    made = {kind: [read_run(make_run(arguments, kind, seed)) for seed in range(arguments.seeds)] for kind in KINDS}
    found = {kind: summarise(runs) for kind, runs in made.items()}
    rows = [
        *((f"metric at {name}", *(f"{found[kind]['metric'][name]:.4f}" for kind in KINDS)) for name in
          found[KINDS[0]]["metric"]),
        *((title, *(f"{found[kind][name]:.4f}" for kind in KINDS)) for title, name in (
            ("full network on the test part, metric", "full_test_metric"),
            ("bundle on the test part, metric", "early_test_metric"),
            ("full network, ms", "full_ms"), ("bundle, ms", "early_ms"),
            ("bundle, of its full network", "mean_latency_ratio"),
        )),
    ]  # fmt: skip
    print_table(
        f"{arguments.data}: {arguments.epochs} epochs, tolerance {arguments.tolerance:g}, medians of "
        f"{arguments.seeds} seeds",
        ["", *KINDS], rows, to_stderr=arguments.json == "-",
    )  # fmt: skip
    return {
        "kinds": found, "runs": made, "epochs": arguments.epochs, "samples": arguments.samples,
        "tolerance": arguments.tolerance, "environment": environment_fingerprint(),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.encoder_heads", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="texts, as python -m calibration takes them")
    parser.add_argument("--weights", default="minilm", help="a folder, or %(default)s, which is fetched")
    parser.add_argument("--work", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--lengths", help="as python -m export takes them, e.g. 16,32,64")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--samples", type=int, help="of the train part (default: all)")
    parser.add_argument("--seeds", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tolerance", type=float, default=0.01)
    parser.add_argument("--json", metavar="FILE", help="write the result there; - for stdout")
    parser.add_argument("-v", "--verbose", action="store_true")
    return run_command(compare, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())

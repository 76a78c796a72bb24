"""``python -m planner --sweep``: runs the sweep and prints its table."""

from __future__ import annotations

import argparse
from typing import Any

from artifacts import RunFolder, UsageError, to_plain
from artifacts.console import print_table, say
from planner.config import PlanConfig
from planner.predict.objectives import BATCH, MEAN, OBJECTIVE_WORDS, P99, time_ms
from planner.sweep.points import Sweep
from planner.sweep.sweeping import ensure_sweep, prepare_sweep


def run_sweep(arguments: argparse.Namespace, run: RunFolder, config: PlanConfig) -> dict[str, Any]:
    """Sweeps, prints the table and returns the result for ``--json``."""
    wrong = [tolerance for tolerance in arguments.sweep if not 0 <= tolerance < 1]
    if wrong:
        raise UsageError(f"--sweep {wrong[0]:g}: expected relative losses from 0 to below 1, e.g. 0,0.01,0.05")
    sweep, reused = ensure_sweep(prepare_sweep(run, config, data=arguments.data), arguments.sweep or None)
    if reused:
        say(f"nothing has changed: the sweep in {run.sweep} stands")
    print_sweep(sweep, config, to_stderr=arguments.json == "-")
    if config.certify.risk == "agreement":
        say("metric: the agreement with the full network (--risk agreement)")
    return {
        "run": str(run.root), "reused": reused, "risk": config.certify.risk,
        "search": config.search, "batch_size": config.batch_size,
        "engine": config.backend, "threads": config.threads, **to_plain(sweep),
    }  # fmt: skip


def print_sweep(sweep: Sweep, config: PlanConfig, *, to_stderr: bool = False) -> None:
    """Prints the operating points; a star marks those that no other is better than."""
    labels = [point.label for point in sweep.points]
    width = max(map(len, labels))
    told = (MEAN, P99, BATCH) if sweep.objective == P99 else (MEAN, BATCH)
    rows = [
        [
            f"{point.tolerance:.2%}", "*" if point.efficient else "", f"{point.metric:.4f}",
            f"{point.metric_ratio:.2%}", *(f"{time_ms(point, one):.3f}" for one in told), f"{point.speedup:.2f}",
            label.ljust(width),
        ]
        for point, label in zip(sweep.points, labels, strict=True)
    ]  # fmt: skip
    print_table(
        f"{config.search} search, batches of {config.batch_size} on {config.backend} with {config.threads} threads; "
        f"full network: metric {sweep.full_metric:.4f}, {OBJECTIVE_WORDS[sweep.objective]} {sweep.full_ms:.3f} ms",
        ["tolerance", "best", "metric", "kept", *(f"{one} ms" for one in told), "times as fast", "plan".ljust(width)],
        rows,
        to_stderr=to_stderr,
    )
    for one in sweep.refused:
        say(f"no plan at {one.tolerance:.2%}: {one.reason}")
    carried = [f"{point.tolerance:.2%}" for point in sweep.points if point.found_at < point.tolerance]
    if carried:
        say(
            f"at {', '.join(carried)} the {config.search} search by itself ends with a slower plan than at a smaller "
            "tolerance; the table shows the faster one, which keeps both"
        )
    say(
        f"*: no other point keeps as much with a smaller {OBJECTIVE_WORDS[sweep.objective]}, by which “times as fast” "
        "goes, too. Metrics are those of the calibration data, times are expected; no bundle was built"
    )

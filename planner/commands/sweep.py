"""``python -m planner --sweep``: searches at many tolerances and prints the table of operating points."""

from __future__ import annotations

import argparse
from typing import Any

from artifacts import UsageError, find_run, to_plain
from artifacts.console import print_table, say
from planner.config import PlanConfig
from planner.flags import planner_command, read_config
from planner.predict.objectives import BATCH, MEAN, OBJECTIVE_WORDS, P99, time_ms
from planner.sweep.points import OperatingPoint, Sweep
from planner.sweep.sweeping import ensure_sweep
from planner.workflow.inputs import ensure_inputs, is_imported, read_inputs


def read_tolerances(text: str) -> tuple[float, ...]:
    """Reads ``0.01,0.02``; the order does not matter."""
    try:
        return tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': expected tolerances with commas, e.g. 0,0.01,0.05") from None


def sweep(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sweeps, prints the table and returns the result for ``--json``."""
    config = read_config(arguments)
    run = find_run(arguments.run)
    wrong = [tolerance for tolerance in arguments.sweep if not 0 <= tolerance < 1]
    if wrong:
        raise UsageError(f"--sweep {wrong[0]:g}: expected relative losses from 0 to below 1, e.g. 0,0.01,0.05")
    command = planner_command(
        run.root, config, data=arguments.data, distribution=arguments.batch_distribution, sweep=arguments.sweep
    )
    inputs = (
        read_inputs(run, risk=config.certify.risk)
        if is_imported(run)
        else ensure_inputs(run, config, data=arguments.data, command=command, report=say)
    )
    found, reused = ensure_sweep(inputs, config, arguments.sweep or None, command=command, report=say)
    if reused:
        say(f"nothing has changed: the sweep in {run.sweep} stands")
    print_sweep(found, config, to_stderr=arguments.json == "-")
    if config.certify.risk == "agreement":
        say("metric: the agreement with the full network (--risk agreement)")
    return {
        "run": str(run.root),
        "reused": reused,
        "risk": config.certify.risk,
        "search": config.search,
        "batch_size": config.batch_size,
        "engine": config.backend,
        "threads": config.threads,
        **to_plain(found),
    }


def print_sweep(found: Sweep, config: PlanConfig, *, to_stderr: bool = False) -> None:
    """Prints the operating points; a star marks those that no other point beats."""
    width = max(len(point.label) for point in found.points)
    shown = (MEAN, P99, BATCH) if found.objective == P99 else (MEAN, BATCH)
    columns = ["tolerance", "best", "metric", "kept", *(f"{name} ms" for name in shown), "times as fast"]
    print_table(
        f"{config.search} search, batches of {config.batch_size} on {config.backend} with {config.threads} threads; "
        f"full network: metric {found.full_metric:.4f}, {OBJECTIVE_WORDS[found.objective]} {found.full_ms:.3f} ms",
        [*columns, "plan".ljust(width)],
        [_point_row(point, shown, width) for point in found.points],
        to_stderr=to_stderr,
    )
    for refusal in found.refused:
        say(f"no plan at {refusal.tolerance:.2%}: {refusal.reason}")
    carried = [f"{point.tolerance:.2%}" for point in found.points if point.found_at < point.tolerance]
    if carried:
        say(
            f"at {', '.join(carried)} the {config.search} search by itself ends with a slower plan than at a smaller "
            "tolerance; the table shows the faster one, which keeps both"
        )
    say(
        f"*: no other point keeps as much with a smaller {OBJECTIVE_WORDS[found.objective]}, by which “times as fast” "
        "is measured, too. Metrics are those of the calibration data, times are expected; no bundle was built"
    )


def _point_row(point: OperatingPoint, shown: tuple[str, ...], width: int) -> list[str]:
    return [
        f"{point.tolerance:.2%}",
        "*" if point.efficient else "",
        f"{point.metric:.4f}",
        f"{point.metric_ratio:.2%}",
        *(f"{time_ms(point, name):.3f}" for name in shown),
        f"{point.speedup:.2f}",
        point.label.ljust(width),
    ]

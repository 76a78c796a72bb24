"""``python -m planner --engines A,B --precisions P,Q`` and ``python -m planner compare``: the variants of a network."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts import (
    PRECISIONS,
    MissingExtraError,
    RunFolder,
    UsageError,
    find_run,
    from_plain,
    recorded_command,
    to_plain,
)
from artifacts.console import add_common_arguments, add_plot_argument, print_table, run_command, say
from calibration import CalibrationOptions, read_training
from engines import DEFAULT_BACKEND
from export import ExportOptions, read_command
from planner.flags import read_config
from planner.predict.objectives import OBJECTIVE_WORDS
from planner.variants.comparison import Comparison, read_comparison
from planner.variants.listing import PRECISION_NAMES, list_variants
from planner.variants.plot import draw_comparison
from planner.workflow.record import PlanningResult


def add_variant_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that ask for several variants."""
    group = parser.add_argument_group("variants: the fastest of several is planned, certified and committed")
    group.add_argument("--engines", type=_read_names, metavar="A,B,...", help="engine backends, in place of --engine")
    group.add_argument(
        "--precisions", type=_read_names, metavar="P,Q,...",
        help=f"of {', '.join(PRECISION_NAMES)}, in place of --precision",
    )  # fmt: skip


def _read_names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in text.split(",") if name))


def plan_variants(
    arguments: argparse.Namespace, run: RunFolder, export: ExportOptions | None, options: CalibrationOptions
) -> tuple[PlanningResult, RunFolder]:
    """Compares the variants that a command line asks for; prints the table.

    Args:
        arguments: of ``python -m planner``.
        run: of the network.
        export: of the network; ``None``: as the run's own was exported.
        options: task, parts, messages and the command line.

    Returns:
        The plan of the fastest, and its run.

    Raises:
        UsageError: a flag contradicts the variants, or the run holds nothing that says where its network came from.
    """
    if arguments.sweep is not None:
        raise UsageError("--sweep looks at one engine in one precision: leave --engines and --precisions out, and name "
                         f"a variant's folder in {run.root / 'variants'} with --run")  # fmt: skip
    engines = arguments.engines or (arguments.engine or DEFAULT_BACKEND,)
    precisions = arguments.precisions or (arguments.precision or PRECISIONS[0],)
    try:
        from planner.variants.comparing import ComparisonJob, plan_fastest
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or "").partition(".")[0], "train") from error
    variants, left_out = list_variants(run, engines, precisions)
    for item in left_out:
        say(f"left out: {item.label}: {item.reason}")
    job = ComparisonJob(
        run=run, export=export or _recorded_export(run), data=arguments.data, config=read_config(arguments),
        training=read_training(arguments), options=options,
    )  # fmt: skip
    result, comparison, winner = plan_fastest(job, variants, left_out)
    print_comparison(comparison, to_stderr=arguments.json == "-")
    return result, winner.run


def _recorded_export(run: RunFolder) -> ExportOptions:
    command = recorded_command(run.model)
    if command is None:
        raise UsageError(
            f"{run.root} does not say where its network came from, so that it cannot be exported in another precision. "
            "Name it: python -m planner SOURCE --data DATA --engines ... --precisions ..."
        )
    return read_command(shlex.split(command)[3:])


def main(argv: Sequence[str]) -> int:
    """Runs ``python -m planner compare``; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m planner compare",
        description="Show how the variants of a network compare: every engine and precision that was planned for with "
        "--engines and --precisions, and which of them was committed.",
    )
    add_common_arguments(parser)
    add_plot_argument(parser, "them")
    return run_command(compare, parser.parse_args(argv), draw=_draw)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Prints the table and returns the comparison for ``--json`` and ``--plot``."""
    run = find_run(arguments.run)
    found = read_comparison(run)
    print_comparison(found, to_stderr=arguments.json == "-")
    return {"run": str(run.root), **to_plain(found)}


def _draw(result: dict[str, Any], path: Path) -> None:
    draw_comparison(from_plain(Comparison, {name: value for name, value in result.items() if name != "run"}), path)


def print_comparison(found: Comparison, *, to_stderr: bool = False) -> None:
    """Prints the table for a person."""
    rows = [
        [
            f"{variant.label}{' *' if variant.chosen else ''}",
            f"{variant.metric:.4f}",
            f"{variant.metric / variant.reference_metric:.2%}",
            f"{variant.whole_ms:.3f}",
            "-" if variant.expected_ms is None else f"{variant.expected_ms:.3f}",
            *(_show_ratio(ratio) for ratio in (variant.stay_ratio, variant.stay_reference_ratio)),
            ", ".join(variant.exits) or "none",
        ]
        for variant in found.variants
    ]
    print_table(
        f"variants at tolerance {found.tolerance:g}, batches of {found.batch_size}, {found.threads} threads; "
        "the committed one has a star",
        ["variant", "metric, no exits", "kept, no exits", "whole batch ms", f"{OBJECTIVE_WORDS[found.objective]} ms",
         "no row leaves", f"of {'itself' if found.reference is None else found.reference.label}", "exits"],
        rows,
        to_stderr=to_stderr,
    )  # fmt: skip
    if found.reference is not None:
        say(
            f"slow batches are compared with {found.reference.label} without exits, {found.reference.whole_ms:.3f} ms "
            "a batch; “no row leaves”: the time of such a batch, of the variant's own network and of that one"
        )
    for item in found.left_out:
        say(f"left out: {item.label}: {item.reason}")


def _show_ratio(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3f}"

"""``python -m calibration resnet``: train heads where missing, collect traces."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import (
    EXIT_PLAN_JSON,
    Artifact,
    ExitPlan,
    MissingExtraError,
    Trace,
    UsageError,
    find_run,
    open_artifact,
    read_json,
    to_plain,
)
from artifacts.console import add_common_arguments, print_table, run_command, say
from calibration.tracing.flips import FlipReport, count_flips

if TYPE_CHECKING:
    from calibration.training.end_to_end import JointConfig
    from calibration.training.frozen import FrozenConfig

WAYS = ("frozen", "joint")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m calibration",
        description="Train exit heads where they are missing, and collect the trace that planning reads.",
    )
    parser.add_argument("name", nargs="?", help="the run in runs/, e.g. resnet (default: the only one)")
    add_common_arguments(parser)
    parser.add_argument(
        "--data", type=Path, metavar="DIR",
        help="your images: class folders or an .npz; queries without labels: a folder or an .npz of images alone",
    )  # fmt: skip
    parser.add_argument("--engine", default="onnxruntime", help="engine backend (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of each engine and of training (default: all cores)")
    parser.add_argument(
        "--against", type=Path, metavar="RUN",
        help="count the decisions that differ from those of another run of this network, of another precision say",
    )  # fmt: skip
    group = parser.add_argument_group("training")
    group.add_argument(
        "--train", choices=WAYS, default="frozen",
        help="frozen: the heads that are not there yet, the backbone stays as it is; "
        "joint: backbone first, then all together with self-distillation (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--epochs", type=int, help="passes over the train part")
    group.add_argument("--backbone-epochs", type=int, help="with joint: how many of them train the backbone alone")
    group.add_argument("--train-batch-size", type=int, dest="batch_size", help="samples per training step")
    group.add_argument("--learning-rate", type=float, help="peak of the schedule")
    group.add_argument("--seed", type=int, help="decides order, augmentation and initialisation")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(calibrate, make_parser().parse_args(argv))


def calibrate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains, traces, prints the table of exits and returns the result for ``--json``."""
    flow = _load_flow()
    run = find_run(arguments.run, name=arguments.name)
    threads = check_threads(arguments.threads)
    engine = flow.EngineChoice(backend=arguments.engine, threads=threads)
    flow.ensure_model(run)
    data = flow.load_run_data(run, arguments.data)
    config = _config(arguments)
    train = flow.retrain_jointly if arguments.train == "joint" else flow.train_missing
    model = train(run, data, config, engine)
    source = flow.source_name(data, arguments.data, run)
    artifact, trace = flow.trace_model(run, model, data, engine, source=source)
    exits = trace.summarise()
    rows = [
        [
            one["exit"], "-" if one["metric"] is None else f"{one['metric']:.4f}", f"{one['agreement']:.4f}",
            f"{one['mean_confidence']:.4f}",
        ]
        for one in exits
    ]  # fmt: skip
    print_table(
        f"{trace.sample_count} samples of {data.name} (calibrate part) through {run.model}",
        ["exit", "metric", "agrees with final", "mean confidence"],
        rows,
    )
    if not trace.labelled:
        say(f"no labels: plan with python -m planner --run {run.root} --risk agreement")
    flips = None if arguments.against is None else compare_runs(arguments.against, artifact, trace)
    if flips is not None:
        print_flips(flips, against=arguments.against)
    return {
        "run": str(run.root), "model": model.digest, "trace": artifact.digest, "data": data.name,
        "samples": trace.sample_count, "labelled": trace.labelled, "exits": exits, "flips": to_plain(flips),
    }  # fmt: skip


def compare_runs(against: Path, artifact: Artifact, trace: Trace) -> FlipReport:
    """Counts the decisions that differ between another run's trace and this one, at that run's planned thresholds.

    Raises:
        UsageError: the other run's trace is of other data.
        ArtifactError: it has none, or a damaged one.
    """
    other = find_run(against)
    before = open_artifact(other.trace, kind="trace", remedy=f"python -m calibration --run {other.root}")
    data = [{**one.manifest.inputs, "model": ""} for one in (before, artifact)]
    if data[0] != data[1]:
        raise UsageError(f"--against {against}: its trace is of other data than that of {artifact.folder}")
    thresholds: dict[str, float] = {}
    if (other.plan / EXIT_PLAN_JSON).is_file():
        plan = read_json(other.plan / EXIT_PLAN_JSON, ExitPlan)
        thresholds = {planned.cut: planned.threshold for planned in plan.exits}
    return count_flips(Trace.load(before.path("trace.npz")), trace, thresholds)


def print_flips(flips: FlipReport, *, against: Path) -> None:
    """Prints what differs, exit by exit."""
    rows = [
        (
            one.exit, "-" if one.threshold is None else f"{one.threshold:.3g}",
            "-" if one.decisions is None else one.decisions, one.metrics, f"{one.confidence_change:.1e}",
            f"{one.metric_before:.4f}", f"{one.metric_after:.4f}",
        )
        for one in flips.exits
    ]  # fmt: skip
    what = "metric" if flips.labelled else "agreement"
    columns = ["exit", "threshold", "leave flips", f"{what} flips", "confidence change", f"{what} there", "here"]
    print_table(f"of {flips.samples} samples, against {against}", columns, rows)
    if flips.moved is not None:
        print(f"{flips.moved} of {flips.samples} samples leave at another exit with that run's plan")


def check_threads(threads: int | None) -> int:
    """Returns the thread count that was asked for, or one per core."""
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: expected at least 1")
    return threads or os.cpu_count() or 1


def _load_flow() -> Any:
    try:
        return importlib.import_module("calibration.flow")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingExtraError(package, "train") from error


def _config(arguments: argparse.Namespace) -> FrozenConfig | JointConfig:
    from calibration.training.end_to_end import JointConfig
    from calibration.training.frozen import FrozenConfig

    kind = JointConfig if arguments.train == "joint" else FrozenConfig
    if arguments.backbone_epochs is not None and kind is FrozenConfig:
        raise UsageError("--backbone-epochs goes with --train joint")
    fields = {field.name for field in dataclasses.fields(kind)}
    given = {name: value for name, value in vars(arguments).items() if name in fields and value is not None}
    return kind(**given)

"""``python -m calibration resnet``: train heads where missing, collect traces."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from artifacts import (
    EXIT_PLAN_JSON,
    TRACE_NPZ,
    Artifact,
    ExitPlan,
    MissingExtraError,
    Model,
    RunFolder,
    Trace,
    UsageError,
    allowed_processors,
    find_run,
    load_task,
    open_artifact,
    read_json,
    to_plain,
)
from artifacts.console import add_common_arguments, print_table, run_command, say
from calibration.data.sources import DATA_HELP, load_run_data, source_name
from calibration.launch import Launch
from calibration.options import CalibrationOptions
from calibration.tracing.flips import FlipReport, count_flips
from calibration.tracing.kept_engine import traced_backend
from calibration.tracing.metrics import set_metrics
from calibration.training.config import AUGMENTATIONS, OPTIMISERS, PRECISIONS, FrozenConfig, JointConfig
from engines import DEFAULT_BACKEND

WAYS = ("frozen", "joint")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m calibration",
        description="Train exit heads where they are missing, and collect the trace that planning reads.",
    )
    parser.add_argument("name", nargs="?", help="the run in runs/, e.g. resnet (default: the only one)")
    add_common_arguments(parser)
    parser.add_argument("--engine", help=f"engine backend (default: that of the run's trace, else {DEFAULT_BACKEND})")
    parser.add_argument("--threads", type=int, help="threads of each engine and of training (default: all cores)")
    parser.add_argument(
        "--against", type=Path, metavar="RUN",
        help="count the decisions that differ from those of another run of this network, of another precision say",
    )  # fmt: skip
    add_calibration_flags(parser)
    parser.add_argument(
        "--confidence", metavar="auto|NAME",
        help="of a family: how sure an exit is; auto: of the recipes for its answers the one that ranks the loss best "
        "on the train part (default: as it was exported)",
    )  # fmt: skip
    return parser


def add_calibration_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what is calibrated and trained with, and how."""
    parser.add_argument("--data", metavar="DATA", help=DATA_HELP)
    parser.add_argument(
        "--parts", metavar="PART=SOURCE:SHARE[@PATTERN]",
        help="let a share of one part of the data become another, e.g. calibrate=test:0.5; with @PATTERN files whose "
        "names begin with the same match of a regular expression stay together, e.g. calibrate=test:0.5@[^_]+ or "
        "@[^_]+ for the frames of one drive",
    )  # fmt: skip
    parser.add_argument(
        "--task", metavar="TASK", help="how answers are judged: a task's name, or module:object for one of your own"
    )
    parser.add_argument(
        "--trace-samples", type=int, metavar="N",
        help="trace N samples of the calibrate part, drawn at random (default: as before, or all)",
    )  # fmt: skip
    parser.add_argument(
        "--force", action="store_true",
        help="go on with a network that is at chance on the labels, or clearly better under another preprocessing",
    )  # fmt: skip
    group = parser.add_argument_group("training")
    group.add_argument(
        "--train", choices=WAYS, default="frozen",
        help="frozen: the heads that are not there yet, the backbone stays as it is; "
        "joint: backbone first, then all together with self-distillation (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--epochs", type=int, help="passes over the train part")
    group.add_argument("--backbone-epochs", type=int, help="with joint: how many of them train the backbone alone")
    group.add_argument("--train-batch-size", type=int, help="samples per training step")
    group.add_argument("--learning-rate", type=float, help="peak of the schedule")
    group.add_argument(
        "--augment", choices=AUGMENTATIONS,
        help="how images are varied: crop shifts them by a few pixels; crop-mirror also mirrors half of them, for "
        f"classes that a mirror does not change (default: {JointConfig().augment}; with frozen "
        f"{FrozenConfig().augment}, so that the backbone runs once)",
    )  # fmt: skip
    group.add_argument(
        "--optimiser", choices=OPTIMISERS, help="with joint (default: sgd; of a network of tokens adamw)"
    )
    group.add_argument(
        "--warm-up", type=float, metavar="SHARE", help="with joint: share of the training in which its rate rises"
    )
    group.add_argument("--samples", type=int, metavar="N", help="train on N samples, drawn at random (default: all)")
    group.add_argument(
        "--max-candidates", type=int, metavar="N",
        help="with frozen: how many exits an imported network gets at most, spread over its measured time "
        f"(default: {FrozenConfig().max_candidates})",
    )  # fmt: skip
    group.add_argument(
        "--head-share", type=float, metavar="SHARE",
        help="with frozen: the most that an exit head may take of the time behind it "
        f"(default: {FrozenConfig().head_share:g})",
    )  # fmt: skip
    group.add_argument(
        "--distillation", type=float, metavar="SHARE",
        help="share of the full network's answers in what an exit learns, the rest are the labels "
        f"(default: {FrozenConfig().distillation:g}; 1 without labels)",
    )  # fmt: skip
    group.add_argument(
        "--memory-gb", type=float, metavar="GIB",
        help="memory for training and tracing (default: half of what is free, control groups respected)",
    )  # fmt: skip
    group.add_argument(
        "--workers", type=int, metavar="N",
        help="processes that decode images for training (default: one per allowed processor; 0: none besides this one)",
    )  # fmt: skip
    group.add_argument(
        "--accumulate", type=int, metavar="N",
        help="let the samples of a step through in N pieces, one after the other, for 1/N of the memory (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--mixed-precision", choices=PRECISIONS,
        help="in what training computes besides float32; fp16 needs a GPU (default: no)",
    )  # fmt: skip
    group.add_argument("--seed", type=int, help="decides order, augmentation and initialisation")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = make_parser().parse_args(words)
    arguments.words = words
    if os.environ.get("RANK", "0") != "0":
        arguments.json = None  # the first of several processes writes it
    return run_command(calibrate, arguments)


def calibrate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains, traces, prints the table of exits and returns the result for ``--json``.

    Of several processes that ``torchrun`` or ``accelerate launch`` started, the first does this, and the others help it
    to train.
    """
    config, launch = read_training(arguments), Launch.read(os.environ)
    if launch.count == 1:
        return _calibrate(arguments, config, None)
    with _load("calibration.training.processes").Processes(
        config.mixed_precision, launch, workers=arguments.workers
    ) as processes:
        if not launch.leads:
            _follow(arguments, config, processes)
            return {}
        try:
            return _calibrate(arguments, config, processes)
        finally:
            processes.dismiss()


def _follow(arguments: argparse.Namespace, config: FrozenConfig | JointConfig, processes: Any) -> None:
    """Helps the first process to train, without a word."""
    run = find_run(arguments.run, name=arguments.name)
    options = read_calibration(arguments, run, report=_say_nothing)
    _load("calibration.training.following").follow_training(
        run, lambda: load_run_data(run, arguments.data, parts=arguments.parts, report=_say_nothing), config,
        read_engine(arguments, run, report=_say_nothing), options=options, processes=processes,
    )  # fmt: skip


def _say_nothing(_: str) -> None: ...


def read_engine(arguments: argparse.Namespace, run: RunFolder, *, report: Callable[[str], None]) -> Any:
    """Returns the engines that the flags ask for; without ``--engine`` those of the run's trace, as planning does."""
    flow = _load("calibration.tracing_flow")
    backend = arguments.engine or traced_backend(run) or DEFAULT_BACKEND
    if arguments.engine is None and backend != DEFAULT_BACKEND:
        report(f"engine: {backend}, as the run's trace was collected on it")
    return flow.EngineChoice(backend=backend, threads=check_threads(arguments.threads))


def read_calibration(
    arguments: argparse.Namespace, run: RunFolder, *, report: Callable[[str], None]
) -> CalibrationOptions:  # fmt: skip
    """Returns what the flags say about everything but training."""
    return CalibrationOptions(
        task=None if arguments.task is None else load_task(arguments.task), report=report, parts=arguments.parts,
        trace_samples=arguments.trace_samples, command=describe_command(arguments, run), force=arguments.force,
        memory_gb=arguments.memory_gb, workers=arguments.workers,
    )  # fmt: skip


def _calibrate(arguments: argparse.Namespace, config: FrozenConfig | JointConfig, processes: Any) -> dict[str, Any]:
    flow = _load("calibration.tracing_flow")
    run = find_run(arguments.run, name=arguments.name)
    engine = read_engine(arguments, run, report=say)
    options = dataclasses.replace(read_calibration(arguments, run, report=say), processes=processes)
    model = flow.ensure_network(run, arguments.data, report=say)
    samples = load_run_data(run, arguments.data, parts=arguments.parts, report=say)
    source = source_name(samples, arguments.data, run)
    if isinstance(config, JointConfig):
        model = _load("calibration.training.training_flow").retrain_jointly(
            run, samples, config, engine, options=options
        )
    elif flow.missing_heads(model.spec):
        model = _load("calibration.training.training_flow").train_missing(
            run, samples, config, engine, source=source, options=options
        )
    if arguments.confidence is not None:
        choice = _load("calibration.training.objectives.confidences")
        model = choice.settle_confidence(model, samples, options.task_of(model), arguments.confidence, report=say)
    artifact, trace = flow.trace_model(run, model, samples, engine, source=source, options=options)
    exits, metric_name = describe_exits(trace, options, model)
    task = options.task_of(model)
    title = f"{trace.sample_count} samples of {samples.name} (calibrate part) through {run.model}"
    print_exits(exits, metric_name, title, quality=getattr(task, "quality_name", task.metric_name))
    if not trace.labelled:
        say(f"no labels: plan with python -m planner --run {run.root} --risk agreement")
    flips = None if arguments.against is None else compare_runs(arguments.against, artifact, trace)
    if flips is not None:
        print_flips(flips, against=arguments.against)
    return {
        "run": str(run.root), "model": model.digest, "trace": artifact.digest, "data": samples.name,
        "samples": trace.sample_count, "labelled": trace.labelled, "exits": exits, "flips": to_plain(flips),
        **({} if metric_name is None else {"set_metric_name": metric_name}),
    }  # fmt: skip


def describe_command(arguments: argparse.Namespace, run: RunFolder) -> str:
    """Returns the command line by which the artifacts are made again, with the run named in any case."""
    named = arguments.run is not None or arguments.name is not None
    return shlex.join(["python", "-m", "calibration", *arguments.words, *([] if named else ["--run", str(run.root)])])


def describe_exits(trace: Trace, options: CalibrationOptions, model: Model) -> tuple[list[dict[str, Any]], str | None]:
    """Returns the means of every exit, with the task's metric over the whole set and its name where that is no mean."""
    exits = trace.summarise()
    if trace.counts is None:
        return exits, None
    task = options.task_of(model)
    for found, metric in zip(exits, set_metrics(trace, task) or [], strict=True):
        found["set_metric"] = metric
    return exits, task.metric_name


def print_exits(
    exits: Sequence[dict[str, Any]], metric_name: str | None, title: str, *, quality: str = "metric"
) -> None:
    """Prints the table of exits; ``quality`` names the mean over the samples, ``metric_name`` what is none."""
    further = [] if metric_name is None else ["set_metric"]
    rows = [
        [
            found["exit"], *("-" if found[name] is None else f"{found[name]:.4f}" for name in ("metric", *further)),
            f"{found['agreement']:.4f}", f"{found['mean_confidence']:.4f}",
        ]
        for found in exits
    ]  # fmt: skip
    names = [] if metric_name is None else [metric_name]
    print_table(title, ["exit", quality, *names, "agrees with final", "mean confidence"], rows)


def compare_runs(against: Path, artifact: Artifact, trace: Trace) -> FlipReport:
    """Counts the decisions that differ between another run's trace and this one, at that run's planned thresholds.

    Raises:
        UsageError: the other run's trace is of other data.
        ArtifactError: it has none, or a damaged one.
    """
    other = find_run(against)
    before = open_artifact(other.trace, kind="trace", remedy=other.remedy("calibration"))
    data = [{**traced.manifest.inputs, "model": ""} for traced in (before, artifact)]
    if data[0] != data[1]:
        raise UsageError(f"--against {against}: its trace is of other data than that of {artifact.folder}")
    thresholds: dict[str, float] = {}
    earlier = Trace.load(before.path(TRACE_NPZ))
    if (other.plan / EXIT_PLAN_JSON).is_file():
        plan = read_json(other.plan / EXIT_PLAN_JSON, ExitPlan)
        thresholds = {planned.cut: planned.threshold for planned in plan.exits}
        earlier, trace = (each.with_confidences(plan.confidences) for each in (earlier, trace))
    return count_flips(earlier, trace, thresholds)


def print_flips(flips: FlipReport, *, against: Path) -> None:
    """Prints the differences exit by exit."""
    rows = [
        (
            exit_.exit, "-" if exit_.threshold is None else f"{exit_.threshold:.3g}",
            "-" if exit_.decisions is None else exit_.decisions, exit_.metrics, f"{exit_.confidence_change:.1e}",
            f"{exit_.metric_before:.4f}", f"{exit_.metric_after:.4f}",
        )
        for exit_ in flips.exits
    ]  # fmt: skip
    what = "metric" if flips.labelled else "agreement"
    columns = ["exit", "threshold", "leave flips", f"{what} flips", "confidence change", f"{what} there", "here"]
    print_table(f"of {flips.samples} samples, against {against}", columns, rows)
    if flips.moved is not None:
        print(f"{flips.moved} of {flips.samples} samples leave at another exit with that run's plan")


def check_threads(threads: int | None) -> int:
    """Returns the thread count that was asked for, or one per processor that this process may use."""
    if threads is not None and threads < 1:
        raise UsageError(f"--threads {threads}: expected at least 1")
    return threads or allowed_processors()


def _load(module: str) -> Any:
    """Imports a module of the room that needs optional packages."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingExtraError(package, "train") from error


def read_training(arguments: argparse.Namespace) -> FrozenConfig | JointConfig:
    """Turns the flags of training into a validated config.

    Raises:
        UsageError: a value cannot be, or does not fit the way to train.
    """
    kind = JointConfig if arguments.train == "joint" else FrozenConfig
    if arguments.backbone_epochs is not None and kind is FrozenConfig:
        raise UsageError("--backbone-epochs goes with --train joint")
    for name in ("optimiser", "warm_up"):
        if getattr(arguments, name) is not None and kind is FrozenConfig:
            raise UsageError(f"--{name.replace('_', '-')} goes with --train joint")
    for name in ("max_candidates", "head_share"):
        if getattr(arguments, name) is not None and kind is JointConfig:
            raise UsageError(f"--{name.replace('_', '-')} goes with --train frozen")
    given = _given_training(arguments, kind)
    if kind is FrozenConfig:
        return FrozenConfig(**given)
    named = tuple(given)
    if "epochs" in given:  # fewer epochs than usual leave fewer to the backbone alone
        given.setdefault("backbone_epochs", min(JointConfig().backbone_epochs, max(0, given["epochs"] - 1)))
    return JointConfig(**given, given=named)


def _given_training(arguments: argparse.Namespace, kind: type[FrozenConfig | JointConfig]) -> dict[str, Any]:
    fields = {field.name for field in dataclasses.fields(kind)}
    values = {**vars(arguments), "batch_size": arguments.train_batch_size}
    return {name: value for name, value in values.items() if name in fields and value is not None}

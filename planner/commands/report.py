"""``python -m planner report``: one HTML page that explains a planned run, and its pictures in a folder beside it."""

from __future__ import annotations

import argparse
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import (
    EXIT_PLAN_JSON,
    MANIFEST,
    ArtifactError,
    CorruptArtifactError,
    ExitPlan,
    InferenceTimeMatrix,
    Manifest,
    MissingArtifactError,
    Model,
    PameError,
    RunFolder,
    SchemaError,
    StaleArtifactError,
    Trace,
    UsageError,
    digest_of,
    find_run,
    from_plain,
    open_artifact,
    open_model,
    read_json,
    read_manifest,
)
from artifacts.console import add_common_arguments, run_command, say
from planner.config import PlanConfig
from planner.report.data import ReportData

BENCH_JSON = "bench.json"
_SIDE = ("metric", "mean_latency_ms", "p50_ms", "p99_ms", "batch_ms", "throughput_per_s")
_BENCH = (
    "samples", "batch_size", "rounds", "test_data", "bundle_digest", "full", "early_exit", "speedup_mean",
    "speedup_p99", "throughput_ratio", "metric_ratio", "agreement", "latency_histogram",
)  # fmt: skip


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
        "--bench", type=Path, metavar="FILE.json",
        help=f"what runtime.bench --json wrote (default: {BENCH_JSON} in the run's folder, if it is there)",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(report, make_parser().parse_args(argv))


def report(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the page and the pictures, and returns where they are for ``--json``."""
    run = find_run(arguments.run)
    output = check_output(arguments.output or run.root / "report.html", run, given=arguments.output is not None)
    from planner.report.figures import check_matplotlib, draw_figures, encode_png
    from planner.report.page import render_report

    check_matplotlib()
    data = gather_report(run, arguments.bench)
    pictures = {name: encode_png(figure) for name, figure in draw_figures(data).items()}
    folder = output.with_name(f"{output.stem}_figures")
    paths = write_report(output, folder, render_report(data, pictures), pictures)
    say(f"wrote {output} and {len(paths)} pictures in {folder}")
    if data.bench is None:
        say(data.bench_note)
    return {
        "run": str(run.root), "report": str(output), "figures": [str(path) for path in paths],
        "bench": data.bench is not None, "digests": dict(data.digests),
    }  # fmt: skip


def check_output(output: Path, run: RunFolder, *, given: bool) -> Path:
    """Finds out before the work whether the page can be written afterwards.

    Raises:
        MissingArtifactError: there is no such run.
        UsageError: the folder does not exist, or the file is to be something else than HTML.
    """
    if not run.root.is_dir():
        raise MissingArtifactError(
            f"there is no run at {run.root}. Start one with: python -m export resnet --segments --run {run.root}"
        )
    if given and output.suffix not in (".html", ".htm"):
        raise UsageError(f"--output {output}: the report is an HTML page; name it {output.with_suffix('.html').name}")
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: there is no folder {output.parent}; make it first")
    return output


def gather_report(run: RunFolder, bench: Path | None = None) -> ReportData:
    """Reads everything that a report shows; sweeps the tolerances unless that was done.

    Args:
        run: a planned run.
        bench: ``--bench``; ``None``: the run's own, where there is one.

    Raises:
        MissingArtifactError: the run has no plan yet; the message says the command.
        StaleArtifactError: plan and measurements do not belong together any more.
    """
    from planner.certify.evidence import risk_trace
    from planner.measure.timing import ITM_JSON
    from planner.sweep.sweeping import SweepCase, ensure_sweep
    from planner.workflow.record import read_considered, read_patterns

    remedy = f"python -m planner --run {run.root} --tolerance 0.01"
    planned = open_artifact(run.plan, kind="plan", remedy=remedy)
    model = open_model(run.model, remedy=f"python -m export resnet --segments --run {run.root}")
    traced = open_artifact(run.trace, kind="trace", remedy=f"python -m calibration --run {run.root}")
    timed = open_artifact(run.itm, kind="itm", remedy=remedy)
    digests = {"model": model.digest, "trace": traced.digest, "itm": timed.digest}
    check_origin(run, planned.manifest, digests, remedy)
    config = read_config(planned.manifest, remedy)
    itm = read_json(timed.path(ITM_JSON), InferenceTimeMatrix)
    plan = read_json(planned.path(EXIT_PLAN_JSON), ExitPlan)
    trace = risk_trace(Trace.load(traced.path("trace.npz")), plan.risk)
    case = SweepCase(
        run=run, model=model, trace=trace, trace_artifact=traced, itm=itm, itm_artifact=timed, config=config
    )
    sweep, _ = ensure_sweep(case)
    measured = read_bench(run, bench)
    return ReportData(
        spec=model.spec,
        plan=plan,
        considered=read_considered(planned),
        trace=trace, itm=itm, sweep=sweep,
        patterns=read_patterns(planned),
        bench=measured.result, bench_note=measured.note,
        environment=describe_environment(itm, measured.result),
        commands=list_commands(run, model, traced.manifest, config, measured.result),
        digests={**digests, "plan": planned.digest},
    )  # fmt: skip


def check_origin(run: RunFolder, plan: Manifest, digests: Mapping[str, str], remedy: str) -> None:
    """Makes sure that the plan was made from the model, the trace and the times that lie in the run."""
    stale = [name for name, digest in digests.items() if plan.inputs.get(name) != digest]
    if stale:
        raise StaleArtifactError(
            f"{run.plan} was made from another {' and '.join(stale)} than the run holds now. Plan it again with: "
            f"{remedy}"
        )


def read_config(plan: Manifest, remedy: str) -> PlanConfig:
    """Returns what a plan was asked for."""
    try:
        return from_plain(PlanConfig, plan.parameters.get("config"))
    except SchemaError as error:
        raise SchemaError(
            f"the plan was made by another version of PAME ({error}). Plan it again with: {remedy}"
        ) from error


def list_commands(
    run: RunFolder, model: Model, trace: Manifest, config: PlanConfig, measured: Mapping[str, Any] | None
) -> tuple[str, ...]:
    """Returns the commands that make the run again."""
    from planner.commands.plan import make_parser as make_planner_parser
    from planner.report.commands import reproduce_run

    return reproduce_run(
        run.root, spec=model.spec, model=model.artifact.manifest, trace=trace, training=find_training(run, model),
        config=config, planner=make_planner_parser(), bench=run.root / BENCH_JSON, measured=measured,
    )  # fmt: skip


def find_training(run: RunFolder, model: Model) -> Manifest | None:
    """Returns the record of the training that the model holds the result of; ``None`` where there is none."""
    for folder in (run.training / "result", run.training / "weights"):
        if (folder / MANIFEST).is_file():
            record = read_manifest(folder)
            if digest_of(record.parameters) == model.artifact.manifest.inputs.get("training"):
                return record
    return None


def describe_environment(itm: InferenceTimeMatrix, bench: Mapping[str, Any] | None) -> dict[str, str]:
    """Returns what the engines were timed on, and where the benchmark ran on something else."""
    timed = {"backend": itm.backend, "threads": str(itm.threads), **itm.environment}
    other = {} if bench is None else {**bench.get("environment", {}), "threads": str(bench.get("threads", itm.threads))}
    differing = {f"{name} (benchmark)": str(value) for name, value in other.items() if timed.get(name) != value}
    return {**timed, **differing}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What ``runtime.bench`` measured for the run's bundle, or why there is nothing."""

    result: Mapping[str, Any] | None
    note: str


def read_bench(run: RunFolder, given: Path | None) -> BenchResult:
    """Returns the benchmark of the run's bundle.

    Args:
        run: the run, in which ``bench.json`` is looked for.
        given: ``--bench``; must be there and of this bundle.

    Raises:
        UsageError: the file that was named is not there.
        CorruptArtifactError: it is no result of ``runtime.bench``.
        StaleArtifactError: the file that was named is of another bundle.
    """
    path = given or run.root / BENCH_JSON
    how = f"Measure with: python -m runtime.bench --run {run.root} --json {path}"
    if not path.is_file():
        if given is not None:
            raise UsageError(f"--bench {given}: there is no such file. {how}")
        return BenchResult(result=None, note=f"The bundle has not been measured on test data yet. {how}")
    result = read_json(path, dict)
    missing = find_missing(result)
    if missing:
        raise CorruptArtifactError(f"{path} is no result of runtime.bench: it lacks {', '.join(missing)}. {how}")
    if result["bundle_digest"] != bundle_digest(run):
        stale = f"{path} was measured with another bundle than the run holds now."
        if given is not None:
            raise StaleArtifactError(f"{stale} {how}")
        return BenchResult(result=None, note=f"{stale} {how}")
    return BenchResult(result=result, note="")


def find_missing(result: Mapping[str, Any]) -> list[str]:
    """Returns what a result of ``runtime.bench`` lacks, by name."""
    parts = {"full": _SIDE, "early_exit": _SIDE, "latency_histogram": ("edges_ms", "full", "early_exit")}
    missing = [name for name in _BENCH if name not in result]
    for part, names in parts.items():
        inner = result.get(part, {})
        missing += [f"{part}.{name}" for name in names if not isinstance(inner, Mapping) or name not in inner]
    return missing


def bundle_digest(run: RunFolder) -> str | None:
    """Returns the digest of the run's bundle, ``None`` when there is none to be read."""
    try:
        return read_manifest(run.bundle).digest
    except (ArtifactError, OSError):
        return None


def write_report(output: Path, folder: Path, page: str, pictures: Mapping[str, bytes]) -> list[Path]:
    """Writes the pictures and last the page, each file whole or not at all; returns the pictures' paths."""
    paths = {folder / f"{name}.png": content for name, content in pictures.items()}
    try:
        folder.mkdir(exist_ok=True)
        for path, content in (*paths.items(), (output, page.encode())):
            _replace(path, content)
    except OSError as error:
        raise PameError(
            f"cannot write {output}: {error.strerror or error}. Name another place with --output"
        ) from error
    return list(paths)


def _replace(path: Path, content: bytes) -> None:
    staging = path.with_name(f".{path.name}.new-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        staging.write_bytes(content)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())

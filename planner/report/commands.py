"""The commands that make a run again, from what its artifacts recorded. Pure: manifests in, command lines out."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts import Manifest, ModelSpec, to_plain
from planner.config import PlanConfig

_FLAGS = {
    "backend": "--engine", "tail.share": "--tail-share", "tail.allowance": "--tail-allowance",
    "tail.stay_allowance": "--stay-allowance", "timing.batch_sizes": "--batch-sizes", "timing.rounds": "--rounds",
    "timing.budget_s": "--time-budget", "measure.contenders": "--contenders",
    "certify.method": "--certify", "certify.seed": "--certify-seed",
}  # fmt: skip
_ALWAYS = ("tolerance", "batch_size", "threads")
_TRAINING = {
    "epochs": "--epochs", "backbone_epochs": "--backbone-epochs", "batch_size": "--train-batch-size",
    "learning_rate": "--learning-rate", "seed": "--seed",
}  # fmt: skip


def reproduce_run(
    run: Path, *, spec: ModelSpec, model: Manifest, trace: Manifest, training: Manifest | None, config: PlanConfig,
    planner: argparse.ArgumentParser, bench: Path, measured: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:  # fmt: skip
    """Returns the command lines, in order; a line that starts with ``#`` says what no flag can say.

    Args:
        run: the run's folder.
        spec, model, trace, training: what was exported, traced and trained, with their manifests.
        config: what was planned for.
        planner: the planner's command line, which says what flags there are.
        bench: where the benchmark's result is expected.
        measured: the benchmark that was made, for its settings.
    """
    where = ["--run", str(run)]
    source = str(trace.parameters.get("data_source", ""))
    labelled = trace.parameters.get("labelled", True) is True
    data = ["--data", source] if source and source != "fashion-mnist" else []
    flags, unsaid = planner_flags(config, planner)
    settings = (
        []
        if measured is None
        else [word for name in ("batch_size", "rounds", "samples") for word in (_flag(name), str(measured[name]))]
    )
    lines = [
        ["python", "-m", "export", *export_arguments(spec, model.parameters), *where],
        ["python", "-m", "calibration", *where, *data, *(training_arguments(training) if labelled else [])],
        ["python", "-m", "planner", *where, *data, *flags],
        ["python", "-m", "planner", "--sweep", *where, *data, *_without_tolerance(flags)],
        ["python", "-m", "runtime.bench", *where, *data, *settings, "--json", str(bench)],
        ["python", "-m", "planner", "report", *where],
    ]
    told = [*map(shlex.join, lines)]
    if training is not None and not labelled:
        train = shlex.join(["python", "-m", "calibration", *where, *training_arguments(training)])
        told.insert(1, f"# first, with the labelled data that the exits were trained on: {train} --data LABELLED")
    return (*told, *(f"# {one} has no flag" for one in unsaid))


def export_arguments(spec: ModelSpec, parameters: Mapping[str, Any]) -> list[str]:
    """Returns the arguments of ``python -m export`` for a model."""
    told = {**spec.settings, **parameters}
    given = [spec.family if spec.family != "onnx" else str(spec.settings.get("source", "model.onnx"))]
    if spec.cuts:
        given.append("--segments")
    names = ("every", "head") if spec.family == "onnx" else ("depth", "classes", "weights", "every", "head")
    for name in names:
        if name in told:
            given += [f"--{name}", str(told[name])]
    if spec.family != "onnx" and "input_shape" in told:
        given += ["--input-shape", str(told["input_shape"])]
    for name, shape in dict(told.get("input_shapes", {})).items():
        given += ["--input-shape", f"{name}:{','.join(map(str, shape))}"]
    return given


def training_arguments(training: Manifest | None) -> list[str]:
    """Returns the arguments of ``python -m calibration`` for the last training; none where nothing was trained."""
    if training is None:
        return []
    told = training.parameters
    given = ["--train", str(told["mode"])] if "mode" in told else []
    for name, flag in _TRAINING.items():
        if name in told:
            given += [flag, f"{told[name]}"]
    return given


def planner_flags(config: PlanConfig, planner: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """Returns the flags for everything in a config that is not the default, and what has no flag.

    Tolerance, batch size and threads are always among the flags.
    """
    known = set(re.findall(r"--[a-z][a-z-]*", planner.format_help()))
    mine, usual = _flatten(to_plain(config)), _flatten(to_plain(PlanConfig()))
    flags: list[str] = []
    unsaid: list[str] = []
    for name, value in mine.items():
        if value == usual.get(name) and name not in _ALWAYS:
            continue
        if name == "timing.batch_sizes" and value[:-1] == [size for size in usual[name] if size < value[-1]]:
            continue  # what --batch-size alone gives
        flag = _FLAGS.get(name, _flag(name.rpartition(".")[2]))
        if flag in known and value is not None:
            flags += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
        else:
            unsaid.append(f"{name} = {value}")
    return flags, unsaid


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in plain.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _without_tolerance(flags: Sequence[str]) -> list[str]:
    at = flags.index("--tolerance")
    return [*flags[:at], *flags[at + 2 :]]

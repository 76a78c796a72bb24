"""The commands that make a run again, from what its artifacts recorded. Pure: manifests in, command lines out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import COMMAND, Manifest, ModelSpec
from planner.config import PlanConfig
from planner.flags import list_flagless, write_flags
from planner.report.benchmark import BENCH_JSON

_OWN_DATA = "fashion-mnist"  # what calibration takes where --data is not given
_TRAINING = {
    "epochs": "--epochs",
    "backbone_epochs": "--backbone-epochs",
    "batch_size": "--train-batch-size",
    "learning_rate": "--learning-rate",
    "seed": "--seed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What the artifacts of a planned run recorded about how they were made.

    Attributes:
        run: the run's folder.
        spec: the network.
        model: the manifest of its model.
        trace: the manifest of its trace.
        training: that of the training whose heads the model holds; ``None`` where none was trained.
        config: what was planned for.
        bench: the benchmark that was made, for its settings; ``None`` where there is none.
    """

    run: Path
    spec: ModelSpec
    model: Manifest
    trace: Manifest
    training: Manifest | None
    config: PlanConfig
    bench: Mapping[str, Any] | None = None


def reproduce_run(record: RunRecord) -> tuple[str, ...]:
    """Returns the command lines, in order; a line that starts with ``#`` says what no flag can say."""
    where = ["--run", str(record.run)]
    source = str(record.trace.parameters.get("data_source", ""))
    labelled = record.trace.parameters.get("labelled", True) is True
    data = ["--data", source] if source and source != _OWN_DATA else []
    trained = training_arguments(record.training)
    config, measured = record.config, record.bench or {}
    settings = [
        word
        for name in ("batch_size", "rounds", "samples")
        if name in measured
        for word in (f"--{name.replace('_', '-')}", str(measured[name]))
    ]
    plan = write_flags(config, explicit=("tolerance", "batch_size", "threads"))
    sweep = write_flags(config, explicit=("batch_size", "threads"), omitted=("tolerance",))
    lines = [
        export_command(record, where),
        shlex.join(["python", "-m", "calibration", *where, *data, *(trained if labelled else [])]),
        shlex.join(["python", "-m", "planner", *where, *data, *plan]),
        shlex.join(["python", "-m", "planner", "--sweep", *where, *data, *sweep]),
        shlex.join(["python", "-m", "runtime.bench", *where, *data, *settings, "--json", str(record.run / BENCH_JSON)]),
        shlex.join(["python", "-m", "planner", "report", *where]),
    ]
    if record.training is not None and not labelled:
        train = shlex.join(["python", "-m", "calibration", *where, *trained])
        lines.insert(1, f"# first, with the labelled data that the exits were trained on: {train} --data LABELLED")
    return (*lines, *_explain(config))


def _explain(config: PlanConfig) -> list[str]:
    """Returns the comments on what the flags alone do not say."""
    comments = [f"# {setting} has no flag" for setting in list_flagless(config)]
    if config.load is not None:
        shares = ", ".join(f'"{size}": {share:g}' for size, share in config.load.to_plain().items())
        comments.insert(0, f"# FILE, a JSON file, holds {{{shares}}}")
    return comments


def export_command(record: RunRecord, where: list[str]) -> str:
    """Returns the command line of the export: the recorded one, or one that is made of the model's parameters.

    Args:
        record: what was recorded.
        where: the flag that names the run.
    """
    recorded = record.model.environment.get(COMMAND)
    return recorded or shlex.join(
        ["python", "-m", "export", *export_arguments(record.spec, record.model.parameters), *where]
    )


def export_arguments(spec: ModelSpec, parameters: Mapping[str, Any]) -> list[str]:
    """Returns the arguments of ``python -m export`` for a model whose manifest recorded no command line."""
    settings = {**spec.settings, **parameters}
    imported = spec.family == "onnx"
    arguments = [str(spec.settings.get("source", "model.onnx")) if imported else spec.family]
    if spec.cuts:
        arguments.append("--segments")
    for name in ("every", "head") if imported else ("depth", "classes", "weights", "every", "head"):
        if name in settings:
            arguments += [f"--{name}", str(settings[name])]
    if not imported and "input_shape" in settings:
        arguments += ["--input-shape", str(settings["input_shape"])]
    for name, shape in dict(settings.get("input_shapes", {})).items():
        arguments += ["--input-shape", f"{name}:{','.join(map(str, shape))}"]
    return arguments


def training_arguments(training: Manifest | None) -> list[str]:
    """Returns the arguments of ``python -m calibration`` for the last training; none where nothing was trained."""
    if training is None:
        return []
    settings = training.parameters
    arguments = ["--train", str(settings["mode"])] if "mode" in settings else []
    for name, flag in _TRAINING.items():
        if name in settings:
            arguments += [flag, f"{settings[name]}"]
    return arguments

"""Calibration workflow: from a model to its trace, made once and reused; torch is loaded where heads are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from artifacts import (
    MANIFEST,
    PRECISIONS,
    TRACE_NPZ,
    Artifact,
    InputError,
    MissingExtraError,
    Model,
    ModelSpec,
    RunFolder,
    Trace,
    UsageError,
    digest_of,
    is_current,
    memory_limit,
    new_artifact,
    open_artifact,
    read_manifest,
    save_arrays,
    work_alone,
)
from calibration.certify.risk_tests import check_labels
from calibration.data.samples import PARTS, ImageSamples, Samples
from calibration.data.sources import (
    SPLIT_RULED,
    SPLIT_SEED,
    DataSource,
    load_run_data,
    recorded_choice,
    recorded_parts,
    source_name,
)
from calibration.data.splits import SPLIT_RULE
from calibration.options import DEFAULT_OPTIONS, CalibrationOptions
from calibration.text.samples import TextSamples
from calibration.tracing.all_exits import EngineChoice, SegmentRunner, fit_rows
from calibration.tracing.collecting import collect_trace
from calibration.tracing.network_check import ask_network
from calibration.tracing.reference import reference_graph
from calibration.tracing.row_check import check_padding
from calibration.training.config import FrozenConfig
from export import ensure_model

_TRAIN = "indices.train"


def ensure_trace(
    run: RunFolder, engine: EngineChoice, *, data: DataSource | None = None, risk: str | None = None,
    options: CalibrationOptions = DEFAULT_OPTIONS,
) -> tuple[Artifact, Trace]:  # fmt: skip
    """Returns the run's trace of the calibrate part, making what is missing upstream and saying so.

    Args:
        run: the run's folder; without a model, and without data of one's own, the ResNet family is exported.
        engine: backend and threads of each engine.
        data: ``--data``; ``None``: what the run used before, or Fashion-MNIST.
        risk: what the trace is wanted for; one that the data cannot tell is refused before any work. ``None``: any.
        options: task, command line and messages.

    Raises:
        UsageError: the risk needs labels, and the data has none; or there is data and no network for it.
        MissingExtraError: exit heads are to be trained, and torch is not installed.
    """
    model = ensure_network(run, data, report=options.report)
    samples = load_run_data(run, data, parts=options.parts, report=options.report)
    if risk is not None:
        check_labels(risk, labelled=samples.labelled, where=samples.name)
    source = source_name(samples, data, run)
    if missing_heads(model.spec):
        model = _train_missing(run, samples, engine, source, options)
    return trace_model(run, model, samples, engine, source=source, options=options)


def ensure_network(run: RunFolder, data: DataSource | None, *, report: Callable[[str], None]) -> Model:
    """Returns the run's model; where there is none, and no data of the user's own, the ResNet family is exported.

    Raises:
        UsageError: there is data and no network for it.
    """
    if data is not None and not (run.model / MANIFEST).is_file():
        raise UsageError(
            f"{run.root} holds no network for {data}. Export yours first: python -m export path/to/network.onnx "
            f"--segments --run {run.root}"
        )
    return ensure_model(run, report=report)


def missing_heads(spec: ModelSpec) -> tuple[str, ...]:
    """Returns the cuts that should have an exit head and have none: all but the last cut."""
    return tuple(cut.name for cut in spec.cuts[:-1] if cut.name not in spec.heads)


def _train_missing(
    run: RunFolder, samples: Samples, engine: EngineChoice, source: str, options: CalibrationOptions
) -> Model:  # fmt: skip
    """Trains with the default configuration; torch is loaded here and nowhere else on the way to a trace."""
    try:
        from calibration.training.training_flow import train_missing
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise MissingExtraError(package, "train") from error
    return train_missing(run, samples, FrozenConfig(), engine, source=source, options=options)


@work_alone
def trace_model(
    run: RunFolder, model: Model, samples: Samples, engine: EngineChoice,
    *, source: str, options: CalibrationOptions = DEFAULT_OPTIONS,
) -> tuple[Artifact, Trace]:  # fmt: skip
    """Collects the trace of the calibrate part, or reuses it if model, data, task and backend are unchanged.

    Args:
        run: where the trace lies.
        model: with its exit heads.
        samples: the data.
        engine: backend and threads of each engine.
        source: recorded, so that later commands find the data by themselves.
        options: task, command line and messages.

    Raises:
        UsageError: the trace must be collected, the model names a task that is not built in, and none was given; or the
            network was trained on another train part of the same data.
        InputError: the calibrate part has no samples.
    """
    _check_trained_apart(run, model, samples)
    inputs, parameters = _trace_origin(run, model, samples, engine, source=source, options=options)
    if not is_current(run.trace, kind="trace", inputs=inputs, parameters=parameters):
        if options.task is None:
            parameters.pop("task", None)
        task = options.task_of(model)
        traced = _draw_traced(samples, parameters.get("samples"))
        options.report(f"collecting the trace of {len(traced)} samples of {samples.name} into {run.trace}")
        rows = fit_rows(model.spec, memory_limit(options.memory_gb))
        with SegmentRunner(model, run.engines, engine, rows=rows, with_heads=True) as runner:
            if not _asked_in_training(run, model, inputs):
                ask_network(model, runner, samples, task, rows=rows, options=options)
            check_padding(model, runner, samples, traced, rows=rows)
            trace = collect_trace(model, runner, samples, traced, task, rows=rows)
        notes = options.notes(run, source=source)
        if isinstance(samples, ImageSamples | TextSamples) and samples.split_seed is not None:
            notes[SPLIT_SEED], notes[SPLIT_RULED] = str(samples.split_seed), SPLIT_RULE
        if isinstance(samples, TextSamples):
            notes["texts_cut"] = "{} of {} looked at".format(*samples.count_cut())
        with new_artifact(run.trace, kind="trace", inputs=inputs, parameters=parameters, notes=notes) as staging:
            trace.save(staging / TRACE_NPZ)
            drawn = {"traced": traced} if "samples" in parameters else {}
            save_arrays(staging / "indices.npz", {part: samples.indices_of(part) for part in PARTS} | drawn)
    artifact = open_artifact(run.trace, kind="trace", remedy=run.remedy("calibration"))
    return artifact, Trace.load(artifact.path(TRACE_NPZ))


def _check_trained_apart(run: RunFolder, model: Model, samples: Samples) -> None:
    """Refuses to calibrate on samples that the exit heads may have been trained on, since another split came between.

    Raises:
        UsageError: the model was trained on the same inputs, of which another part was for training.
    """
    trained, now = model.artifact.manifest.inputs, samples.digests()
    if trained.get("images") == now["images"] and trained.get(_TRAIN, now[_TRAIN]) != now[_TRAIN]:
        raise UsageError(
            f"{run.model} was trained on another train part of {samples.name}, so what calibrates may have been "
            "trained on. Name the --parts of the training again, or start a run of its own with --run"
        )


def is_trace_current(
    run: RunFolder, model: Model, samples: Samples, engine: EngineChoice,
    *, source: str, options: CalibrationOptions = DEFAULT_OPTIONS,
) -> bool:  # fmt: skip
    """Tells whether ``trace_model`` would reuse the trace that is there; arguments as there."""
    inputs, parameters = _trace_origin(run, model, samples, engine, source=source, options=options)
    return is_current(run.trace, kind="trace", inputs=inputs, parameters=parameters)


def _trace_origin(
    run: RunFolder, model: Model, samples: Samples, engine: EngineChoice, *, source: str, options: CalibrationOptions
) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns the inputs and parameters of a trace, as in its manifest."""
    parameters: dict[str, Any] = {"backend": engine.backend, "data_source": source, "part": "calibrate"}
    if not samples.labelled:
        parameters["labelled"] = False
    if (parts := options.parts or recorded_parts(run, source)) is not None:
        parameters["parts"] = parts
    count = options.trace_samples or _recorded_samples(run, source)
    if count is not None and count < len(samples.indices_of("calibrate")):
        parameters["samples"] = count
    if reference_graph(model, engine.backend) is not None:
        parameters["reference"] = PRECISIONS[0]
    task_name = recorded_task(run) if options.task is None else options.task.name
    if task_name is not None and task_name != model.spec.task:
        parameters["task"] = task_name
    return {"model": model.digest, **samples.digests()}, parameters


def _asked_in_training(run: RunFolder, model: Model, data: Mapping[str, str]) -> bool:
    """Tells whether the network was asked about the same data, by its digests, before exit heads were trained on it."""
    if not (run.training / "result" / MANIFEST).is_file():
        return False
    result = read_manifest(run.training / "result")
    same = all(result.inputs.get(name) == digest for name, digest in data.items() if name != "model")
    return same and model.artifact.manifest.inputs.get("training") == digest_of(result.parameters)


def _draw_traced(samples: Samples, count: int | None) -> np.ndarray:
    """Returns the samples of the calibrate part to trace: all, or ``count`` of them, drawn at random."""
    available = samples.indices_of("calibrate")
    if len(available) == 0:
        raise InputError(
            f"{samples.name} has no samples in its calibrate part; give it some: more data, a folder 'calibrate', or a "
            "'split' that names it"
        )
    return available if count is None else np.sort(np.random.default_rng(0).permutation(available)[:count])


def _recorded_samples(run: RunFolder, source: str) -> int | None:
    """Returns how many samples the run's trace was restricted to, if it was made from the same source."""
    count = recorded_choice(run, source, "samples")
    return count if isinstance(count, int) else None


def recorded_task(run: RunFolder) -> str | None:
    """Returns the name of the task of one's own that the run's trace was judged by; ``None``: the model's."""
    if not (run.trace / MANIFEST).is_file():
        return None
    task = read_manifest(run.trace).parameters.get("task")
    return task if isinstance(task, str) else None

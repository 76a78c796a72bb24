"""From a source to a bundle: network, exit heads, trace, times and plan, each of them said before it starts.

Every step is an artifact of the run, so that what is unchanged is reused, and what was done before a failure is kept:
the same call goes on from there. How long a step takes is worked out from what a sample was measured to take
(``planner.workflow.pace``), or not said.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from artifacts import (
    MANIFEST,
    Artifact,
    Model,
    RunFolder,
    Trace,
    UsageError,
    allowed_processors,
    find_run,
    read_manifest,
    recorded_command,
    to_plain,
)
from calibration import (
    CalibrationOptions,
    DataSource,
    EngineChoice,
    FrozenConfig,
    JointConfig,
    PartShare,
    Samples,
    check_labels,
    check_source,
    is_trace_current,
    load_run_data,
    missing_heads,
    retrain_jointly,
    rows_of,
    source_name,
    trace_model,
    train_missing,
)
from export import ExportOptions, export_model, read_statement
from planner.config import PlanConfig
from planner.measure.timing import ensure_itm, is_itm_current
from planner.workflow.inputs import PlanningInputs
from planner.workflow.pace import Pace, about, measure_pace
from planner.workflow.planning import find_plan, plan_inputs
from planner.workflow.record import PlanningResult

_STEPS = 5


def plan_network(
    source: str | ExportOptions,
    *,
    data: DataSource | None = None,
    run: Path | None = None,
    config: PlanConfig | None = None,
    training: FrozenConfig | JointConfig | None = None,
    options: CalibrationOptions | None = None,
) -> PlanningResult:
    """Does all that leads from a network and its data to a bundle, reusing what is unchanged.

    Args:
        source: a family's name, an ONNX file, ``torch:package.module:factory``, ``hf:DIR``; or options of an export.
        data: ``--data``; ``None``: what the run used before, or Fashion-MNIST where it fits.
        run: the run's folder; ``None``: ``runs/<name of the source>``.
        config: what to plan for; ``None``: the defaults, with the processors that this process may use.
        training: how exit heads are trained where they are missing; ``None``: the defaults, on the frozen network.
        options: task, parts, where messages go, and the command line to record; ``None``: the defaults.

    Returns:
        The plan, and the folder of the bundle.

    Raises:
        UsageError: the source, the data or a setting does not exist, or the run holds another network.
        NoPlanError: no plan meets the tolerance.
        PameError: a step failed; the message says which, why, and what to do. What was done before is kept.
    """
    job = _make_job(source, data=data, run=run, config=config, training=training, options=options)
    with _keeping_what_is_done(job):
        return job.plan()


def prepare_network(
    source: str | ExportOptions,
    *,
    data: DataSource | None = None,
    run: Path | None = None,
    config: PlanConfig | None = None,
    training: FrozenConfig | JointConfig | None = None,
    options: CalibrationOptions | None = None,
) -> PlanningInputs:
    """Does all that comes before the search, and returns what is planned with; arguments and errors as
    ``plan_network``."""
    job = _make_job(source, data=data, run=run, config=config, training=training, options=options)
    with _keeping_what_is_done(job):
        return job.prepare()


def _make_job(
    source: str | ExportOptions, *, data: DataSource | None, run: Path | None, config: PlanConfig | None,
    training: FrozenConfig | JointConfig | None, options: CalibrationOptions | None,
) -> _Job:  # fmt: skip
    export = source if isinstance(source, ExportOptions) else ExportOptions(source=source)
    job = _Job(
        export=export,
        run=find_run(run, name=export.run_name),
        config=config or PlanConfig(threads=allowed_processors()),
        training=training or FrozenConfig(),
        options=options or CalibrationOptions(),
        data=data,
    )
    check_same_source(job.run, export)
    _check_wishes(job)
    _say_changes(job)
    return job


@contextmanager
def _keeping_what_is_done(job: _Job) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if (job.run.model / MANIFEST).is_file():
            again = job.options.command or "the same call"
            job.report(f"stopped; what is done is kept in {job.run.root}. Once that is mended, this goes on: {again}")
        raise


def check_same_source(run: RunFolder, export: ExportOptions) -> None:
    """Refuses to replace the network of a run by one from somewhere else.

    Raises:
        UsageError: the run's network came from another file, folder, module or family.
    """
    recorded = recorded_command(run.model)
    if recorded is None:
        return
    there, wanted = (shlex.split(command)[3] for command in (recorded, export.command(run)))
    if there != wanted:
        raise UsageError(
            f"{run.root} holds the network {there}, not {wanted}. Name a run of its own with --name NAME or --run DIR, "
            f"or remove {run.root}"
        )


def _check_wishes(job: _Job) -> None:
    """Refuses what would fail only after the first steps.

    Raises:
        UsageError: ``--preprocess`` or ``--parts`` says nothing known, or the training does not fit the network.
        InputError: there is no such data.
    """
    check_source(job.data)
    if job.options.parts is not None:
        PartShare.parse(job.options.parts)
    if job.export.preprocess is not None:
        read_statement(job.export.preprocess)
    if isinstance(job.training, JointConfig) and job.export.input == "uint8":
        raise UsageError(
            "--train joint works on floats, and --input uint8 makes a network that takes bytes. Train without --input "
            "uint8, and export the trained weights with it: python -m export FAMILY --weights "
            f"{job.run.training / 'weights' / 'weights.safetensors'} --input uint8"
        )


def _say_changes(job: _Job) -> None:
    """Says it where the run's network was exported with other flags than those of now."""
    recorded, wanted = recorded_command(job.run.model), job.export.command(job.run)
    if recorded is not None and shlex.split(recorded) != shlex.split(wanted):
        job.report(
            f"note: {job.run.model} was made by: {recorded}. It is made anew with the flags of now, and its exit heads "
            "with it"
        )


@dataclass(frozen=True, kw_only=True)  # no slots: the pace is measured once, when it is asked for
class _Job:
    export: ExportOptions
    run: RunFolder
    config: PlanConfig
    training: FrozenConfig | JointConfig
    options: CalibrationOptions
    data: DataSource | None

    @property
    def report(self) -> Callable[[str], None]:
        return self.options.report

    @property
    def engine(self) -> EngineChoice:
        return EngineChoice(backend=self.config.backend, threads=self.config.threads)

    @cached_property
    def samples(self) -> Samples:
        return load_run_data(self.run, self.data, parts=self.options.parts, report=self.report)

    @cached_property
    def source(self) -> str:
        """What is recorded, so that later commands find the data by themselves."""
        return source_name(self.samples, self.data, self.run)

    @cached_property
    def model(self) -> Model:
        rows = rows_of(self.data, parts=self.options.parts, report=self.report)
        return export_model(self.run, replace(self.export, rows=rows), report=self.report).model

    @cached_property
    def pace(self) -> Pace | None:
        found = measure_pace(self.model, self.samples, self.config)
        if found is not None:
            self.report(found.describe())
        return found

    def say(self, step: int, words: str, seconds: Callable[[Pace], float] | None = None) -> None:
        """Says what comes next and, where that can be worked out, how long it takes."""
        expected = None if seconds is None or self.pace is None else about(seconds(self.pace))
        self.report(f"step {step} of {_STEPS}: {words}{'' if expected is None else f': {expected}'}")

    def prepare(self) -> PlanningInputs:
        """Goes through all steps but the last."""
        there = (self.run.model / MANIFEST).is_file()
        self.say(1, f"the network, {self.export.source}{'' if there else '; how long is not known before it has run'}")
        check_labels(self.config.certify.risk, labelled=self._open_data().labelled, where=self.samples.name)
        model = self.train()
        artifact, trace = self.trace(model)
        return self.time(model, artifact, trace)

    def plan(self) -> PlanningResult:
        """Goes through the steps."""
        inputs = self.prepare().as_variant(self.report)
        if find_plan(inputs, self.config) is None:
            self.say(
                5,
                "the plan: search and certificate, whose time is not known before; then the best plans end to end",
                lambda pace: pace.measuring_s(self.config),
            )
        else:
            self.say(5, "the plan: it is there already")
        return plan_inputs(self.run, inputs, self.config, self.report, data=self.samples, command=self.options.command)

    def _open_data(self) -> Samples:
        _ = self.model  # which the data is read for
        return self.samples

    def train(self) -> Model:
        """Returns the model with its exit heads."""
        available, joint = len(self.samples.indices_of("train")), isinstance(self.training, JointConfig)
        count = min(available, self.training.samples or available)
        if isinstance(self.training, JointConfig):
            epochs = self.training.fit(self.model.spec.full.inputs, self.model.spec.task).epochs
            self.say(2, f"network and exit heads together, {epochs} epochs of {count} samples; "
                     "how long is known after the first")  # fmt: skip
            return retrain_jointly(self.run, self.samples, self.training, self.engine, options=self.options)
        missing = missing_heads(self.model.spec)
        if not missing:
            self.say(2, f"exit heads: {len(self.model.spec.heads)} are there already")
            self._check_training(joint=joint)
            return self.model
        self.say(
            2,
            f"exit heads, on {count} samples; their own time is known after the first epoch, and a pass of the samples "
            "through the network takes",
            lambda pace: pace.passing_s(count),
        )
        return train_missing(
            self.run, self.samples, self.training, self.engine, source=self.source, options=self.options
        )

    def _check_training(self, *, joint: bool) -> None:
        """Says it where the heads that are there were trained in another way than is asked for now."""
        result = self.run.training / "result"
        if joint or not (result / MANIFEST).is_file():
            return
        there, wanted = read_manifest(result).parameters, {"mode": "frozen", **to_plain(self.training)}
        changed = [f"{name} {there[name]}" for name, value in wanted.items() if name in there and there[name] != value]
        if changed:
            self.report(
                f"note: they were trained with {', '.join(changed)}, and are kept; to train them anew, remove "
                f"{self.run.model} and {result}"
            )

    def trace(self, model: Model) -> tuple[Artifact, Trace]:
        """Returns the trace of the calibrate part."""
        source, count = self.source, len(self.samples.indices_of("calibrate"))
        if is_trace_current(self.run, model, self.samples, self.engine, source=source, options=self.options):
            self.say(3, f"the trace of {count} samples: it is there already")
        else:
            self.say(3, f"the trace: {count} samples through every exit", lambda pace: pace.passing_s(count))
        return trace_model(self.run, model, self.samples, self.engine, source=source, options=self.options)

    def time(self, model: Model, artifact: Artifact, trace: Trace) -> PlanningInputs:
        """Returns what is planned with, the times among it."""
        if is_itm_current(self.run, model, self.config):
            self.say(4, "the times of the engines: they are there already")
        else:
            self.say(4, "the times of the engines, besides building them", lambda pace: pace.timing_s(self.config))
        itm_artifact, itm = ensure_itm(
            self.run, model, self.config, command=self.options.command, report=self.report
        )  # fmt: skip
        return PlanningInputs(
            run=self.run, model=model, trace=trace, itm=itm, trace_artifact=artifact, itm_artifact=itm_artifact
        )

"""Inputs of planning: the trace and the measured times of a run."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace

from artifacts import (
    MANIFEST,
    TRACE_NPZ,
    Artifact,
    InferenceTimeMatrix,
    Model,
    RunFolder,
    StaleArtifactError,
    Trace,
    UsageError,
    allowed_processors,
    check_precision,
    open_artifact,
    open_model,
    read_json,
    read_manifest,
    recorded_command,
)
from calibration import DataSource, check_labels, traced_backend
from engines import DEFAULT_BACKEND, choose_backend
from planner.certify.evidence import refer_to
from planner.commit.contenders import SlowReference
from planner.config import SELF, PlanConfig
from planner.measure.reference_times import ReferenceTimes, find_variant
from planner.measure.timing import ITM_JSON, ensure_itm
from planner.predict.costs import END, NetworkCosts
from planner.predict.lengths import LengthMix
from planner.predict.traffic import Load


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanningInputs:
    """The inputs of planning that a run holds.

    Attributes:
        run: ours, or imported.
        model: the network; ``None`` for an imported run.
        trace: the calibration data.
        itm: the measured times.
        trace_artifact, itm_artifact: where they were read.
        reference: what slow batches are compared with; ``None``: this network without exits.
        variant_artifact: what the run keeps of itself as a variant; ``None`` for one that is none.
    """

    run: RunFolder
    model: Model | None
    trace: Trace
    itm: InferenceTimeMatrix
    trace_artifact: Artifact
    itm_artifact: Artifact
    reference: ReferenceTimes | None = None
    variant_artifact: Artifact | None = None

    @property
    def cuts(self) -> tuple[str, ...]:
        """Every cut of the network in order, the last one too."""
        if self.model is None:
            return (*self.trace.exits, END)
        return tuple(cut.name for cut in self.model.spec.cuts)

    @property
    def task(self) -> str | None:
        """The name of the task, as the trace was judged; ``None`` where an imported one does not say."""
        named = self.trace_artifact.manifest.parameters.get("task")
        return named or (None if self.model is None else self.model.spec.task)

    @property
    def digests(self) -> dict[str, str]:
        """The digests of the artifacts, as in the manifest of a plan."""
        found = {"trace": self.trace_artifact.digest, "itm": self.itm_artifact.digest}
        if self.variant_artifact is not None:
            found["variant"] = self.variant_artifact.digest
        return found if self.model is None else {"model": self.model.digest, **found}

    def require_model(self) -> Model:
        """Returns the network.

        Raises:
            UsageError: the run is an imported one.
        """
        if self.model is None:
            raise UsageError(f"{self.run.root} is an imported run: it has times and a trace, but no model")
        return self.model

    def costs(self, *, batch_size: int, load: Load | None = None) -> NetworkCosts:
        """Returns the costs of the network's stages.

        Raises:
            UsageError: the batch size was not timed.
        """
        lengths = LengthMix.of(self.trace.lengths, self.itm.lengths) if self.itm.lengths else None
        costs = NetworkCosts(itm=self.itm, cuts=self.cuts, batch_size=batch_size, mixture=load, lengths=lengths)
        return costs if self.reference is None else replace(costs, reference=replace(costs, itm=self.reference.itm))

    def referring_to(self, reference: str | None) -> PlanningInputs:
        """Returns the inputs whose tolerances and slow batches refer to a network: ``self``, or that in float32."""
        times = None if reference == SELF else self.reference
        return replace(self, trace=refer_to(self.trace, reference), reference=times)

    def compared_with(self, costs: NetworkCosts) -> SlowReference | None:
        """Returns what slow batches are compared with, by costs of these inputs; ``None``: this network itself."""
        if self.reference is None:
            return None
        full_ms = costs.slow_above.full_ms
        return SlowReference(label=self.reference.label, full_ms=full_ms, own_ratio=costs.full_ms / full_ms)

    def as_variant(self, report: Callable[[str], None] = lambda _: None) -> PlanningInputs:
        """Returns the inputs with what the run keeps of itself as a variant, if it is one.

        Args:
            report: takes a line where the times that it keeps cannot be held against those of the run.
        """
        found = find_variant(self.run)
        if found is None:
            return self
        artifact, record = found
        why = None if record.reference is None else record.reference.why_unusable(self.itm)
        if record.reference is not None and why is not None:
            report(
                f"note: slow batches are compared with this network without exits. The run keeps times of "
                f"{record.reference.label} to compare with, but {why}. To compare all variants again: "
                "python -m planner --engines ... --precisions ..."
            )
        return replace(self, variant_artifact=artifact, reference=None if why is not None else record.reference)

    def check_risk(self, risk: str) -> None:
        """Refuses a risk that needs labels where there are none; errors as ``calibration.check_labels``."""
        check_labels(risk, labelled=self.trace.labelled, where=str(self.trace_artifact.folder))


def ensure_inputs(
    run: RunFolder,
    config: PlanConfig,
    *,
    data: DataSource | None = None,
    precision: str | None = None,
    command: str | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> PlanningInputs:
    """Returns the inputs of a run of ours, making what is missing or was made with other settings.

    Args:
        run: its model and trace are made where they are missing.
        config: backend, threads and timing; its risk is checked before any work.
        data: ``--data``; ``None``: what the run used before.
        precision: the precision that the network must have; ``None``: any.
        command: the command line to record; ``None``: the planner's with this config.
        report: takes lines about the progress.

    Raises:
        UsageError: the network is of another precision, or the risk needs labels that the data has none of.
        PameError: something upstream cannot be made; the message says what.
    """
    from calibration import CalibrationOptions, EngineChoice, ensure_trace

    trace_artifact, trace = ensure_trace(
        run, EngineChoice(backend=config.backend, threads=config.threads), data=data, risk=config.certify.risk,
        options=CalibrationOptions(report=report),
    )  # fmt: skip
    model = open_model(run.model, remedy=run.remedy("export"))
    check_precision(model.spec, precision, run=run.root)
    itm_artifact, itm = ensure_itm(run, model, config, command=command, report=report)
    return PlanningInputs(
        run=run, model=model, trace=trace, itm=itm, trace_artifact=trace_artifact, itm_artifact=itm_artifact
    ).as_variant(report)


def read_inputs(run: RunFolder, *, risk: str | None = None) -> PlanningInputs:
    """Reads trace and times as they are; what is missing is made with default settings first.

    Args:
        run: of ours, or imported.
        risk: what they are wanted for; one that the trace cannot tell is refused before anything is made. ``None``:
            any.

    Raises:
        UsageError: the risk needs labels, and there are none.
        StaleArtifactError: they were made for another model than the run has now.
        PameError: something upstream cannot be made; the message says what.
    """
    if not all((folder / MANIFEST).is_file() for folder in (run.trace, run.itm)):
        default = PlanConfig(threads=allowed_processors())
        _make_missing(run, default, risk)
    imported = is_imported(run)
    again = recorded_command(run.trace) or f"python -m planner import-trace --run {shlex.quote(str(run.root))}"
    trace = open_artifact(run.trace, kind="trace", remedy=again if imported else run.remedy("calibration"))
    itm = open_artifact(run.itm, kind="itm", remedy=again if imported else run.remedy("planner"))
    inputs = PlanningInputs(
        run=run,
        model=None if imported else _open_same_model(run, trace, itm),
        trace=Trace.load(trace.path(TRACE_NPZ)),
        itm=read_json(itm.path(ITM_JSON), InferenceTimeMatrix),
        trace_artifact=trace,
        itm_artifact=itm,
    )
    if risk is not None:
        inputs.check_risk(risk)
    return inputs.as_variant()


def settle_engine(
    engine: str | None, precision: str | None, run: RunFolder, report: Callable[[str], None]
) -> tuple[str, str | None]:
    """Returns the backend that a run is planned for, and the precision that its graph must have (``None``: any).

    Args:
        engine, precision: ``--engine`` and ``--precision``; ``None``: not given. Without an engine, it is the one that
            the run's trace was collected on: with another one, all samples would go through the network again.
        run: the run, which need not be there yet.
        report: takes a line where the engine is not the usual one and was not named.

    Raises:
        UsageError: the run is a variant, and the engine that was named is not its own; or as ``choose_backend``.
    """
    found = find_variant(run)
    there = traced_backend(run) if found is None else found[1].backend
    backend, graph = choose_backend(engine or there or DEFAULT_BACKEND, precision)
    if found is not None and backend != found[1].backend:
        own = found[1]
        raise UsageError(
            f"{run.root} is the variant {own.engine} {own.precision}, and holds a trace and times of {own.backend}, "
            f"not of {backend}. Leave --engine and --precision out, or plan for {backend} in another run"
        )
    if engine is None and backend == there != DEFAULT_BACKEND:
        report(f"engine: {backend}, as the run's trace was collected on it")
    return backend, graph


def read_task(run: RunFolder) -> str | None:
    """Returns the name of the task of a planned run, as ``PlanningInputs.task`` does."""
    named = read_manifest(run.trace).parameters.get("task")
    if named is not None or not run.model.exists():
        return named
    return open_model(run.model, remedy=run.remedy("export")).spec.task


def is_imported(run: RunFolder) -> bool:
    """Tells whether a run was made by ``python -m planner import-trace``: there is no model."""
    if run.model.exists() or not (run.trace / MANIFEST).is_file():
        return False
    return read_manifest(run.trace).parameters.get("imported") is True


def _open_same_model(run: RunFolder, *artifacts: Artifact) -> Model:
    model = open_model(run.model, remedy=run.remedy("export"))
    for artifact in artifacts:
        if artifact.manifest.inputs.get("model") != model.digest:
            raise StaleArtifactError(
                f"{artifact.folder} was made for another model than {run.model} holds now. "
                f"Plan again with: {run.remedy('planner')}"
            )
    return model


def _make_missing(run: RunFolder, default: PlanConfig, risk: str | None) -> None:
    from calibration import EngineChoice, ensure_trace

    ensure_trace(run, EngineChoice(backend=default.backend, threads=default.threads), risk=risk)
    model = open_model(run.model, remedy=run.remedy("export"))
    ensure_itm(run, model, default)

"""What planning reads of a run: the trace and the times that were recorded last."""

from __future__ import annotations

import os
from dataclasses import dataclass

from artifacts import (
    MANIFEST,
    Artifact,
    InferenceTimeMatrix,
    RunFolder,
    StaleArtifactError,
    Trace,
    open_artifact,
    open_model,
    read_json,
    read_manifest,
)
from artifacts.console import say
from calibration.certify.risk_tests import check_labels
from planner.config import PlanConfig
from planner.foreign.files import END
from planner.measure.timing import ITM_JSON, ensure_itm

TRACE_NPZ = "trace.npz"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recorded:
    """The trace and the inference time matrix of a run.

    Attributes:
        trace: the calibration data.
        itm: the times.
        cuts: every cut of the network in order, the last one too.
        trace_artifact, itm_artifact: where they were read.
    """

    trace: Trace
    itm: InferenceTimeMatrix
    cuts: tuple[str, ...]
    trace_artifact: Artifact
    itm_artifact: Artifact

    def check_risk(self, risk: str) -> None:
        """Refuses a risk that needs labels where there are none; errors as ``calibration.check_labels``."""
        check_labels(risk, labelled=self.trace.labelled, where=str(self.trace_artifact.folder))


def read_recorded(run: RunFolder, *, risk: str | None = None) -> Recorded:
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
        _make_missing(run, risk)
    imported = is_imported(run)
    remedy = "python -m planner import-trace" if imported else "python -m planner --tolerance 0.01"
    trace, itm = (
        open_artifact(run.trace, kind="trace", remedy=remedy),
        open_artifact(run.itm, kind="itm", remedy=remedy),
    )
    samples = Trace.load(trace.path(TRACE_NPZ))
    recorded = Recorded(
        trace=samples,
        itm=read_json(itm.path(ITM_JSON), InferenceTimeMatrix),
        cuts=(*samples.exits, END) if imported else _cuts_of_model(run, trace, itm),
        trace_artifact=trace,
        itm_artifact=itm,
    )
    if risk is not None:
        recorded.check_risk(risk)
    return recorded


def is_imported(run: RunFolder) -> bool:
    """Tells whether a run was made by ``python -m planner import-trace``: there is no model."""
    if run.model.exists() or not (run.trace / MANIFEST).is_file():
        return False
    return read_manifest(run.trace).parameters.get("imported") is True


def _cuts_of_model(run: RunFolder, *artifacts: Artifact) -> tuple[str, ...]:
    model = open_model(run.model, remedy="python -m export resnet --segments")
    for artifact in artifacts:
        if artifact.manifest.inputs.get("model") != model.digest:
            raise StaleArtifactError(
                f"{artifact.folder} was made for another model than {run.model} holds now. "
                f"Plan again with: python -m planner --run {run.root}"
            )
    return tuple(cut.name for cut in model.spec.cuts)


def _make_missing(run: RunFolder, risk: str | None) -> None:
    from calibration import CalibrationOptions, EngineChoice, ensure_trace

    default = PlanConfig(threads=os.cpu_count() or 1)
    engine = EngineChoice(backend=default.backend, threads=default.threads)
    ensure_trace(run, engine, risk=risk, options=CalibrationOptions(report=say))
    model = open_model(run.model, remedy="python -m export resnet --segments")
    ensure_itm(run, model, default.timing, backend=default.backend, threads=default.threads)

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
)
from planner.config import PlanConfig
from planner.timing import ITM_JSON, ensure_itm

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


def read_recorded(run: RunFolder) -> Recorded:
    """Reads trace and times as they are; what is missing is made with default settings first.

    Raises:
        StaleArtifactError: they were made for another model than the run has now.
        PameError: something upstream cannot be made; the message says what.
    """
    if not all((folder / MANIFEST).is_file() for folder in (run.trace, run.itm)):
        _make_missing(run)
    trace = open_artifact(run.trace, kind="trace", remedy="python -m calibration")
    itm = open_artifact(run.itm, kind="itm", remedy="python -m planner --tolerance 0.01")
    model = open_model(run.model, remedy="python -m export resnet --segments")
    for artifact in (trace, itm):
        if artifact.manifest.inputs.get("model") != model.digest:
            raise StaleArtifactError(
                f"{artifact.folder} was made for another model than {run.model} holds now. "
                f"Plan again with: python -m planner --run {run.root}"
            )
    return Recorded(
        trace=Trace.load(trace.path(TRACE_NPZ)),
        itm=read_json(itm.path(ITM_JSON), InferenceTimeMatrix),
        cuts=tuple(cut.name for cut in model.spec.cuts),
        trace_artifact=trace,
        itm_artifact=itm,
    )


def _make_missing(run: RunFolder) -> None:
    from calibration import ensure_trace

    default = PlanConfig(threads=os.cpu_count() or 1)
    ensure_trace(run, backend=default.backend, threads=default.threads)
    model = open_model(run.model, remedy="python -m export resnet --segments")
    ensure_itm(run, model, default.timing, backend=default.backend, threads=default.threads)

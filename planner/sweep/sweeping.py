"""``python -m planner --sweep``: the operating points of a run, searched on its trace and its measured times.

Nothing is merged, compiled or bundled, and engines are timed only where the run has no times yet; an imported run has
all that it takes. What was swept lies in ``runs/<name>/sweep/``, with the grids that were evaluated for it; both are
reused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from artifacts import (
    Artifact,
    ArtifactError,
    InferenceTimeMatrix,
    Model,
    RunFolder,
    Trace,
    is_current,
    new_artifact,
    open_artifact,
    open_model,
    read_json,
    to_plain,
    write_json,
)
from artifacts.console import say, track
from calibration import DataSource
from planner.certify.evidence import risk_trace
from planner.config import PlanConfig
from planner.foreign.files import END
from planner.measure.timing import ensure_itm
from planner.predict.costs import NetworkCosts
from planner.search.greedy import SearchResult
from planner.search.threshold_grids import KeptGrids
from planner.sweep.points import Sweep, sweep_levels, sweep_tolerances
from planner.workflow.inputs import is_imported, read_recorded
from planner.workflow.planning import find_search, kept_grids, share_grids

SWEEP_JSON = "sweep.json"
GRID_NPZ = "grid.npz"
_FORM = 2  # of ``sweep.json``
_REMEDY = "python -m planner --sweep"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SweepCase:
    """What is swept: the parts of a run with the artifacts that they came from.

    Attributes:
        run: where the sweep is kept.
        model, trace, itm: the network (``None`` for an imported run), its calibration data and its measured times.
        trace_artifact, itm_artifact: for their digests.
        config: what the search is asked for; its tolerance does not count.
    """

    run: RunFolder
    model: Model | None
    trace: Trace
    trace_artifact: Artifact
    itm: InferenceTimeMatrix
    itm_artifact: Artifact
    config: PlanConfig

    def inputs(self) -> dict[str, str]:
        found = {"trace": self.trace_artifact.digest, "itm": self.itm_artifact.digest}
        return found if self.model is None else {"model": self.model.digest, **found}

    def parameters(self, tolerances: Sequence[float]) -> dict[str, Any]:
        config = {name: value for name, value in to_plain(self.config).items() if name not in ("tolerance", "measure")}
        return {"config": config, "tolerances": list(tolerances), "form": _FORM}

    def costs(self) -> NetworkCosts:
        """Prices the stages for the config's load."""
        cuts = (*self.trace.exits, END) if self.model is None else tuple(cut.name for cut in self.model.spec.cuts)
        config = self.config
        return NetworkCosts(itm=self.itm, cuts=cuts, batch_size=config.batch_size, mixture=config.load)


def prepare_sweep(run: RunFolder, config: PlanConfig, *, data: DataSource | None = None) -> SweepCase:
    """Returns what a sweep of this run needs; trace and times are made where they are missing.

    Raises:
        UsageError: the run is an imported one without labels, and the risk needs them.
        PameError: something upstream cannot be made; the message says what.
    """
    from calibration import CalibrationOptions, EngineChoice, ensure_trace

    if is_imported(run):
        recorded = read_recorded(run, risk=config.certify.risk)
        return SweepCase(
            run=run, model=None, trace=recorded.trace, trace_artifact=recorded.trace_artifact, itm=recorded.itm,
            itm_artifact=recorded.itm_artifact, config=config,
        )  # fmt: skip
    trace_artifact, trace = ensure_trace(
        run, EngineChoice(backend=config.backend, threads=config.threads), data=data, risk=config.certify.risk,
        options=CalibrationOptions(report=say),
    )  # fmt: skip
    model = open_model(run.model, remedy="python -m export resnet --segments")
    itm_artifact, itm = ensure_itm(
        run, model, config.timing, backend=config.backend, profiles=config.profiles, threads=config.threads
    )
    return SweepCase(
        run=run, model=model, trace=trace, trace_artifact=trace_artifact, itm=itm, itm_artifact=itm_artifact,
        config=config,
    )  # fmt: skip


def ensure_sweep(case: SweepCase, tolerances: Sequence[float] | None = None) -> tuple[Sweep, bool]:
    """Returns the operating points and whether they were there already; publishes ``sweep/`` otherwise.

    Args:
        case: what is swept.
        tolerances: strictly ascending, in [0, 1); ``None``: the whole range.

    Raises:
        NoPlanError: no tolerance has a plan.
    """
    run, config = case.run, case.config
    trace, costs = risk_trace(case.trace, config.certify.risk), case.costs()
    levels = sweep_levels(trace) if tolerances is None else tuple(tolerances)
    inputs, parameters = case.inputs(), case.parameters(levels)
    if is_current(run.sweep, kind="sweep", inputs=inputs, parameters=parameters):
        artifact = open_artifact(run.sweep, kind="sweep", remedy=_REMEDY)
        return read_json(artifact.path(SWEEP_JSON), Sweep), True
    kept = _known_grids(case)
    known = len(kept.grids)

    def search(tolerance: float) -> SearchResult:
        return find_search(config)(trace, costs, replace(config, tolerance=tolerance), kept)

    tracked = track(levels, description="sweeping tolerances", total=len(levels))
    sweep = sweep_tolerances(search, tracked, full_metric=trace.full_metric, objective=config.objective)
    say(
        f"{config.search} search at {len(levels)} tolerances: {kept.evaluations} grids evaluated, "
        f"{known} kept from before"
    )
    with new_artifact(run.sweep, kind="sweep", inputs=inputs, parameters=parameters) as staging:
        write_json(staging / SWEEP_JSON, sweep)
        kept.save(staging / GRID_NPZ)
    return sweep, False


def _known_grids(case: SweepCase) -> KeptGrids:
    """Returns the grids that the last planning and the last sweep left of this trace at these thresholds."""
    kept = kept_grids(case.run, case.trace_artifact, case.config)
    try:
        swept = open_artifact(case.run.sweep, kind="sweep", remedy=_REMEDY)
        if share_grids(swept.manifest, case.trace_artifact, case.config):
            earlier = KeptGrids.load(swept.path(GRID_NPZ))
            if earlier.thresholds.tolist() == kept.thresholds.tolist():
                kept.grids.update(earlier.grids)
    except ArtifactError:
        return kept
    return kept

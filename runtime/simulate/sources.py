"""Sources of a simulation: a bundle's measured times, and where the rows of a trace leave under its plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from artifacts import (
    BUNDLE_JSON,
    TRACE_NPZ,
    BundleSpec,
    InputError,
    RunFolder,
    Trace,
    UsageError,
    find_first_true,
    open_artifact,
    read_json,
)
from engines import open_key, plan_covers
from runtime.hosting.options import read_costs
from runtime.remedy import bundle_remedy
from runtime.scheduling.tables import StageCosts


def read_bundle(folder: Path) -> BundleSpec:
    """Verifies a bundle and returns what it holds, without opening an engine; errors as ``Runtime.load``."""
    artifact = open_artifact(folder, kind="bundle", remedy=bundle_remedy(folder))
    return read_json(artifact.path(BUNDLE_JSON), BundleSpec)


def check_one_length(spec: BundleSpec) -> None:
    """Refuses a bundle whose rows have several lengths: the requests of simulations and load tests have none yet.

    Raises:
        UsageError: they do.
    """
    if spec.lengths:
        raise UsageError(
            f"rows of bundle '{spec.name}' have the lengths {list(spec.lengths)}. AsyncRuntime and runtime.serve take "
            "them, but simulations and load tests are for rows of one shape: measure it with python -m runtime.bench"
        )


def bundle_costs(folder: Path, spec: BundleSpec, *, overhead_ms: float) -> StageCosts:
    """Returns the times of a bundle's stages, with what a stage run costs besides its engines.

    Raises:
        UsageError: as ``check_one_length``.
    """
    check_one_length(spec)
    covers = []
    for stage in spec.stages:
        _, key = open_key(folder / stage.engine)
        times = {int(size): ms for size, ms in stage.median_ms.items()}
        covers.append(plan_covers(times, largest=spec.max_batch_size, fixed=bool(key.batch_sizes)))
    return read_costs(spec, covers, overhead_ms=overhead_ms)


def trace_exits(run: RunFolder, spec: BundleSpec) -> np.ndarray:
    """Returns (N,) int64, the stage after which each row of the run's trace leaves under the bundle's plan.

    Raises:
        InputError: the trace lacks an exit of the plan.
    """
    artifact = open_artifact(run.trace, kind="trace", remedy=run.remedy("calibration"))
    trace = Trace.load(artifact.path(TRACE_NPZ))
    missing = [planned.cut for planned in spec.plan.exits if planned.cut not in trace.exits]
    if missing:
        raise InputError(
            f"the trace of run '{run.root}' lacks the exits {missing} of its bundle; make both again with: "
            f"{run.remedy('planner')}"
        )
    leaving = [
        trace.confidence[trace.exits.index(planned.cut)] >= np.float32(planned.threshold) for planned in spec.plan.exits
    ]
    leaving.append(np.ones(trace.sample_count, np.bool_))
    return find_first_true(np.stack(leaving)).astype(np.int64)

"""Recalibrating: a newly certified bundle from the rows that a running host has seen at every exit.

The rows of a shadow log are a sample of the live stream, without labels: what can be certified on them is the agreement
with the final head. They were seen at the exits that were deployed, so the new plan has some of these, at thresholds of
its own. The plan is searched on one half of the rows and certified on the other, exactly as on calibration data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import (
    COMMAND,
    EXIT_PLAN_JSON,
    MAX_SOFTMAX,
    TRACE_NPZ,
    Artifact,
    ExitPlan,
    InputError,
    RunFolder,
    UsageError,
    array_digest,
    from_plain,
    new_artifact,
    open_artifact,
    read_json,
    work_alone,
)
from calibration import DataSource, Samples, load_run_data
from planner.commit.engine_sizes import check_limits
from planner.confidence.choosing import SettledConfidence
from planner.config import PlanConfig
from planner.workflow.inputs import PlanningInputs, read_inputs
from planner.workflow.planning import PlanningTask, search_and_commit
from planner.workflow.record import PlanningResult, fresh_grids, open_plan
from runtime import LoggedRows, read_shadow_log

RECALIBRATION = "recalibration"
"""The artifact of a run that keeps the rows of the log, which goes on rotating."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalibration:
    """What is asked for.

    Attributes:
        log: the folder that the host wrote to.
        every_row: those from before the last alarm too.
        tolerance, delta: of the new plan; ``None``: those of the run's plan.
        data: the data to measure on where the log holds no inputs; ``None``: what the run used before.
        command: the command line to record.
    """

    log: Path
    every_row: bool = False
    tolerance: float | None = None
    delta: float | None = None
    data: DataSource | None = None
    command: str = ""


@work_alone
def recalibrate_run(run: RunFolder, asked: Recalibration, report: Callable[[str], None]) -> PlanningResult:
    """Plans from a shadow log and replaces ``plan/`` and ``bundle/``; the run's own trace stays.

    Args:
        run: of the bundle that was served; it has been planned before.
        asked: the log, and what to plan for.
        report: takes lines about the progress.

    Raises:
        UsageError: the run is an imported one.
        InputError: the log holds no rows of this run's bundle.
        MissingArtifactError, StaleArtifactError: the run was not planned, or its parts do not belong together.
    """
    inputs = read_inputs(run)
    model = inputs.require_model()
    plan = open_plan(run)
    logged = read_shadow_log(asked.log, model_digest=model.digest, every_row=asked.every_row)
    config = _make_config(plan, asked)
    check_limits(config, inputs.itm)
    settled = _settle(logged, read_json(plan.path(EXIT_PLAN_JSON), ExitPlan), inputs, asked.log)
    artifact = _keep_rows(run, logged, inputs, asked)
    rows = logged.trace.sample_count
    report(f"{rows} rows in {logged.files} files of {asked.log}, seen at {', '.join(logged.trace.exits)}")
    samples: Samples
    if logged.inputs is None:
        report(
            "note: the log holds no inputs, so plans are measured on the run's own data, where other shares of the "
            "rows leave; to measure on the stream, serve with log_inputs=True"
        )
        samples = load_run_data(run, asked.data, report=report)
    else:
        samples = LoggedSamples(name=str(asked.log), arrays=logged.inputs)
    task = PlanningTask(
        inputs=replace(inputs.referring_to(config.certify.reference), trace=logged.trace, trace_artifact=artifact),
        config=config, settled=settled,
        grids=fresh_grids(config), command=asked.command,
    )  # fmt: skip
    return search_and_commit(task, samples, report)


def _make_config(plan: Artifact, asked: Recalibration) -> PlanConfig:
    config = from_plain(PlanConfig, plan.manifest.parameters["config"])
    delta = config.certify.delta if asked.delta is None else asked.delta
    certify = replace(config.certify, method="ltt", risk="agreement", delta=delta)
    tolerance = config.tolerance if asked.tolerance is None else asked.tolerance
    return replace(config, tolerance=tolerance, certify=certify, confidence=MAX_SOFTMAX)


def _settle(logged: LoggedRows, served: ExitPlan, inputs: PlanningInputs, log: Path) -> SettledConfidence:
    """Returns the trace, whose confidences are those of the served exits, learned ones among them."""
    exits = logged.trace.exits
    unknown = [name for name in exits if name not in inputs.trace.exits]
    if unknown or not exits:
        raise InputError(
            f"--log {log}: its rows were seen at the exits {list(exits)}; {inputs.run.root} has the candidates "
            f"{list(inputs.trace.exits)}"
        )
    if served.confidences and tuple(planned.cut for planned in served.exits) != exits:
        raise InputError(
            f"--log {log}: the served bundle had the exits {list(exits)}, and the plan of {inputs.run.root}, whose "
            "learned confidences would be needed, has others; recalibrate before planning anew"
        )
    return SettledConfidence(trace=logged.trace, learned=served.confidences)


def _keep_rows(run: RunFolder, logged: LoggedRows, inputs: PlanningInputs, asked: Recalibration) -> Artifact:
    """Publishes the rows as an artifact of the run; the digests of the data that the heads were trained on stay."""
    parameters: dict[str, Any] = {
        "imported": False, "labelled": False, "files": logged.files, "since_ns": logged.since_ns,
    }  # fmt: skip
    digests = {**inputs.trace_artifact.manifest.inputs, "shadow_log": array_digest(logged.trace.confidence)}
    notes = {COMMAND: asked.command}
    folder = run.root / RECALIBRATION
    with new_artifact(folder, kind="trace", inputs=digests, parameters=parameters, notes=notes) as staging:
        logged.trace.save(staging / TRACE_NPZ)
    return open_artifact(folder, kind="trace", remedy=asked.command)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoggedSamples:
    """The inputs of logged rows as samples without labels, all of them to calibrate with."""

    name: str
    arrays: Mapping[str, np.ndarray]

    @property
    def labelled(self) -> bool:
        """False: a stream has no labels."""
        return False

    def indices_of(self, part: str, /) -> np.ndarray:
        """Returns all rows for ``calibrate``, and none for the other parts."""
        return np.arange(len(next(iter(self.arrays.values()))) if part == "calibrate" else 0, dtype=np.int64)

    def inputs(self, indices: np.ndarray, /) -> Mapping[str, np.ndarray]:
        """Returns the network's inputs for some rows."""
        return {name: array[indices] for name, array in self.arrays.items()}

    def targets(self, _indices: np.ndarray, /) -> np.ndarray:
        """Raises: there are none."""
        raise UsageError(f"{self.name} holds rows of a stream, which have no labels")

    def digests(self) -> Mapping[str, str]:
        """Returns the digests of the inputs and of the index set of each part."""
        inputs = {"images" if len(self.arrays) == 1 else name: array_digest(array)
                  for name, array in self.arrays.items()}  # fmt: skip
        parts = {f"indices.{part}": array_digest(self.indices_of(part)) for part in ("train", "calibrate", "test")}
        return {**inputs, **parts}

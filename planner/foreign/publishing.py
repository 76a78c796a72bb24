"""Publishing of an imported run: its trace and its times as artifacts, and what was found in them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from artifacts import (
    COMMAND,
    TRACE_NPZ,
    InferenceTimeMatrix,
    RunFolder,
    Trace,
    file_digest,
    new_artifact,
    open_artifact,
    write_json,
)
from planner.measure.timing import ITM_JSON


def publish_import(
    run: RunFolder, trace: Trace, itm: InferenceTimeMatrix, *, trace_file: Path, itm_file: Path, task: str | None = None
) -> None:  # fmt: skip
    """Publishes ``trace/`` and ``itm/``; a trace and times that the run had before are replaced.

    Args:
        run: the run's folder.
        trace: what was read from ``trace_file``.
        itm: what was read from ``itm_file``.
        trace_file: the file as named by the user.
        itm_file: likewise.
        task: the name of one of ``TASKS``, whose words describe the metric; ``None``: it is not known.
    """
    notes = {COMMAND: import_command(run, itm, trace_file=trace_file, itm_file=itm_file, task=task)}
    parameters = {"imported": True, "labelled": trace.labelled, "data_source": str(trace_file)}
    if task is not None:
        parameters["task"] = task
    inputs = {"trace_file": file_digest(trace_file)}
    with new_artifact(run.trace, kind="trace", inputs=inputs, parameters=parameters, notes=notes) as staging:
        trace.save(staging / TRACE_NPZ)
    inputs, parameters = {"itm_file": file_digest(itm_file)}, {"imported": True}
    with new_artifact(run.itm, kind="itm", inputs=inputs, parameters=parameters, notes=notes) as staging:
        write_json(staging / ITM_JSON, itm)


def import_command(
    run: RunFolder, itm: InferenceTimeMatrix, *, trace_file: Path, itm_file: Path, task: str | None = None
) -> str:  # fmt: skip
    """Returns the command line that imports the files again."""
    words = ["python", "-m", "planner", "import-trace", "--run", str(run.root)]
    words += ["--trace", str(trace_file), "--itm", str(itm_file)]
    if task is not None:
        words += ["--task", task]
    if itm.fixed:
        words.append("--fixed-batch-sizes")
    if itm.threads != 1:
        words += ["--threads", str(itm.threads)]
    return shlex.join(words)


def describe_import(run: RunFolder, trace: Trace, itm: InferenceTimeMatrix) -> dict[str, Any]:
    """Returns the JSON object of the command."""
    remedy = run.remedy("calibration")
    return {
        "run": str(run.root),
        "trace": open_artifact(run.trace, kind="trace", remedy=remedy).digest,
        "itm": open_artifact(run.itm, kind="itm", remedy=remedy).digest,
        "samples": trace.sample_count,
        "labelled": trace.labelled,
        "batch_sizes": list(itm.batch_sizes),
        "exits": trace.summarise(),
    }

"""CalibrationOptions: what every step of a calibration is given besides run, data and engines."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifacts import COMMAND, Model, RunFolder, Task, UsageError, find_task, memory_limit

if TYPE_CHECKING:
    from calibration.training.processes import Processes

_log = logging.getLogger("pame.calibration")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """The task, the command line to record, and where messages go.

    Attributes:
        task: of one's own; ``None``: the one that the model names.
        parts: ``--parts``, a share of one part of the data that becomes another; ``None``: as before, or none.
        trace_samples: how many samples of the calibrate part are traced; ``None``: as before, or all.
        command: the command line that made this; ``None``: ``python -m calibration`` with the run and its data.
        report: receives notes for the user.
        force: go on with a network that is no good on the samples.
        memory_gb: GiB that may be used; ``None``: half of what is free.
        workers: processes that decode samples for training; ``None``: one per allowed processor for image files.
        processes: those that train together; ``None``: this one alone.
    """

    task: Task | None = None
    parts: str | None = None
    trace_samples: int | None = None
    command: str | None = None
    report: Callable[[str], None] = _log.info
    force: bool = False
    memory_gb: float | None = None
    workers: int | None = None
    processes: Processes | None = None

    def __post_init__(self) -> None:
        memory_limit(self.memory_gb)
        if self.workers is not None and self.workers < 0:
            raise UsageError(f"--workers {self.workers}: expected 0 (this process decodes) or more")
        if self.trace_samples is not None and self.trace_samples < 1:
            raise UsageError(f"--trace-samples {self.trace_samples}: expected a number from 1")

    def task_of(self, model: Model) -> Task:
        """Returns the task that judges a model's answers.

        Raises:
            UsageError: the model names a task that is not built in, and none was given.
        """
        return self.task or find_task(model.spec.task, model.spec.settings)

    def notes(self, run: RunFolder, *, source: str | None = None) -> dict[str, str]:
        """Returns what manifests record of the command line."""
        data = [] if source is None else ["--data", source]
        data += [] if self.parts is None else ["--parts", self.parts]
        return {COMMAND: self.command or shlex.join(["python", "-m", "calibration", "--run", str(run.root), *data])}


DEFAULT_OPTIONS = CalibrationOptions()

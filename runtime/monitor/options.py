"""``WatchOptions``: what a runtime counts, when it raises an alarm, what it does then, and what it logs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from artifacts import Task, UsageError, unknown_name
from runtime.monitor.drift import DriftConfig

ALARM, TIGHTEN, FULL = "alarm", "tighten", "full"
ON_DRIFT = (ALARM, TIGHTEN, FULL)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchOptions:
    """Options of whatever watches a stream of rows.

    Attributes:
        stats: keep running statistics, and watch for drift.
        drift: when to raise an alarm; ``None``: never. Needs the reference in the exit plan, which plans of release
            0.1.0 may lack.
        on_drift: what an alarm does besides being logged. ``alarm``: nothing. ``full``: no row leaves early from then
            on. ``tighten``: no row leaves early until enough rows have been seen at every exit, then rows leave again,
            at thresholds that are raised as far as the agreement of those rows with the final head demands
            (``runtime.monitor.tightening``).
        shadow_fraction: this share of the rows, drawn at random, is seen at every exit, even if it leaves early.
        shadow_seed: of the draw; ``None``: another one in every process.
        shadow_log: the folder to which rows that were seen at every exit are written, for ``python -m planner
            recalibrate --log``; ``None``: nowhere.
        log_inputs: write the inputs of these rows as well.
        log_mb: the log's size on the disk; the oldest files are removed.
        task: the task of the network, where it is not one of ``artifacts.TASKS``; its name must be the bundle's.
            Needed where rows are seen at every exit.

    Raises:
        UsageError: a value is out of range, or one needs another that is switched off.
    """

    stats: bool = True
    drift: DriftConfig | None = field(default_factory=DriftConfig)
    on_drift: str = ALARM
    shadow_fraction: float = 0.0
    shadow_seed: int | None = None
    shadow_log: Path | None = None
    log_inputs: bool = False
    log_mb: float = 256.0
    task: Task | None = None

    def __post_init__(self) -> None:
        self.check_watch()

    def check_watch(self) -> None:
        """Checks the options of watching; ``UsageError`` as above."""
        if not 0 <= self.shadow_fraction <= 1:
            raise UsageError(f"shadow_fraction={self.shadow_fraction}: expected a share from 0 to 1")
        if self.shadow_fraction != 0 and not self.stats:
            raise UsageError(f"shadow_fraction={self.shadow_fraction} is for the statistics: open without stats=False")
        if self.on_drift not in ON_DRIFT:
            raise unknown_name("response to drift", self.on_drift, ON_DRIFT)
        if self.responds and not (self.stats and self.drift is not None):
            raise UsageError(
                f"on_drift='{self.on_drift}' answers an alarm, and the test that raises it is switched off: open "
                "without stats=False and without drift=None"
            )
        if self.shadow_log is not None and not (self.shadow_fraction > 0 or self.responds):
            raise UsageError(
                f"shadow_log={self.shadow_log}: no row is ever seen at every exit; set shadow_fraction, e.g. to 0.02"
            )
        if self.log_inputs and self.shadow_log is None:
            raise UsageError("log_inputs=True: there is no log; name its folder with shadow_log")
        if not (math.isfinite(self.log_mb) and self.log_mb > 0):
            raise UsageError(f"log_mb={self.log_mb}: expected a positive number of megabytes")

    @property
    def responds(self) -> bool:
        """Whether an alarm changes where rows leave."""
        return self.on_drift != ALARM

    @property
    def sees_rows(self) -> bool:
        """Whether rows may ever be seen at every exit."""
        return self.shadow_fraction > 0 or self.responds

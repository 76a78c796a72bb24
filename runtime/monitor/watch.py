"""``StreamWatch``: all that watches the rows of an open bundle: statistics, the answer to drift, and the shadow log."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from artifacts import BundleSpec, ExitPlan, SchemaError, Task, find_task
from runtime.monitor.options import WatchOptions
from runtime.monitor.response import CLOSED, OBSERVING, TIGHTENED, DriftResponse, ExitRule
from runtime.monitor.seen import SeenRows
from runtime.monitor.shadow_log import ShadowLog
from runtime.monitor.stats import Agreements, RuntimeStats, StatsCollector
from runtime.remedy import PLAN_AGAIN

_log = logging.getLogger("pame.runtime")


class StreamWatch:
    """The watch over one open bundle; every method may be called from any thread.

    Attributes:
        rule: where rows leave now; a row keeps to the one that it entered under.
        logs_inputs: whether seen rows are to come with their inputs.
    """

    def __init__(
        self,
        spec: BundleSpec,
        options: WatchOptions,
        *,
        task: Task | None,
        on_rule: Callable[[ExitRule], None] = lambda _: None,
    ) -> None:
        """Starts from nothing.

        Args:
            spec: the bundle.
            options: with statistics.
            task: a caller's own; ``None``: the bundle's.
            on_rule: told when rows are to leave by another rule, before ``rule`` is that one.

        Raises:
            SchemaError: the plan has no reference to be tested against, but its drift is to be answered; or one that
                does not belong to its exits.
            UsageError: rows are to be seen, and the bundle's task is not known.
            InputError: the log's folder cannot be made.
        """
        plan = spec.plan
        if options.responds and plan.reference is None:
            raise SchemaError(
                f"on_drift='{options.on_drift}': the exit plan has no reference to find drift by. Plan again with: "
                f"{PLAN_AGAIN}"
            )
        self._responds = options.responds
        self._response = DriftResponse(plan, options.on_drift, shadow_fraction=options.shadow_fraction)
        self.rule = self._response.rule
        self._task = (task or find_task(spec.task, spec.settings)) if options.sees_rows else None
        self._on_rule = on_rule
        self._lock = threading.RLock()
        self._stats = StatsCollector(
            plan, drift=options.drift, shadow_fraction=options.shadow_fraction, on_alarm=self._raise_alarm
        )
        self.logs_inputs = options.log_inputs
        names = [tensor.name for tensor in spec.inputs] if options.log_inputs else []
        self._log = None
        if options.shadow_log is not None:
            self._log = ShadowLog(options.shadow_log, plan, names, limit_mb=options.log_mb)

    @property
    def task(self) -> Task:
        """The task that judges seen rows."""
        if self._task is None:
            raise SchemaError("no row is seen here: set shadow_fraction or on_drift")
        return self._task

    @property
    def compared(self) -> ExitPlan | None:
        """The plan that the stream is compared with; ``None`` while no row leaves early."""
        return self._response.plan

    def add(self, exit_index: list[int], confidence: bytes, shadow: Agreements = (), *, rule: ExitRule) -> None:
        """Takes the answers of a call, as ``StatsCollector.add``; ``rule``: that its rows entered under."""
        self._stats.add(exit_index, confidence, shadow, rule=rule.number)

    def see(self, rows: SeenRows, *, rule: ExitRule) -> None:
        """Takes rows that were seen at every exit, for the log and the answer to drift; not for the statistics."""
        with self._lock:
            if self._log is not None and rule.number == self.rule.number:
                self._log.add(rows)
            if self._response.see(rows.confidence, rows.agreement, rule=rule):
                self._follow()

    def snapshot(self) -> RuntimeStats:
        """Returns the statistics, with what came of the alarms."""
        stats = self._stats.snapshot()
        if not self._responds:
            return stats
        with self._lock:
            return replace(stats, response=self._response.state)

    def reset(self) -> None:
        """Starts the statistics and the test again; thresholds that an alarm has changed stay."""
        self._stats.reset()

    def close(self) -> None:
        """Writes the rest of the log."""
        if self._log is not None:
            self._log.close()

    def _raise_alarm(self) -> None:
        with self._lock:
            if self._log is not None:
                self._log.start_again()
            if self._response.raise_alarm():
                self._follow()

    def _follow(self) -> None:
        """Lets rows leave by the rule that the response has now."""
        rule, state = self._response.rule, self._response.state
        self._on_rule(rule)
        self.rule = rule
        self._stats.compare_with(self._response.plan, rule=rule.number)
        _log.warning("%s", _MESSAGES[state.mode].format(state=state, kept=1 - state.tolerance))


_MESSAGES = {
    OBSERVING: "no row leaves early until {state.rows_needed} rows have been seen at every exit",
    TIGHTENED: "rows leave again, at the thresholds {state.thresholds}: at least {kept:.4g} of the following rows are "
    "answered as by the final head, except with probability {state.delta:.3g} (disagreement {state.disagreement:.4f} "
    "on the rows that were seen). Plan for this stream with: python -m planner recalibrate",
    CLOSED: "no row leaves early from now on. Plan for this stream with: python -m planner recalibrate, then load the "
    "new bundle",
}

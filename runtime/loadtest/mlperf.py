"""MLPerf's LoadGen against a host: its Server and Offline scenarios. Not a submission; the rules of one are others.

LoadGen issues queries from a thread of its own and measures by itself; here they are handed to the event loop, and
their answers reported back. A host refuses what is too much; LoadGen knows no refusals, so requests wait at the bridge
until there is room, and count from when they were issued.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import MissingExtraError, PameError
from runtime.loadtest.client import Target

SERVER, OFFLINE = "Server", "Offline"
_RESULTS = {
    "result": r"^Result is *: *(\w+)",
    "completed_per_s": r"^Completed samples per second *: *([\d.]+)",
    "samples_per_s": r"^Samples per second *: *([\d.]+)",
    "scheduled_per_s": r"^Scheduled samples per second *: *([\d.]+)",
    "p99_ns": r"^99\.00 percentile latency \(ns\) *: *([\d.]+)",
    "mean_ns": r"^Mean latency \(ns\) *: *([\d.]+)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A run of LoadGen.

    Attributes:
        name: ``Server`` or ``Offline``.
        rate_per_s: the target rate of ``Server``; of ``Offline`` the expected one, by which its query is sized.
        bound_ms: of ``Server``: 99 % of the queries are to be answered within it.
        seconds: how long it lasts at least.
        samples: how many different queries there are.
        at_once: how many may be at the host at the same time.
    """

    name: str
    rate_per_s: float
    bound_ms: float
    seconds: float
    samples: int
    at_once: int


class _Bridge:
    """Takes queries from LoadGen's thread to the event loop and their completions back."""

    def __init__(self, loadgen: Any, target: Target, scenario: Scenario) -> None:
        self._loadgen = loadgen
        self._target = target
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(scenario.at_once)
        self._tasks: set[asyncio.Task[None]] = set()
        self.failed: list[str] = []

    def issue(self, samples: Sequence[Any]) -> None:
        """Called by LoadGen."""
        self._loop.call_soon_threadsafe(self._start, [(sample.id, sample.index) for sample in samples])

    def _start(self, samples: Sequence[tuple[int, int]]) -> None:
        for response, query in samples:
            task = self._loop.create_task(self._answer(response, query))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, response: int, query: int) -> None:
        async with self._room:
            try:
                await self._target.answer(query)
            except PameError as error:
                self.failed.append(f"{type(error).__name__}: {error}")
        self._loadgen.QuerySamplesComplete([self._loadgen.QuerySampleResponse(response, 0, 0)])


async def run_scenario(target: Target, scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Runs LoadGen.

    Args:
        target: answers.
        scenario: what LoadGen does.
        folder: for its logs; must exist.

    Returns:
        Its figures; ``valid`` is False where any query failed, whatever LoadGen says.

    Raises:
        MissingExtraError: LoadGen is not installed.
    """
    try:
        import mlperf_loadgen as loadgen
    except ModuleNotFoundError as error:
        raise MissingExtraError("mlcommons-loadgen", "loadtest") from error
    bridge = _Bridge(loadgen, target, scenario)
    settings = _make_settings(loadgen, scenario)
    logs = loadgen.LogSettings()
    logs.log_output.outdir = str(folder)
    logs.log_output.copy_summary_to_stdout = False

    def run() -> None:
        system = loadgen.ConstructSUT(bridge.issue, lambda: None)
        library = loadgen.ConstructQSL(scenario.samples, scenario.samples, lambda _: None, lambda _: None)
        try:
            loadgen.StartTestWithLogSettings(system, library, settings, logs)
        finally:
            loadgen.DestroyQSL(library)
            loadgen.DestroySUT(system)

    await asyncio.to_thread(run)
    found = read_summary((folder / "mlperf_log_summary.txt").read_text())
    valid = found.get("result") == "VALID" and not bridge.failed
    return {"scenario": scenario.name, "valid": valid, "failed": len(bridge.failed), **found}


def _make_settings(loadgen: Any, scenario: Scenario) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario.name)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = int(scenario.seconds * 1e3)
    settings.min_query_count = 1 if scenario.name == OFFLINE else 100
    if scenario.name == SERVER:
        settings.server_target_qps = scenario.rate_per_s
        settings.server_target_latency_ns = int(scenario.bound_ms * 1e6)
        settings.server_target_latency_percentile = 0.99
    else:
        settings.offline_expected_qps = scenario.rate_per_s
    return settings


def read_summary(text: str) -> dict[str, Any]:
    """Returns the figures of LoadGen's summary: numbers, and ``result``."""
    found: dict[str, Any] = {}
    for name, pattern in _RESULTS.items():
        if match := re.search(pattern, text, flags=re.MULTILINE):
            found[name] = match[1] if name == "result" else float(match[1])
    return found

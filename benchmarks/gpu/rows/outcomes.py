"""Rows of a test run: a pytest plugin that hands on every outcome as it comes, so that a cut-off loses none."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks.gpu.record import Record


class RowsOfTests:
    """Adds a row per failed or skipped test to a record, and keeps the counts of each file up to date."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._counts: dict[str, Counter[str]] = record.content.setdefault("tests", {})
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when != "call" and report.passed:
            return
        file = report.nodeid.partition("::")[0]
        self._counts.setdefault(file, Counter())[report.outcome] += 1
        self._seconds[file] += report.duration
        self._record.content["seconds_in_tests"] = dict(self._seconds)
        if report.skipped:
            self._record.add(report.nodeid, seconds=report.duration, skipped=_reason(report))
        elif report.failed:
            self._record.add(report.nodeid, seconds=report.duration, error=_crash(report))
        else:
            self._record.save()

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self._record.add(f"collect {report.nodeid}", error=str(report.longrepr)[-2000:])
        elif report.skipped:
            self._record.add(f"collect {report.nodeid}", skipped=_reason(report))


def _reason(report: Any) -> str:
    where = report.longrepr
    return str(where[2] if isinstance(where, tuple) else where)


def _crash(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(report.longrepr)[-2000:] if crash is None else f"{crash.path}:{crash.lineno}: {crash.message}"[:2000]


def run_tests(record: Record, arguments: list[str]) -> int:
    """Runs pytest in this process; returns its exit code."""
    return int(pytest.main(arguments, plugins=[RowsOfTests(record)]))

"""The benchmark of a run: what ``runtime.bench --json`` wrote, checked to be whole and of the run's bundle."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import (
    ArtifactError,
    CorruptArtifactError,
    RunFolder,
    StaleArtifactError,
    UsageError,
    read_json,
    read_manifest,
)

BENCH_JSON = "bench.json"
_SIDE = ("metric", "mean_latency_ms", "p50_ms", "p99_ms", "batch_ms", "throughput_per_s")
_BENCH = (
    "samples", "batch_size", "rounds", "test_data", "bundle_digest", "full", "early_exit", "speedup_mean",
    "speedup_p99", "throughput_ratio", "metric_ratio", "agreement", "latency_histogram",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """The result of ``runtime.bench`` for the run's bundle, or ``None`` with a note that says why."""

    result: Mapping[str, Any] | None
    note: str


def read_bench(run: RunFolder, given: Path | None) -> BenchResult:
    """Reads the benchmark of the run's bundle.

    Args:
        run: the run.
        given: ``--bench``; must exist and be of this bundle. ``None``: the run's own, where there is one.

    Raises:
        UsageError: the given file does not exist.
        CorruptArtifactError: the file is not a result of ``runtime.bench``.
        StaleArtifactError: the given file is of another bundle.
    """
    path = given or run.root / BENCH_JSON
    how = f"Measure with: {run.remedy('bench')} --json {shlex.quote(str(path))}"
    if not path.is_file():
        if given is not None:
            raise UsageError(f"--bench {given}: there is no such file. {how}")
        return BenchResult(result=None, note=f"The bundle has not been measured on test data yet. {how}")
    result = read_json(path, dict)
    missing = find_missing(result)
    if missing:
        raise CorruptArtifactError(f"{path} is no result of runtime.bench: it lacks {', '.join(missing)}. {how}")
    if result["bundle_digest"] != bundle_digest(run):
        stale = f"{path} was measured with another bundle than the run holds now."
        if given is not None:
            raise StaleArtifactError(f"{stale} {how}")
        return BenchResult(result=None, note=f"{stale} {how}")
    return BenchResult(result=result, note="")


def find_missing(result: Mapping[str, Any]) -> list[str]:
    """Returns what a result of ``runtime.bench`` lacks, by name."""
    parts = {"full": _SIDE, "early_exit": _SIDE, "latency_histogram": ("edges_ms", "full", "early_exit")}
    missing = [name for name in _BENCH if name not in result]
    for part, names in parts.items():
        inner = result.get(part, {})
        missing += [f"{part}.{name}" for name in names if not isinstance(inner, Mapping) or name not in inner]
    return missing


def bundle_digest(run: RunFolder) -> str | None:
    """Returns the digest of the run's bundle, ``None`` when there is none to be read."""
    try:
        return read_manifest(run.bundle).digest
    except (ArtifactError, OSError):
        return None

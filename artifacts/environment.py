"""The environment fingerprint: the processor, system and packages that timings and engines depend on."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "pame", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "torch", "tensorrt", "tensorrt-rtx",
)  # fmt: skip


@functools.cache
def cpu_name() -> str:
    """Returns the processor's model name, e.g. ``AMD EPYC 7B13``."""
    return _cpu_field("model name") or platform.processor() or platform.machine()


@functools.cache
def cpu_features_digest() -> str:
    """Returns 16 hex digits that change when the instruction sets of the processor change."""
    flags = " ".join(sorted(_cpu_field("flags").split()))
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:16]


def _cpu_field(field: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == field:
            return value.strip()
    return ""


def allowed_processors() -> int:
    """Returns how many processors this process may use, by its affinity and the quota of its control group.

    Affinity is what taskset and cpusets set. A container that may use half a processor gets 1.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Returns the processors' worth of time that the control group allows (version 2 or 1); ``None``: any."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        allowed = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return allowed if allowed > 0 else None


def package_version(name: str) -> str | None:
    """Returns the installed version of a distribution, or ``None``."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def environment_fingerprint() -> dict[str, str]:
    """Returns the fingerprint that manifests and benchmark results record; plain strings only."""
    found = {name: package_version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cpu_features": cpu_features_digest(),
        "cpu_count": str(os.cpu_count()),
        **{name: version for name, version in found.items() if version is not None},
    }

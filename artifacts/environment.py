"""The environment: processors and memory that may be used, and the fingerprint that timings and engines depend on."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from artifacts.errors import UsageError

PACKAGES = (
    "pame", "numpy", "onnx", "onnx-ir", "onnxruntime", "onnxruntime-gpu", "torch", "tensorrt", "tensorrt-rtx",
    "openvino",
)  # fmt: skip
GIB = 1 << 30
FREE_SHARE = 0.5
_ASSUMED = 4 * GIB  # where the system does not say
_PROC, _GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of control groups of version 2 and 1: the limit, what is used, and what of that can be dropped at once."""


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


def allowed_processors(*, proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Returns how many processors this process may use, by its affinity and the quotas of its control groups.

    Affinity is what taskset and cpusets set. A container that may use half a processor gets 1.

    Args:
        proc, groups: as for ``free_memory``.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *map(int, _quotas(proc, groups))]))


def _quotas(proc: Path, groups: Path) -> Iterator[float]:
    """Yields the processors' worth of time that each control group around this process allows, where it bounds it."""
    for place in _own_groups("cpu", proc, groups):
        quota, _, period = _read(place / "cpu.max").strip().partition(" ")
        if not period:
            quota, period = (_read(place / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period) > 0:  # "max" and -1: unbounded
            yield int(quota) / int(period)


def memory_limit(gigabytes: float | None = None) -> int:
    """Returns the bytes that a command may use.

    Args:
        gigabytes: what was asked for with ``--memory-gb``, in GiB; ``None``: half of what is free.

    Raises:
        UsageError: not a positive number.
    """
    if gigabytes is None:
        return int(FREE_SHARE * free_memory())
    if not 0 < gigabytes < math.inf:
        raise UsageError(f"--memory-gb {gigabytes:g}: expected a number above 0")
    return int(gigabytes * GIB)


def free_memory(*, proc: Path = _PROC, groups: Path = _GROUPS) -> int:
    """Returns the bytes that can be taken without swapping, and without hitting the limit of a control group.

    Control groups count files in the page cache as used; what of them can be dropped at once is free.

    Args:
        proc: where Linux tells about memory and this process's groups.
        groups: where control groups (version 2 or 1) are mounted.
    """
    left = [*_machine_left(proc), *_groups_left(proc, groups)]
    return max(0, min(left)) if left else _ASSUMED


def _machine_left(proc: Path) -> Iterator[int]:
    for line in _read(proc / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _groups_left(proc: Path, groups: Path) -> Iterator[int]:
    """Yields what each control group around this process leaves."""
    for place in _own_groups("memory", proc, groups):
        for limit, usage, cached in _MEMORY_FILES:
            allowed, used = _read(place / limit).strip(), _read(place / usage).strip()
            if allowed.isdigit() and used.isdigit():
                yield int(allowed) - int(used) + _stat(place / "memory.stat", cached)


def _own_groups(controller: str, proc: Path, groups: Path) -> Iterator[Path]:
    """Yields the folders of the control groups around this process, the innermost first.

    Inside a container the mount's root is the container's own group, whatever path the host calls it by.
    """
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root = groups
        elif controller in controllers.split(","):  # version 1 mounts each on its own, or several under all their names
            root = groups / (controller if (groups / controller).exists() else controllers)
        else:
            continue
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            if place != root and root not in place.parents:
                break
            yield place


def _stat(path: Path, name: str) -> int:
    for line in _read(path).splitlines():
        if line.startswith(f"{name} "):
            return int(line.split()[1])
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


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

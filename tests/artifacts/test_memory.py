"""Free memory: what the machine has, or less where a control group of version 2 or 1 says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts import UsageError, free_memory, memory_limit

GIB = 1 << 30


def machine(root: Path, *, free: int, group: str) -> dict[str, Path]:
    """Writes what Linux tells of a machine with this much free memory, and of this process's groups."""
    proc, groups = root / "proc", root / "cgroup"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    (proc / "meminfo").write_text(f"MemTotal: 99999999 kB\nMemFree: 1 kB\nMemAvailable:  {free // 1024} kB\n")
    (proc / "self" / "cgroup").write_text(group)
    return {"proc": proc, "groups": groups}


def limit_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_without_groups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert free_memory(**machine(tmp_path, free=8 * GIB, group="0::/\n")) == 8 * GIB


def test_a_container_of_version_2_counts_less_its_dropped_pages(tmp_path: Path) -> None:
    found = machine(tmp_path, free=8 * GIB, group="0::/docker/abc\n")
    limit_group(
        found["groups"], memory__max=f"{2 * GIB}\n", memory__current=f"{GIB}\n",
        memory__stat=f"anon 5\ninactive_file {GIB // 2}\n",
    )  # fmt: skip
    assert free_memory(**found) == 3 * GIB // 2


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    found = machine(tmp_path, free=8 * GIB, group="0::/user.slice/job.scope\n")
    limit_group(found["groups"] / "user.slice", memory__max=f"{GIB}\n", memory__current="0\n")
    limit_group(found["groups"] / "user.slice" / "job.scope", memory__max="max\n", memory__current="0\n")
    assert free_memory(**found) == GIB


def test_version_1(tmp_path: Path) -> None:
    found = machine(tmp_path, free=8 * GIB, group="9:cpu,cpuacct:/x\n5:memory:/jobs/one\n1:name=systemd:/x\n")
    limit_group(
        found["groups"] / "memory" / "jobs" / "one", memory__limit_in_bytes=f"{3 * GIB}\n",
        memory__usage_in_bytes=f"{2 * GIB}\n", memory__stat=f"total_inactive_file {GIB}\n",
    )  # fmt: skip
    limit_group(found["groups"] / "memory", memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="5")
    assert free_memory(**found) == 2 * GIB


def test_a_group_that_is_full_leaves_nothing_rather_than_less(tmp_path: Path) -> None:
    found = machine(tmp_path, free=8 * GIB, group="0::/\n")
    limit_group(found["groups"], memory__max="100\n", memory__current="200\n")
    assert free_memory(**found) == 0


def test_the_limit_is_half_of_what_is_free_or_what_was_asked_for() -> None:
    assert 0.8 * free_memory() < 2 * memory_limit() < 1.2 * free_memory()
    assert memory_limit(1.5) == 3 * GIB // 2
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--memory-gb"):
            memory_limit(wrong)

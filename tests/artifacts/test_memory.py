"""Free memory: what the machine has, or less where a control group of version 2 or 1 says so."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from artifacts import UsageError, free_memory, memory_limit
from tests.artifacts.control_groups import GIB, limit_group, real_group, write_machine


def test_without_groups_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert free_memory(**write_machine(tmp_path, free=8 * GIB, group="0::/\n")) == 8 * GIB


def test_a_container_of_version_2_counts_less_its_dropped_pages(tmp_path: Path) -> None:
    found = write_machine(tmp_path, free=8 * GIB, group="0::/docker/abc\n")
    limit_group(
        found["groups"], memory__max=f"{2 * GIB}\n", memory__current=f"{GIB}\n",
        memory__stat=f"anon 5\ninactive_file {GIB // 2}\n",
    )  # fmt: skip
    assert free_memory(**found) == 3 * GIB // 2


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    found = write_machine(tmp_path, free=8 * GIB, group="0::/user.slice/job.scope\n")
    limit_group(found["groups"] / "user.slice", memory__max=f"{GIB}\n", memory__current="0\n")
    limit_group(found["groups"] / "user.slice" / "job.scope", memory__max="max\n", memory__current="0\n")
    assert free_memory(**found) == GIB


def test_version_1(tmp_path: Path) -> None:
    found = write_machine(tmp_path, free=8 * GIB, group="9:cpu,cpuacct:/x\n5:memory:/jobs/one\n1:name=systemd:/x\n")
    limit_group(
        found["groups"] / "memory" / "jobs" / "one", memory__limit_in_bytes=f"{3 * GIB}\n",
        memory__usage_in_bytes=f"{2 * GIB}\n", memory__stat=f"total_inactive_file {GIB}\n",
    )  # fmt: skip
    limit_group(found["groups"] / "memory", memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="5")
    assert free_memory(**found) == 2 * GIB


def test_a_group_that_is_full_leaves_nothing_rather_than_less(tmp_path: Path) -> None:
    found = write_machine(tmp_path, free=8 * GIB, group="0::/\n")
    limit_group(found["groups"], memory__max="100\n", memory__current="200\n")
    assert free_memory(**found) == 0


def test_the_limit_is_half_of_what_is_free_or_what_was_asked_for() -> None:
    assert 0.8 * free_memory() < 2 * memory_limit() < 1.2 * free_memory()
    assert memory_limit(1.5) == 3 * GIB // 2
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--memory-gb"):
            memory_limit(wrong)


def test_a_real_group_counts(tmp_path: Path) -> None:
    """In a process of its own within a group of 300 MiB, of which it fills 100."""
    script = """
        import sys
        from pathlib import Path
        from artifacts import free_memory
        before = free_memory()
        filled = b"x" * (100 << 20)
        print(before, free_memory())
    """
    with real_group("memory", memory__limit_in_bytes=f"{300 << 20}") as group:
        join = f"open({str(group / 'cgroup.procs')!r}, 'w').write(str(__import__('os').getpid()))\n"
        done = subprocess.run(
            [sys.executable, "-c", join + textwrap.dedent(script)], capture_output=True, text=True, check=False
        )
    before, after = map(int, done.stdout.split())
    assert 200 << 20 < before <= 300 << 20, done.stderr
    assert 90 << 20 < before - after < 110 << 20

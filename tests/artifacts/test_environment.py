"""The environment: how many processors a process may really use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts import allowed_processors
from tests.artifacts.control_groups import limit_group, real_group, write_machine


@pytest.fixture(autouse=True)
def eight(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return monkeypatch


def test_affinity_counts_not_the_machine(tmp_path: Path, eight: pytest.MonkeyPatch) -> None:
    machine = write_machine(tmp_path)
    assert allowed_processors(**machine) == 8
    eight.setattr(os, "sched_getaffinity", lambda _: {3})
    assert allowed_processors(**machine) == 1


@pytest.mark.parametrize(
    ("quota", "processors"), [("200000", 2), ("290000", 2), ("50000", 1), ("6400000", 8), ("max", 8), ("nonsense", 8)]
)
def test_a_quota_of_version_2_bounds_it(tmp_path: Path, quota: str, processors: int) -> None:
    machine = write_machine(tmp_path, group="0::/docker/abc\n")  # the mount's root is the container's own group
    limit_group(machine["groups"], cpu__max=f"{quota} 100000\n")
    assert allowed_processors(**machine) == processors


@pytest.mark.parametrize(("quota", "processors"), [("150000", 1), ("350000", 3), ("-1", 8)])
@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct"])
def test_a_quota_of_version_1_bounds_it(tmp_path: Path, mount: str, quota: str, processors: int) -> None:
    machine = write_machine(tmp_path, group="4:memory:/x\n3:cpu,cpuacct:/jobs/one\n")
    limit_group(
        machine["groups"] / mount / "jobs" / "one", cpu__cfs_quota_us=f"{quota}\n", cpu__cfs_period_us="100000\n"
    )
    assert allowed_processors(**machine) == processors


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    machine = write_machine(tmp_path, group="0::/system.slice/pame.service\n")
    limit_group(machine["groups"] / "system.slice", cpu__max="300000 100000\n")
    limit_group(machine["groups"] / "system.slice" / "pame.service", cpu__max="500000 100000\n")
    limit_group(machine["groups"] / "other.slice", cpu__max="100000 100000\n")
    assert allowed_processors(**machine) == 3


def test_without_groups_it_is_the_affinity(tmp_path: Path) -> None:
    assert allowed_processors(proc=tmp_path / "none", groups=tmp_path / "none") == 8


def test_a_real_group_counts(eight: pytest.MonkeyPatch) -> None:
    eight.undo()
    if allowed_processors() < 2:
        pytest.skip("one processor is allowed here, and no quota lowers that")
    with real_group("cpu", cpu__cfs_quota_us="100000") as group:
        script = f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid())); "
        script += "from artifacts import allowed_processors; print(allowed_processors())"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr

"""The environment: how many processors a process may really use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from artifacts import allowed_processors, environment


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(environment, "_cgroup_quota", lambda: None)
    return monkeypatch


def test_affinity_counts_not_the_machine(machine: pytest.MonkeyPatch) -> None:
    assert allowed_processors() == 8
    machine.setattr(os, "sched_getaffinity", lambda _: {3})
    assert allowed_processors() == 1


@pytest.mark.parametrize(("quota", "processors"), [(2.0, 2), (2.9, 2), (0.5, 1), (64.0, 8), (None, 8)])
def test_a_quota_bounds_it(machine: pytest.MonkeyPatch, quota: float | None, processors: int) -> None:
    machine.setattr(environment, "_cgroup_quota", lambda: quota)
    assert allowed_processors() == processors


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "200000 100000\n"}, 2.0),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_quotas_of_both_versions_of_control_groups(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert environment._cgroup_quota(tmp_path) == quota

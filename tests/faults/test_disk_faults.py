"""Tests of a full disk or a killed process at a write: what is there is whole, and the next run goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.sweeping import COMMANDS, FEW

ROOT = Path(__file__).parents[2]


def sweep(folder: Path, extent: str, *commands: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.sweeping", str(folder / "worlds"), extent, *commands], cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_faults_leave_the_old_or_the_new_and_the_next_run_goes_on(tmp_path: Path) -> None:
    found = sweep(tmp_path, "few")
    assert found["wrong"] == []
    assert found["tried"] == sum(map(len, FEW.values()))


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("command", COMMANDS)
def test_faults_at_every_write(tmp_path: Path, command: str) -> None:
    found = sweep(tmp_path, "all", command)
    assert found["wrong"] == []
    assert found["tried"] >= 11

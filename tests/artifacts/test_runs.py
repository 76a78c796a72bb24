"""Tests of run folders: remedies in error messages name the user's own network, folder and options."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from artifacts import COMMAND, RunFolder, find_run, new_artifact, recorded_command

STEPS = ("export", "calibration", "planner", "sweep", "bench", "report")


@pytest.mark.parametrize("step", STEPS)
def test_a_remedy_names_the_run_and_never_another_network(tmp_path: Path, step: str) -> None:
    run = RunFolder(root=tmp_path / "my runs" / "mine")
    words = shlex.split(run.remedy(step))
    assert words[words.index("--run") + 1] == str(run.root)
    assert "resnet" not in words


def test_a_remedy_is_the_command_that_the_artifact_recorded(tmp_path: Path) -> None:
    run = RunFolder(root=tmp_path / "mine")
    command = f"python -m planner --run {run.root} --data images --tolerance 0.05"
    with new_artifact(run.plan, kind="plan", notes={COMMAND: command}):
        pass
    assert recorded_command(run.plan) == run.remedy("planner") == command
    assert run.remedy("calibration") == f"python -m calibration --run {run.root}"


def test_a_damaged_record_is_not_quoted(tmp_path: Path) -> None:
    run = RunFolder(root=tmp_path / "mine")
    with new_artifact(run.plan, kind="plan", notes={COMMAND: "python -m planner --tolerance 0.05"}):
        pass
    path = run.plan / "manifest.json"
    path.write_text(path.read_text().replace("0.05", "0.50"))
    assert recorded_command(run.plan) is None
    assert run.remedy("planner") == f"python -m planner --run {run.root}"


def test_what_a_killed_process_moved_aside_is_back_before_a_command_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunFolder(root=Path("runs/mine"))
    for folder, kind in ((run.model, "model"), (run.trace, "trace"), (run.training / "result", "training")):
        with new_artifact(folder, kind=kind):
            pass
        folder.rename(folder.with_name(f".{folder.name}.old-01234567"))
    assert find_run(None) == run, "by the model that was moved aside"
    for folder in (run.model, run.trace, run.training / "result"):
        assert (folder / "manifest.json").is_file()

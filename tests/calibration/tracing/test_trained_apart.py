"""Tests that heads are never calibrated on samples that they were trained on, when other parts are named afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from calibration.cli import main as calibrate
from export.cli import main as export
from tests.planner.source_worlds import write_dense_file, write_right_data

pytestmark = pytest.mark.slow


def test_other_parts_than_those_of_the_training_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = write_dense_file(tmp_path)
    run, data = str(tmp_path / "run"), str(write_right_data(network, tmp_path / "data.npz"))
    assert export([str(network), "--segments", "--run", run]) == 0
    words = ["--run", run, "--data", data, "--threads", "1"]
    assert calibrate([*words, "--train", "frozen", "--epochs", "1", "--head-share", "1"]) == 0
    capsys.readouterr()
    assert calibrate([*words, "--parts", "calibrate=train:0.35"]) == 2
    said = capsys.readouterr().err
    assert "was trained on another train part" in said
    assert "Name the --parts of the training again" in said
    assert calibrate(words) == 0

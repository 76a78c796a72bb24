"""Tests of ``python -m planner portable``: a planned run becomes one file that answers as its bundle does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from artifacts import RunFolder, UsageError
from planner.commands.main import main
from tests.planner.dense_worlds import plan

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("heavy_end")]


@pytest.fixture
def planned(run: RunFolder, tmp_path: Path) -> RunFolder:
    assert plan(run, tmp_path, "--tolerance", "0.9")[0] == 0
    return run


def test_a_plan_becomes_one_file(planned: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import onnx

    from calibration import as_batch, load_run_data
    from engines import GraphRunner
    from runtime import Runtime

    output = tmp_path / "out" / "net.onnx"
    output.parent.mkdir()
    capsys.readouterr()
    assert (
        main(["portable", "--run", str(planned.root), "--output", str(output), "--samples", "40", "--json", "-"]) == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["form"] in ("If", "no rows")
    assert said["rows"] == 40
    assert set(said["batch_ms"]) >= {"runtime", said["form"]}
    samples = load_run_data(planned)
    batch = samples.inputs(samples.indices_of("test")[:8])
    with Runtime.load(planned.bundle) as runtime, GraphRunner(output, threads=1) as runner:
        wanted, found = runtime.run(as_batch(batch)), runner.run(batch)
    np.testing.assert_array_equal(found["exit_index"], wanted.exit_index)
    np.testing.assert_allclose(next(iter(found.values())), wanted.outputs, rtol=1e-4, atol=1e-5)
    told = {entry.key: entry.value for entry in onnx.load(output).metadata_props}
    assert json.loads(told["pame.exit_plan"])["tolerance"] == 0.9
    assert [path.name for path in output.parent.iterdir()] == ["net.onnx"]


def test_a_wrong_name_is_refused_before_any_work(planned: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["portable", "--run", str(planned.root), "--output", str(planned.root / "net.txt")]
    assert main(arguments) == UsageError.exit_code
    assert "expected the name of an .onnx file" in capsys.readouterr().err


def test_a_run_without_a_plan_names_the_command(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(run.root / "data.npz")
    assert main(["portable", "--run", str(run.root), "--data", data, "--output", str(tmp_path / "net.onnx")]) == 1
    assert "python -m planner" in capsys.readouterr().err

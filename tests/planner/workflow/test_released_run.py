"""A run of release 0.1.0: it opens, is reported, and is planned again with the same exits."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import TRACE_NPZ, RunFolder, Trace, open_artifact, open_model, read_manifest, recorded_command
from planner.commands.main import main
from planner.report.gathering import gather_report
from planner.workflow.inputs import read_inputs
from planner.workflow.record import open_plan, read_result
from tests.planner.report.pages import FIGURES

RELEASED = Path(__file__).parents[2] / "fixtures" / "run_0.1.0"
FLAGS = (
    "--batch-size", "4", "--threads", "1", "--rounds", "3", "--contenders", "2", "--tail-share", "0",
    "--stay-allowance", "9", "--tolerance", "0.1", "--delta", "0.2",
)  # fmt: skip
WRITTEN = [
    "--tolerance", "0.1", "--batch-size", "4", "--threads", "1", "--delta", "0.2", "--tail-share", "0.0",
    "--stay-allowance", "9.0", "--rounds", "3", "--contenders", "2",
]  # fmt: skip
PLANNED: dict[str, Any] = json.loads((RELEASED / "planned.json").read_text())


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    shutil.copytree(RELEASED, tmp_path / "run")
    return RunFolder(root=tmp_path / "run")


def plan(run: RunFolder, tmp_path: Path) -> dict[str, Any]:
    target = tmp_path / "planned.json"
    data = str(run.root / "data.npz")
    assert main(["--run", str(run.root), "--data", data, "--json", str(target), *FLAGS]) == 0
    result: dict[str, Any] = json.loads(target.read_text())
    return result


def check_like_plan(found: dict[str, Any]) -> None:
    """The exits of the release, at thresholds as near as another order of the tests leaves them, and certified."""
    for name in ("search", "tolerance", "delta", "batch_size", "full_metric", "risk"):
        assert found[name] == PLANNED["plan"][name], name
    mine, released = found["exits"], PLANNED["plan"]["exits"]
    assert [exit_["cut"] for exit_ in mine] == [exit_["cut"] for exit_ in released]
    for name in ("threshold", "leaving_share", "metric"):
        assert [exit_[name] for exit_ in mine] == pytest.approx([exit_[name] for exit_ in released], abs=0.02), name
    certificate, expected = found["certificate"], PLANNED["plan"]["certificate"]
    assert certificate.keys() == expected.keys()
    assert all(certificate[name] == expected[name] for name in ("risk", "bound", "delta"))
    assert certificate["p_value"] <= certificate["delta"]


def test_it_opens(run: RunFolder) -> None:
    inputs = read_inputs(run, risk="metric")
    assert inputs.require_model().digest == open_model(run.model, remedy="").digest
    assert inputs.trace.exits == ("h0", "h1", "h2")
    assert inputs.itm.batch_sizes == (1, 2, 4)
    result = read_result(open_plan(run), reused=True, bundle=run.bundle)
    assert result.plan_digest == PLANNED["plan_digest"]
    assert [list(considered.exits) for considered in result.considered] == [
        considered["exits"] for considered in PLANNED["considered"]
    ]
    assert result.certification == PLANNED["certification"]
    open_artifact(run.bundle, kind="bundle", remedy="")


def test_its_report_is_written_with_its_benchmark(run: RunFolder) -> None:
    pytest.importorskip("matplotlib", reason="draws figures: pip install 'pame[report]'")
    data = gather_report(run)
    assert data.bench is not None
    assert data.plan.exits[0].cut == "h2"
    assert main(["report", "--run", str(run.root)]) == 0
    page = (run.root / "report.html").read_text()
    assert "Queries may leave at 1 place before the end: h2." in page
    assert {path.stem for path in (run.root / "report_figures").glob("*.png")} == set(FIGURES)


@pytest.mark.slow
@pytest.mark.usefixtures("heavy_end")
def test_it_is_planned_again_with_the_same_exits(run: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="builds engines: pip install 'pame[export]'")
    shutil.rmtree(run.plan)
    found = plan(run, tmp_path)
    assert found["reused"] is False
    check_like_plan(found["plan"])
    command = run.remedy("planner")
    assert shlex.split(command)[3:] == ["--run", str(run.root), "--data", str(run.root / "data.npz"), *WRITTEN]
    assert recorded_command(run.bundle) == command


@pytest.mark.slow
def test_a_plain_planning_takes_its_trace_as_it_is(run: RunFolder, tmp_path: Path) -> None:
    """The data is the same, though it no longer lies where it was when the trace was collected."""
    pytest.importorskip("onnxruntime", reason="builds engines: pip install 'pame[export]'")
    assert read_manifest(run.trace).parameters["data_source"] != str(run.root / "data.npz")
    before = Trace.load(run.trace / TRACE_NPZ)
    found = plan(run, tmp_path)
    after = Trace.load(run.trace / TRACE_NPZ)
    for name in ("confidence", "metric", "agreement", "predictions", "labels"):
        assert np.array_equal(getattr(after, name), getattr(before, name)), name
    assert found["plan"]["trace_digest"] == read_manifest(run.trace).digest
    assert found["plan"]["full_metric"] == PLANNED["plan"]["full_metric"]

"""Recalibrating: from the rows that a host has logged to a newly certified bundle, which a host then takes over."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import calibration.cli
import planner.workflow.recalibrating
from artifacts import BUNDLE_JSON, MANIFEST, BundleSpec, RunFolder, read_json, read_manifest
from planner.commands.main import main
from runtime import AsyncRuntime, Runtime
from tests.planner.dense_worlds import CERTIFIED, QUICK

pytestmark = pytest.mark.slow
AGREEMENT = ("--risk", "agreement", "--tolerance", "0.9")


@pytest.fixture
def planned(run: RunFolder, heavy_end: None, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run with a bundle that has exits; its last segment takes nearly all of the time, when it is read again too."""
    read = planner.workflow.recalibrating.read_inputs

    def timed(*args: Any, **options: Any) -> Any:
        inputs = read(*args, **options)
        rows = {
            name: (1.0 if name in ("segment_03", "full") else 0.01,) * len(row)
            for name, row in inputs.itm.median_ms.items()
        }
        return replace(inputs, itm=replace(inputs.itm, median_ms=rows))

    monkeypatch.setattr(planner.workflow.recalibrating, "read_inputs", timed)
    assert calibration.cli.main(["--run", str(run.root), "--data", str(run.root / "data.npz"), "--threads", "1"]) == 0
    assert main(["--run", str(run.root), *QUICK, *AGREEMENT, *CERTIFIED]) == 0
    return run


def serve_stream(run: RunFolder, log: Path, *, rows: int = 600, inputs: bool = True) -> np.ndarray:
    """Serves a stream of noise, all of which is seen at every exit."""
    batch = np.random.default_rng(5).random((rows, 1, 8, 8), np.float32)
    with Runtime.load(run.bundle, shadow_fraction=1.0, shadow_log=log, log_inputs=inputs) as host:
        host.run(batch)
    return batch


def command(run: RunFolder, log: Path, target: Path, *words: str) -> tuple[int, dict[str, Any]]:
    target.unlink(missing_ok=True)
    code = main(["recalibrate", "--run", str(run.root), "--log", str(log), "--json", str(target), *words])
    return code, json.loads(target.read_text()) if target.exists() else {}


def test_a_log_makes_a_bundle_that_a_host_takes_over(planned: RunFolder, tmp_path: Path) -> None:
    before = read_json(planned.bundle / BUNDLE_JSON, BundleSpec).plan
    batch = serve_stream(planned, tmp_path / "log")
    code, found = command(planned, tmp_path / "log", tmp_path / "out.json", "--tolerance", "0.8")
    assert code == 0
    plan = found["plan"]
    assert (plan["risk"], plan["tolerance"], plan["certificate"]["risk"]) == ("agreement", 0.8, "agreement")
    assert plan["certificate"]["samples"] + plan["certificate"]["tuning_samples"] == 600
    assert plan["exits"]
    assert {exit_["cut"] for exit_ in plan["exits"]} <= {exit_.cut for exit_ in before.exits}
    assert plan["reference"]["samples"] == 600
    assert read_manifest(planned.bundle).parameters["data"]["images"], "the data of the heads is still known"
    assert plan["trace_digest"] == read_manifest(planned.root / "recalibration").digest != before.trace_digest

    with Runtime.load(planned.bundle) as runtime:
        expected = runtime.run(batch[:50])
    left = np.bincount(expected.exit_index, minlength=len(plan["exits"]) + 1)
    shares = [sum(counts) / 600 for counts in plan["reference"]["confidence_counts"]]
    assert np.abs(left / 50 - shares).max() < 0.25, "the stream leaves as its reference says"

    async def take_over() -> np.ndarray:
        async with AsyncRuntime.load(planned.bundle, max_waiting_rows=100) as host:
            await host.reload(planned.bundle)
            return (await host.infer(batch[:50])).exit_index

    assert asyncio.run(take_over()).tolist() == expected.exit_index.tolist()


def test_a_log_without_inputs_is_measured_on_the_runs_own_data(
    planned: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_stream(planned, tmp_path / "log", inputs=False)
    code, found = command(planned, tmp_path / "log", tmp_path / "out.json")
    assert code == 0
    assert found["plan"]["tolerance"] == 0.9, "that of the run's plan"
    assert "the log holds no inputs" in capsys.readouterr().err


def test_a_log_that_holds_nothing_of_the_run_is_named(
    planned: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_manifest(planned.bundle).digest
    assert command(planned, tmp_path / "nowhere", tmp_path / "out.json")[0] == 1
    assert "there are no rows in it" in capsys.readouterr().err
    serve_stream(planned, tmp_path / "log", rows=1)
    assert command(planned, tmp_path / "log", tmp_path / "out.json")[0] == 1
    assert command(planned, tmp_path / "log", tmp_path / "out.json", "--tolerance", "2")[0] == 2
    assert (planned.bundle / MANIFEST).is_file()
    assert read_manifest(planned.bundle).digest == before, "the old bundle stands"

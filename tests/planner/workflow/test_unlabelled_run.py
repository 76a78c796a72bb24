"""A log of queries without labels, from ``--data`` to the bundle and to every report of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import calibration.cli
import runtime.bench.command
from artifacts import BUNDLE_JSON, BundleSpec, Manifest, RunFolder, read_json
from planner import PlanConfig, risk_trace
from planner.commands.main import main
from planner.report.commands import RunRecord, reproduce_run
from runtime import Runtime
from tests.planner.dense_worlds import CERTIFIED, QUICK
from tests.planner.report.pages import FIGURES
from tests.planner.report_worlds import make_bench, make_report

pytestmark = pytest.mark.slow
AGREEMENT = ("--risk", "agreement", "--tolerance", "0.9")


@pytest.fixture
def queries(run: RunFolder) -> Path:
    with np.load(run.root / "data.npz") as known:
        np.savez(run.root / "queries.npz", images=known["images"])
    return run.root / "queries.npz"


def command(run: RunFolder, target: Path, *words: str, entry: Any = main) -> tuple[int, dict[str, Any]]:
    target.unlink(missing_ok=True)
    head, rest = ([words[0]], words[1:]) if words and not words[0].startswith("-") else ([], words)
    code = entry([*head, "--run", str(run.root), "--json", str(target), *rest])
    return code, json.loads(target.read_text()) if target.exists() else {}


def read_page(path: Path) -> str:
    return re.sub(r"<style>.*?</style>|<[^>]*>", " ", path.read_text(), flags=re.DOTALL)


@pytest.mark.usefixtures("heavy_end")
def test_a_log_of_queries_calibrates_a_plan(
    run: RunFolder, queries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    code, traced = command(run, out, "--data", str(queries), "--threads", "1", entry=calibration.cli.main)
    assert (code, traced["labelled"], traced["samples"]) == (0, False, 240)
    assert "does not say how pixels were normalised in training" in capsys.readouterr().err

    code, found = command(run, out, *QUICK, *AGREEMENT, *CERTIFIED)
    said = capsys.readouterr()
    assert code == 0
    plan = found["plan"]
    assert plan["exits"]
    assert (plan["risk"], plan["full_metric"], plan["certificate"]["risk"]) == ("agreement", 1, "agreement")
    assert plan["certificate"]["samples"] + plan["certificate"]["tuning_samples"] == 240
    assert plan["predicted_metric"] == pytest.approx(sum(plan["reference"]["agreements"]) / 240)
    assert "agreement there" in said.out
    assert f"agreement {plan['predicted_metric']:.4f} of 1.0000" in said.out
    assert "certificate: disagreement with the final head at most 0.9" in said.out
    assert "precision" not in said.out
    assert not re.search(r"\bmetric\b", said.out)
    _the_bundle_watches_the_stream_against_the_log(run)
    _everything_told_of_the_plan_is_its_agreement(run, out, capsys)


def _the_bundle_watches_the_stream_against_the_log(run: RunFolder) -> None:
    spec = read_json(run.bundle / BUNDLE_JSON, BundleSpec)
    assert spec.plan.reference is not None
    assert spec.plan.reference.samples == 240
    with Runtime.load(run.bundle, shadow_fraction=0.5, shadow_seed=0) as host:
        host.run(np.random.default_rng(0).random((64, 1, 8, 8), np.float32))
        stats = host.stats()
    assert stats.drift is not None
    assert stats.queries == 64


def _everything_told_of_the_plan_is_its_agreement(run: RunFolder, out: Path, capsys: Any) -> None:
    short = ("--batch-size", "4", "--threads", "1")
    code, swept = command(run, out, *QUICK, *AGREEMENT, "--sweep", "0,0.5")
    assert (code, swept["risk"], swept["full_metric"]) == (0, "agreement", 1)
    assert "metric: the agreement with the full network" in capsys.readouterr().err
    code, valid = command(run, out, "validate", "--risk", "agreement", "--batch-size", "4", "--resplits", "2")
    assert (code, valid["risk"]) == (0, "agreement")
    assert "agreement kept" in capsys.readouterr().out
    bench = run.root / "bench.json"
    code, measured = command(run, bench, "--rounds", "1", entry=runtime.bench.command.main)
    assert (code, measured["samples"], measured["test_data"], measured["risk"]) == (0, 60, "held out", "agreement")
    assert measured["full"]["metric"] is measured["metric_ratio"] is None
    assert 0 < measured["agreement"] <= 1
    code, _ = command(run, out, "report")
    assert code == 0
    page = read_page(run.root / "report.html")
    assert f"{measured['agreement']:.2%} of the queries get the full network&#x27;s answer" in page
    assert "accuracy" not in page
    for words in (("--sweep", *short), ("validate",), short, ("--risk", "f1", *short)):
        assert command(run, out, *words)[0] == 2
        assert "has no labels" in (said := capsys.readouterr().err)
        assert "--risk agreement" in said


def test_another_risk_is_refused_before_any_work(
    run: RunFolder, queries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in run.root.iterdir())
    for words in ((), ("--risk", "matthews"), ("--sweep",), ("--certify", "none")):
        assert command(run, tmp_path / "out.json", "--data", str(queries), *QUICK, *words)[0] == 2
        assert "queries.npz has no labels" in (said := capsys.readouterr().err)
        assert "--risk agreement" in said
    assert sorted(path.name for path in run.root.iterdir()) == before


@pytest.mark.usefixtures("heavy_end")
def test_agreement_on_labelled_data_is_told_as_agreement(run: RunFolder, tmp_path: Path) -> None:
    """The labels are there, but the plan was not made by them: no accuracy is mentioned, as none was bounded."""
    words = ("--data", str(run.root / "data.npz"), *QUICK, *AGREEMENT)
    code, found = command(run, tmp_path / "out.json", *words)
    assert (code, found["plan"]["risk"]) == (0, "agreement")
    assert command(run, tmp_path / "out.json", "report")[0] == 0
    page = read_page(run.root / "report.html")
    assert f"Of the calibration queries {found['plan']['predicted_metric']:.2%} get the full" in page
    assert "accuracy" not in page


def test_a_report_tells_the_accuracy_where_labelled_data_was_measured() -> None:
    from planner.report.page import render_report

    pictures = dict.fromkeys(FIGURES, b"")
    data = make_report()
    blind = replace(data, plan=replace(data.plan, risk="agreement"), trace=risk_trace(data.trace, "agreement"))
    page = render_report(replace(blind, bench=make_bench()), pictures)
    assert "99.00% of the full network&#x27;s accuracy is kept" in page
    assert "whose answer may differ from the full network" in page
    assert "whose answer may differ" not in render_report(data, pictures)


def test_the_commands_say_that_training_took_labels(run: RunFolder) -> None:
    parameters = {"data_source": "/log/queries.npz", "labelled": False}
    trained = Manifest(kind="training", schema_version=1, files=(), inputs={}, environment={},
                       parameters={"mode": "frozen", "epochs": 3})  # fmt: skip
    record = RunRecord(
        run=run.root, spec=make_report().spec, model=replace(trained, parameters={}),
        trace=replace(trained, parameters=parameters), training=trained, config=PlanConfig(),
    )  # fmt: skip
    lines = reproduce_run(record)
    assert lines[1].startswith("# first, with the labelled data that the exits were trained on: python -m calibration")
    assert lines[1].endswith("--train frozen --epochs 3 --data LABELLED")
    assert lines[2] == f"python -m calibration --run {run.root} --data /log/queries.npz"

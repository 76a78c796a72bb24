"""Batch forms: a plan for whole batches becomes one graph where that is faster, and answers as its stages do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from artifacts import BUNDLE_JSON, BundleSpec, RunFolder, read_json
from tests.planner.dense_worlds import plan

ASKED = ("--tolerance", "0.05", "--objective", "batch", "--max-exits", "1")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("heavy_end")]


@pytest.fixture
def measured_ms(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the forms are measured at; to be set by the test."""
    times: dict[str, float] = {}

    def measure(serves: list, *_: object, **__: object) -> tuple[np.ndarray, int]:
        for serve, stay in serves:  # so that every form really runs
            batch = {"x": np.ones((4, 1, 8, 8), np.float32)}
            assert len(serve(batch)) == len(stay(batch)) == 4
        whole = np.array([times[form] for form in ("stages", "If", "no rows")])
        return np.column_stack([whole, whole, whole, np.ones(3)]), 1

    monkeypatch.setattr("planner.commit.batch_forms.measure_plans", measure)
    return times


@pytest.mark.parametrize(
    ("times", "form"),
    [
        ({"stages": 2.0, "If": 3.0, "no rows": 1.0}, "no rows"),
        ({"stages": 2.0, "If": 1.0, "no rows": 3.0}, "If"),
        ({"stages": 2.0, "If": 3.0, "no rows": 1.99}, "stages"),
    ],
)
def test_the_faster_form_is_committed(
    times: dict[str, float], form: str, measured_ms: dict[str, float], run: RunFolder, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from calibration import as_batch, load_run_data
    from engines.cache.bundled import rebuild_bundle
    from runtime import Runtime, RuntimeOptions, open_bundle
    from runtime.bench.command import main as bench

    measured_ms.update(times)
    code, said = plan(run, tmp_path, *ASKED)
    assert code == 0
    assert said["plan"]["batch_form"] == {"form": form, "batch_ms": times}
    in_stages = said["considered"][0]["measured_batch_ms"] * times["stages"] / times[form]
    assert in_stages == pytest.approx(round(in_stages), abs=1e-9)  # beside the other plans it took 1, 2, 3 ... ms
    assert in_stages >= 1
    words = "stage by stage" if form == "stages" else f"as one graph ({form})"
    assert f"batches run {words}" in capsys.readouterr().out
    spec = read_json(run.bundle / BUNDLE_JSON, BundleSpec)
    assert spec.plan.exits
    assert (spec.one_graph is not None) == (form != "stages")
    samples = load_run_data(run)
    batch = as_batch(samples.inputs(samples.indices_of("test")[:30]))
    opened = open_bundle(run.bundle, stages_only=True)
    with Runtime(spec, opened.engine_sets, opened.device, RuntimeOptions(drift=None)) as stages:
        assert not stages.chain_captured
        wanted = stages.run(batch)
    assert sorted(set(wanted.exit_index.tolist())) == [0, 1]
    for rebuilt in (False, True):
        if rebuilt:
            assert len(rebuild_bundle(run.bundle)) == len(spec.stages) + (form != "stages")
        with Runtime.load(run.bundle) as runtime:
            assert runtime.chain_captured == (form != "stages")
            for count in (1, 3, 4, 5, 30):
                found = runtime.run(batch[:count])
                np.testing.assert_array_equal(found.exit_index, wanted.exit_index[:count])
                np.testing.assert_allclose(found.outputs, wanted.outputs[:count], rtol=1e-4, atol=1e-5)
    target = tmp_path / "bench.json"
    assert bench(["--run", str(run.root), "--samples", "24", "--rounds", "1", "--json", str(target)]) == 0
    assert json.loads(target.read_text())["batch_form"] == form


def test_other_objectives_keep_their_stages(measured_ms: dict[str, float], run: RunFolder, tmp_path: Path) -> None:
    code, said = plan(run, tmp_path, "--tolerance", "0.9")
    assert code == 0
    assert "batch_form" not in said["plan"]


def test_a_form_that_answers_otherwise_is_left_out(
    measured_ms: dict[str, float], run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from artifacts import GraphError

    def differ(*_: object) -> None:
        raise GraphError("one graph answers otherwise")

    monkeypatch.setattr("planner.commit.one_graph.Likeness.compare", differ)
    code, said = plan(run, tmp_path, *ASKED)
    assert code == 0
    assert "batch_form" not in said["plan"]
    assert read_json(run.bundle / BUNDLE_JSON, BundleSpec).one_graph is None
    assert capsys.readouterr().err.count("left out: one graph answers otherwise") == 2

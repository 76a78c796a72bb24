"""A learned confidence from the trace to the bundle, through the real engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from artifacts import BUNDLE_JSON, TRACE_NPZ, BundleSpec, RunFolder, Trace, open_artifact, read_json
from calibration import load_run_data
from calibration.cli import compare_runs
from runtime import Runtime
from tests.planner.dense_worlds import plan

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("heavy_end")
def test_a_bundle_computes_the_confidence_that_was_learned(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found = plan(run, tmp_path, "--tolerance", "0.1", "--confidence", "learned")
    assert code == 0
    shipped = read_json(run.bundle / BUNDLE_JSON, BundleSpec).plan
    assert shipped.exits
    assert set(shipped.confidences) == {exit_.cut for exit_ in shipped.exits}
    trace = Trace.load(run.trace / TRACE_NPZ)
    assert trace.features is not None
    expected = trace.with_confidences(shipped.confidences)
    rows = [trace.exits.index(exit_.cut) for exit_ in shipped.exits]
    samples = load_run_data(run)
    with Runtime.load(run.bundle) as runtime:
        answered = runtime.run(samples.inputs(samples.indices_of("calibrate"))["x"])
    places = np.append(rows, len(trace.exits))[answered.exit_index]
    np.testing.assert_allclose(
        answered.confidence, expected.confidence[places, np.arange(trace.sample_count)], atol=1e-5
    )  # fmt: skip
    assert len(set(answered.exit_index.tolist())) > 1, "rows leave early, and some do not"
    shares = np.bincount(answered.exit_index, minlength=len(rows) + 1)[: len(rows)] / trace.sample_count
    np.testing.assert_allclose(shares, [exit_.leaving_share for exit_ in shipped.exits], atol=2 / trace.sample_count)
    assert sum(map(sum, shipped.reference.confidence_counts)) == trace.sample_count  # type: ignore[union-attr]
    seen: list[Trace] = []
    monkeypatch.setattr("calibration.cli.count_flips", lambda *traces: seen.extend(traces[:2]))
    compare_runs(run.root, open_artifact(run.trace, kind="trace", remedy=""), trace)
    for compared in seen:
        np.testing.assert_array_equal(compared.confidence, expected.confidence)
    assert len(seen) == 2
    code, again = plan(run, tmp_path, "--tolerance", "0.1", "--confidence", "learned")
    assert (code, again["reused"]) == (0, True)
    code, other = plan(run, tmp_path, "--tolerance", "0.1", "--confidence", "max-softmax")
    assert (code, other["plan"]["confidences"]) == (0, {})
    assert found["plan"]["confidences"]

"""From a trace to a benchmark with rows of several lengths, through the product's own steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from artifacts import GraphError, RunFolder
from calibration import EngineChoice, SegmentRunner
from calibration.tracing.row_check import check_padding
from planner import CertifyConfig, MeasureConfig, PlanConfig, TimingConfig, ensure_plan
from planner.workflow.inputs import read_inputs
from runtime import Runtime
from runtime.bench.figures import describe_lengths, replay_mean_ms
from runtime.bench.measuring import BenchConfig, measure_bundle
from tests.export.sequence_graphs import LENGTHS, SequenceSamples
from tests.runtime.sequence_worlds import answer_alone, make_sequence_run

ENGINE = EngineChoice(backend="onnxruntime", threads=1)
CONFIG = PlanConfig(
    tolerance=0.99, batch_size=4, certify=CertifyConfig(method="none"),
    timing=TimingConfig(batch_sizes=(1, 4), rounds=3, warm_up=1),
    measure=MeasureConfig(contenders=1, rounds=1, queries=64),
)  # fmt: skip


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, SequenceSamples, Any]:
    folder = tmp_path_factory.mktemp("planned")
    made = make_sequence_run(folder)
    samples = SequenceSamples(folder / "encoder.onnx", count=240)
    return made.run, samples, ensure_plan(made.run, CONFIG, lambda _: None, data=samples)


def test_trace_times_plan_and_bundle_know_the_lengths(planned: Any) -> None:
    run, samples, result = planned
    inputs = read_inputs(run)
    calibrate = samples.indices_of("calibrate")
    expected = samples.inputs(calibrate)["attention_mask"].sum(axis=1)
    np.testing.assert_array_equal(inputs.trace.lengths, expected)
    assert inputs.itm.lengths == LENGTHS
    assert set(inputs.itm.at_length(4).median_ms) == set(inputs.itm.median_ms)
    assert inputs.costs(batch_size=4).lengths is not None
    assert result is not None
    with Runtime.load(run.bundle) as runtime:
        spec = runtime.spec
        assert spec.lengths == LENGTHS
        thresholds = {exit_.cut: exit_.threshold for exit_ in spec.plan.exits}
        rows = samples.inputs(samples.indices_of("test")[:24])
        found = runtime.run(rows)
    limits = tuple(thresholds.get(cut, 2.0) for cut in ("hidden0", "hidden1"))
    names = [exit_.cut for exit_ in spec.plan.exits]
    if set(names) <= {"hidden0", "hidden1"}:
        alone = [answer for _, answer in answer_alone(inputs.require_model(), rows, limits)]
        np.testing.assert_allclose(found.outputs, alone, rtol=1e-4, atol=1e-5)


def test_the_benchmark_reports_the_lengths_of_its_queries(planned: Any) -> None:
    run, samples, _ = planned
    result = measure_bundle(run, run.bundle, BenchConfig(rounds=1), data=samples)
    rows = result["lengths"]
    assert [row["length"] for row in rows] == list(LENGTHS)
    assert sum(row["query_share"] for row in rows) == pytest.approx(1)
    assert sum(row["batches"] for row in rows) == 20
    mask = samples.inputs(samples.indices_of("test"))["attention_mask"]
    assert rows[0]["query_share"] == pytest.approx((mask.sum(axis=1) <= 4).mean())
    assert result["full"]["metric"] == 1.0
    for row in rows:
        assert (row["full_batch_ms"] is None) == (row["batches"] == 0)


def test_figures_by_length_and_the_replay() -> None:
    batch_lengths, row_lengths = np.array([4, 16, 16]), np.array([1, 4, 2, 16, 9, 8])
    full, early = np.array([[1.0, 4.0, 6.0]]), np.array([[0.5, 2.0, 3.0]])
    rows = describe_lengths((4, 8, 16), row_lengths, batch_lengths, full, early)
    assert [row["query_share"] for row in rows] == pytest.approx([3 / 6, 1 / 6, 2 / 6])
    assert [row["batches"] for row in rows] == [1, 0, 2]
    assert [row["ratio"] for row in rows] == [0.5, None, 0.5]
    costs = [np.array([[0, 1, 2], [0, 2, 3], [0, 4, 6]]), np.array([[0, 1, 2], [0, 2, 3], [0, 8, 9]])]
    found = replay_mean_ms(np.array([0, 1, 0, 0, 1, 1]), costs, 2, np.array([0, 2, 2]))
    assert found == pytest.approx((2 * 2 + 1 + 2 * 6 + 0 + 2 * 6 + 2 * 9) / 6)


class PaddedHead:
    """A runner one of whose exits counts the columns of its rows."""

    def run(self, inputs: dict[str, np.ndarray], *, longest: bool = False) -> int:
        mask = inputs["attention_mask"]
        self.columns = LENGTHS[-1] if longest else next(n for n in LENGTHS if mask.sum(axis=1).max() <= n)
        return len(mask)

    def answers(self, count: int) -> list[tuple[tuple[np.ndarray, ...], np.ndarray]]:
        same = ((np.ones((count, 3), np.float32),), np.full(count, 0.5, np.float32))
        return [same, ((np.full((count, 3), self.columns, np.float32),), same[1]), same, same]


def test_a_head_that_reads_padding_is_refused_before_a_trace_is_made(planned: Any) -> None:
    run, samples, _ = planned
    model = read_inputs(run).require_model()
    assert [cut.name for cut in model.spec.candidates][1] == "hidden0"
    calibrate = samples.indices_of("calibrate")
    with SegmentRunner(model, run.engines, ENGINE, rows=16, with_heads=True) as runner:
        check_padding(model, runner, samples, calibrate, rows=16)
    with pytest.raises(GraphError, match="the exit 'hidden0' reads the padding .* at length 4 .* padded to 16"):
        check_padding(model, PaddedHead(), samples, calibrate, rows=16)  # type: ignore[arg-type]

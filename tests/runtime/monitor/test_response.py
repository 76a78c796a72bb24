"""The answer to drift: nothing leaves until rows were seen, then rows leave by thresholds that keep the tolerance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import InputError, SchemaError, StreamReference, UsageError
from runtime import DriftConfig, Runtime, RuntimeOptions, read_shadow_log
from runtime.monitor.response import DriftResponse
from tests.runtime.drift_worlds import draw_reference, make_plan

PLAN = make_plan(draw_reference(np.random.default_rng(0), 4000), tolerance=0.05)
QUICK = DriftConfig(false_alarm_rate=0.05, margin=0.02)


def see(response: DriftResponse, rows: int, *, agreement: float = 1.0, rule: Any = None) -> bool:
    confidence = np.full((3, rows), 0.9, np.float32)
    agreements = np.full((3, rows), agreement, np.float32)
    agreements[-1] = 1
    return response.see(confidence, agreements, rule=rule or response.rule)


def test_an_alarm_alone_changes_nothing() -> None:
    response = DriftResponse(PLAN, "alarm", shadow_fraction=0.1)
    before = response.rule
    assert not response.raise_alarm()
    assert response.rule == before
    assert response.plan is PLAN
    assert response.state.alarms == 1


def test_tighten_observes_then_lets_rows_leave_again() -> None:
    response = DriftResponse(PLAN, "tighten", shadow_fraction=0.1)
    planned = response.rule
    assert response.raise_alarm()
    assert response.state.mode == "observing"
    assert not response.rule.lets_leave
    assert response.rule.seen_share == 1
    assert response.plan is None
    assert not see(response, 500, rule=planned), "rows that came before the alarm do not count"
    assert not see(response, 399)
    assert response.state.seen_rows == 399
    assert see(response, 5)
    state = response.state
    assert state.mode == "tightened"
    assert state.thresholds == planned.thresholds, "on this stream the planned ones do"
    assert state.delta == pytest.approx(0.05 / 2)
    assert response.rule.number == 2
    assert response.plan is not None
    assert response.plan.reference is not None
    assert response.plan.reference.samples == 400
    assert response.plan.certificate is not None
    assert response.plan.certificate.bound == PLAN.tolerance


def test_where_no_thresholds_do_nothing_leaves_and_the_way_back_is_found() -> None:
    response = DriftResponse(PLAN, "tighten", shadow_fraction=0.0)
    response.raise_alarm()
    assert see(response, 400, agreement=0.5)
    assert response.state.mode == "tightened", "at thresholds above all confidences"
    assert all(limit is not None and limit > 0.9 for limit in response.state.thresholds)
    response.raise_alarm()
    sure = np.ones((3, 400), np.float32)
    wrong = np.zeros((3, 400), np.float32)
    wrong[-1] = 1
    assert response.see(sure, wrong, rule=response.rule)
    assert response.state.mode == "full"
    assert response.state.thresholds == (None, None)
    assert response.rule.seen_share == pytest.approx(0.1)
    assert see(response, 400), "the stream is as it was"
    assert response.state.mode == "tightened"
    assert response.state.delta == pytest.approx(0.05 / (3 * 4))


def test_full_stays_full_until_somebody_plans_anew() -> None:
    response = DriftResponse(PLAN, "full", shadow_fraction=0.02)
    response.raise_alarm()
    assert not see(response, 10_000)
    assert response.state.mode == "full"
    assert response.rule.thresholds == (math.inf, math.inf)


def test_a_tolerance_of_0_cannot_be_tested() -> None:
    response = DriftResponse(make_plan(PLAN.reference, tolerance=0.0), "tighten", shadow_fraction=0.1)
    response.raise_alarm()
    assert response.state.mode == "full"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_drift": "tihgten"}, "tighten"),
        ({"on_drift": "full", "drift": None}, "switched off"),
        ({"on_drift": "tighten", "stats": False}, "switched off"),
        ({"shadow_log": Path("log")}, "shadow_fraction"),
        ({"log_inputs": True, "shadow_fraction": 0.1}, "shadow_log"),
        ({"log_mb": 0, "shadow_fraction": 0.1}, "log_mb"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RuntimeOptions(**options)


# through a runtime, over a network of fakes whose confidences stand in its input


def reference_of(fake_net: Any, confidence: np.ndarray) -> StreamReference:
    net = fake_net(thresholds=(0.5, 0.7), max_batch_size=50)
    with net.open() as runtime:
        runtime.run(net.batch(confidence))
        stats = runtime.stats()
    return StreamReference(
        samples=stats.queries,
        confidence_counts=tuple(exit_.confidence_counts for exit_ in stats.exits),
        agreements=tuple(exit_.count for exit_ in stats.exits),
    )


def calm(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3), np.float32)


def drifted_net(fake_net: Any) -> Any:
    return fake_net(thresholds=(0.5, 0.7), max_batch_size=50, reference=reference_of(fake_net, calm(4000, 99)))


def drive(runtime: Runtime, net: Any, *, batches: int, seed: int, drifted: bool) -> np.ndarray:
    """Runs batches; drifted ones are surer of themselves. Returns where the rows of the last one left."""
    for number in range(batches):
        confidence = calm(50, seed + number)
        if drifted:
            confidence = np.sqrt(confidence)
        # with this mask the fake answers the first class at the first exit, the second one later
        mask = np.tile(np.array([False, drifted]), (50, 1))
        mask[confidence[:, 0] > 0.8, 1] = False  # but surest rows have the same answer everywhere
        result = runtime.run(net.batch(confidence, mask=mask))
        runtime.stats()
    return result.exit_index


def test_a_runtime_tightens_and_goes_on(fake_net: Any, tmp_path: Path) -> None:
    net = drifted_net(fake_net)
    options = {"on_drift": "tighten", "drift": QUICK, "shadow_fraction": 0.1, "shadow_seed": 1}
    with net.open(**options, shadow_log=tmp_path / "log", log_inputs=True) as runtime:
        drive(runtime, net, batches=20, seed=0, drifted=False)
        assert runtime.stats().alarm is None
        assert set(drive(runtime, net, batches=40, seed=100, drifted=True).tolist()) == {2}
        stats = runtime.stats()
        assert stats.alarm is not None
        assert stats.response is not None
        assert stats.response.mode == "observing"
        assert 0 < stats.response.seen_rows < stats.response.rows_needed == 2000
        left = drive(runtime, net, batches=40, seed=200, drifted=True)
        stats = runtime.stats()
        assert stats.response is not None
        assert stats.response.mode == "tightened"
        assert stats.response.disagreement is not None
        assert stats.response.disagreement < 0.01
        assert all(new > old for new, old in zip(stats.response.thresholds, (0.5, 0.7), strict=True) if new is not None)
        assert set(left.tolist()) > {2}, "rows leave early again"
        assert stats.response.alarms == 1, "the stream is compared with the rows that were seen"
    spec = net.spec()
    logged = read_shadow_log(tmp_path / "log", model_digest=spec.plan.model_digest)
    assert logged.trace.exits == ("cut_0", "cut_1")
    assert logged.trace.sample_count >= 2000
    assert logged.inputs is not None
    assert set(logged.inputs) == {"x", "mask"}
    # a row's logged confidences are those that stand in its input
    np.testing.assert_array_equal(logged.trace.confidence.T, np.clip(logged.inputs["x"][:, 1:], 0, 1))
    everything = read_shadow_log(tmp_path / "log", model_digest="m", every_row=True)
    assert everything.trace.sample_count > logged.trace.sample_count


def test_full_answers_by_the_whole_network_from_the_alarm_on(fake_net: Any) -> None:
    net = drifted_net(fake_net)
    with net.open(on_drift="full", drift=QUICK) as runtime:
        left = drive(runtime, net, batches=60, seed=100, drifted=True)
        assert set(left.tolist()) == {2}
        assert runtime.stats().response.mode == "full"
        runtime.reset_stats()
        assert set(drive(runtime, net, batches=2, seed=7, drifted=False).tolist()) == {2}
        assert [set(rows.tolist()) for rows, _ in runtime.stream(net.batch(np.ones((3, 3))))] == [{0, 1, 2}]


def test_a_plan_without_a_reference_cannot_answer(fake_net: Any) -> None:
    with pytest.raises(SchemaError, match="no reference.*python -m planner"):
        fake_net(thresholds=(0.5,)).open(on_drift="tighten")


def test_a_log_stays_within_its_size_and_damaged_files_are_passed_over(fake_net: Any, tmp_path: Path) -> None:
    net = fake_net(thresholds=(0.5, 0.7), max_batch_size=50)
    with net.open(shadow_fraction=1.0, shadow_log=tmp_path, log_mb=0.1) as runtime:
        for number in range(100):
            runtime.run(net.batch(calm(50, number)))
    sizes = [path.stat().st_size for path in tmp_path.glob("rows-*.npz")]
    assert sum(sizes) <= 100_000
    assert len(sizes) >= 4
    assert not list(tmp_path.glob(".*")), "nothing is left behind"
    newest = sorted(tmp_path.glob("rows-*.npz"))[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    assert read_shadow_log(tmp_path, model_digest="m").files == len(sizes) - 1
    with pytest.raises(InputError, match="another model"):
        read_shadow_log(tmp_path, model_digest="other")
    with pytest.raises(InputError, match="no rows in it"):
        read_shadow_log(tmp_path / "nowhere", model_digest="m")

"""The test for drift: how often it raises a false alarm, how fast it sees a change, and what it says."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from artifacts import Certificate, SchemaError, StreamReference, UsageError, to_plain
from runtime import DriftAlarm, DriftConfig
from runtime.monitor.drift import DriftTest
from runtime.monitor.drift_events import bound_probability, list_events, list_hypotheses
from tests.runtime.drift_worlds import CELLS, DISAGREEMENT, draw_block, draw_reference, make_plan

FEWER = np.array([[0.75], [1.375], [1.375]])  # times CELLS: 45 % instead of 60 % leave at the first exit


def watch(
    seed: int,
    *,
    config: DriftConfig,
    cells: np.ndarray = CELLS,
    disagreement: np.ndarray = DISAGREEMENT,
    samples: int = 2000,
    blocks: int = 60,
    rows: int = 50,
    shadow: float = 0.2,
    quiet_blocks: int = 0,
) -> DriftAlarm | None:
    """Draws a calibration sample and a stream, and watches it after every block."""
    random = np.random.default_rng(seed)
    test = DriftTest(make_plan(draw_reference(random, samples)), config, shadow_fraction=shadow)
    for index in range(quiet_blocks + blocks):
        now = (CELLS, DISAGREEMENT) if index < quiet_blocks else (cells, disagreement)
        alarm = test.update(draw_block(random, rows, now[0], shadow=shadow, disagreement=now[1]))
        if alarm is not None:
            assert test.alarm == alarm
            assert test.update(draw_block(random, rows, CELLS, disagreement=DISAGREEMENT)) is None
            return alarm
    assert test.state.log10_capital < test.state.log10_alarm
    return None


def count_alarms(seeds: int, **world: object) -> int:
    return sum(watch(seed, **world) is not None for seed in range(seeds))


def test_an_unshifted_stream_raises_an_alarm_no_more_often_than_stated() -> None:
    """No margin and few samples: the calibration sample itself differs from the stream as much as it ever will."""
    rate, seeds = 0.2, 200
    alarms = count_alarms(seeds, config=DriftConfig(false_alarm_rate=rate, margin=0.0), samples=300)
    assert alarms <= rate * seeds + 2 * math.sqrt(seeds * rate * (1 - rate))


def test_a_stream_at_the_very_end_of_the_margin_raises_no_more() -> None:
    rate, seeds, margin = 0.2, 100, 0.03
    cells = CELLS.copy()
    cells[0] *= (cells[0].sum() - margin) / cells[0].sum()
    cells[1] *= (cells[1].sum() + margin) / cells[1].sum()
    config = DriftConfig(false_alarm_rate=rate, margin=margin)
    alarms = count_alarms(seeds, config=config, cells=cells, samples=20_000, rows=200)
    assert alarms <= rate * seeds + 2 * math.sqrt(seeds * rate * (1 - rate))


def test_traffic_that_comes_in_waves_within_the_margin_is_no_drift() -> None:
    random = np.random.default_rng(0)
    config = DriftConfig(false_alarm_rate=0.1, margin=0.05)
    test = DriftTest(make_plan(draw_reference(random, 5000)), config)
    for index in range(400):
        cells = CELLS.copy()
        wave = 0.045 * math.sin(index / 9)
        cells[0] *= (cells[0].sum() + wave) / cells[0].sum()
        cells[2] *= (cells[2].sum() - wave) / cells[2].sum()
        assert test.update(draw_block(random, 100, cells, disagreement=DISAGREEMENT)) is None


def test_another_share_is_seen_and_told_with_its_numbers() -> None:
    config = DriftConfig(false_alarm_rate=0.01, margin=0.02)
    alarms = [watch(seed, config=config, cells=CELLS * FEWER, shadow=0.0) for seed in range(20)]
    assert all(alarm is not None for alarm in alarms)
    assert {alarm.kind for alarm in alarms} == {"share"}
    alarm = next(alarm for alarm in alarms if alarm.exit_index == 0)
    assert alarm.exit_name == "cut_0"
    assert alarm.expected == pytest.approx(0.6, abs=0.04)
    assert alarm.seen < alarm.allowed < alarm.expected - 0.02
    assert alarm.seen == pytest.approx(0.45, abs=0.06)
    assert alarm.rows <= alarm.queries
    assert alarm.log10_capital >= math.log10(200)
    for number in (f"{alarm.rows} rows", f"{alarm.seen:.4f}", f"{alarm.expected:.4f}", "cut_0", "0.01", "at least"):
        assert number in alarm.message
    assert from_json(alarm)["exit_index"] == 0


def from_json(alarm: DriftAlarm) -> dict:
    return json.loads(json.dumps(to_plain(alarm)))


def test_other_confidences_at_the_same_shares_are_seen() -> None:
    cells = CELLS.copy()
    cells[0] = cells[0, ::-1][[5, 5, 5, 5, 5, 5, 5, 0, 1, 2]]  # the least sure are now the most
    assert cells.sum() == pytest.approx(1)
    alarm = watch(1, config=DriftConfig(), cells=cells, shadow=0.0)
    assert (alarm.kind, alarm.exit_index) == ("confidence", 0)
    assert 0.7 < alarm.confidence_below < 1
    assert alarm.seen > alarm.allowed > alarm.expected
    assert f"below {alarm.confidence_below:.2f}" in alarm.message


def test_disagreement_at_the_same_confidences_is_seen_by_shadowing_alone() -> None:
    worse = np.array([0.25, 0.3, 0.0])
    assert watch(2, config=DriftConfig(), disagreement=worse, shadow=0.0, blocks=100) is None
    alarm = watch(2, config=DriftConfig(), disagreement=worse, shadow=0.2, blocks=100)
    assert alarm.kind == "disagreement"
    assert alarm.seen > alarm.allowed > alarm.expected
    assert "than by the final head" in alarm.message


def test_fewer_disagreements_are_no_alarm() -> None:
    assert watch(3, config=DriftConfig(margin=0.0), disagreement=np.zeros(3), shadow=1.0, blocks=200) is None


def test_a_change_after_a_long_quiet_time_is_seen() -> None:
    alarm = watch(4, config=DriftConfig(), cells=CELLS * FEWER, shadow=0.0, rows=500, quiet_blocks=1000, blocks=10)
    assert alarm.kind == "share"
    assert alarm.queries <= 505_000
    assert alarm.rows <= 6000, "the numbers are those since the change"


def test_what_a_certificate_allows_comes_before_what_was_seen() -> None:
    random = np.random.default_rng(0)
    reference = draw_reference(random, 2000)
    for risk, allowed in (("agreement", 0.05), ("metric", None)):
        certificate = Certificate(
            risk=risk, bound=0.05, delta=0.1, finite_sample=True, method="betting", p_value=0.04, observed=0.01,
            samples=200, tuning_samples=100, position=1, seed=0, tuning_digest="a", certification_digest="b",
        )  # fmt: skip
        plan = make_plan(reference, certificate=certificate)
        alarm = None
        test = DriftTest(plan, DriftConfig(), shadow_fraction=0.5)
        while alarm is None:
            alarm = test.update(draw_block(random, 100, CELLS, shadow=0.5, disagreement=np.array([0.5, 0.5, 0.0])))
        assert alarm.kind == "disagreement"
        if alarm.exit_index is None and allowed is not None:
            assert alarm.allowed == allowed
    events = list_events(reference, shadow_fraction=0.5, certified=0.05)
    overall = [
        side
        for side in list_hypotheses(events, false_alarm_rate=0.01, margin=0.02)
        if side.event.kind == "disagreement" and side.event.exit_index is None
    ]
    assert [side.allowed for side in overall] == [0.05]


def test_all_hypotheses_share_one_capital() -> None:
    reference = draw_reference(np.random.default_rng(0), 2000)
    hypotheses = list_hypotheses(list_events(reference, shadow_fraction=0.1), false_alarm_rate=0.01, margin=0.01)
    assert sum(side.weight for side in hypotheses) == pytest.approx(1)
    assert {side.event.kind for side in hypotheses} == {"share", "confidence", "disagreement"}
    for side in hypotheses:
        assert 0 < side.allowed < 1
        assert (side.allowed > side.event.expected) == side.at_most


@pytest.mark.parametrize("probability", [0.0, 0.01, 0.3, 0.5, 0.97, 1.0])
def test_a_bound_fails_no_more_often_than_stated(probability: float) -> None:
    """Exactly, by summing over every number of hits among 30 samples."""
    samples, rate = 30, 0.05
    for upper in (True, False):
        failed = 0.0
        for hits in range(samples + 1):
            bound = bound_probability(hits / samples, samples, rate, upper=upper)
            assert bound >= hits / samples if upper else bound <= hits / samples
            likely = math.comb(samples, hits) * probability**hits * (1 - probability) ** (samples - hits)
            failed += likely * (bound < probability if upper else bound > probability)
        assert failed <= rate


def test_a_plan_without_exits_is_watched_by_its_confidences() -> None:
    random = np.random.default_rng(0)
    cells = CELLS[2:] / CELLS[2].sum()
    test = DriftTest(make_plan(draw_reference(random, 1000, cells, [0.0]), exits=0), DriftConfig(), shadow_fraction=0.1)
    for _ in range(50):
        assert test.update(draw_block(random, 50, cells, disagreement=np.zeros(1))) is None
    sure = np.eye(1, 10, 9)
    found = [test.update(draw_block(random, 50, sure, disagreement=np.zeros(1))) for _ in range(10)]
    assert [alarm.kind for alarm in found if alarm] == ["confidence"]


def test_an_exit_where_no_row_left_is_watched() -> None:
    random = np.random.default_rng(0)
    cells = CELLS.copy()
    cells[2] += cells[1]
    cells[1] = 0
    test = DriftTest(make_plan(draw_reference(random, 5000, cells)), DriftConfig(), shadow_fraction=0.1)
    found = [test.update(draw_block(random, 100, CELLS, disagreement=DISAGREEMENT)) for _ in range(20)]
    assert any(found)


@pytest.mark.parametrize(
    "wrong", [{"false_alarm_rate": 0.0}, {"false_alarm_rate": 1.0}, {"margin": -0.1}, {"margin": 1}]
)
def test_a_config_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        DriftConfig(**wrong)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (None, "no reference"),
        (StreamReference(samples=3, confidence_counts=((1, 2),), agreements=(3,)), "2 exits and the final head"),
        (StreamReference(samples=3, confidence_counts=((1,), (1, 0), (1,)), agreements=(1, 1, 1)), "2 exits"),
        (
            StreamReference(samples=4, confidence_counts=((1,), (1,), (1,)), agreements=(1, 1, 1)),
            "do not add up to its",
        ),
        (
            StreamReference(samples=0, confidence_counts=((0,), (0,), (0,)), agreements=(0, 0, 0)),
            "do not add up to its",
        ),
        (StreamReference(samples=3, confidence_counts=((1,), (1,), (1,)), agreements=(1, 2, 1)), "more agreements"),
    ],
)
def test_a_reference_of_something_else_is_refused(reference: StreamReference | None, message: str) -> None:
    with pytest.raises(SchemaError, match=f"{message}.*(?s:.*)python -m planner"):
        DriftTest(make_plan(reference), DriftConfig())

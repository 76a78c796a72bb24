"""The running statistics: what is counted, by which call, and that no answer depends on them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from artifacts import SchemaError, StreamReference, UsageError, to_plain
from runtime import DriftConfig, Runtime, RuntimeStats
from runtime.monitor.stats import FOLD_CALLS, count_cells
from tests.runtime.drift_worlds import draw_reference

THRESHOLDS = (0.5, 0.7)


def random_confidence(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3), np.float32)


def make_reference(fake_net: Any, confidence: np.ndarray) -> StreamReference:
    """Returns the counts of a stream of these confidences."""
    net = fake_net(thresholds=THRESHOLDS, max_batch_size=50)
    with net.open() as runtime:
        runtime.run(net.batch(confidence))
        stats = runtime.stats()
    return StreamReference(
        samples=stats.queries,
        confidence_counts=tuple(exit_.confidence_counts for exit_ in stats.exits),
        agreements=tuple(exit_.count for exit_ in stats.exits),
    )


@pytest.fixture
def watched(fake_net: Any) -> Iterator[tuple[Any, Runtime]]:
    """A net and its runtime with a reference of uniform confidences."""
    net = fake_net(thresholds=THRESHOLDS, reference=make_reference(fake_net, random_confidence(4000, 99)))
    with net.open() as runtime:
        yield net, runtime


def test_counts_are_those_of_the_answers(fake_net: Any) -> None:
    net = fake_net(thresholds=THRESHOLDS, max_batch_size=5)
    with net.open() as runtime:
        empty = runtime.stats()
        results = [runtime.run(net.batch(random_confidence(count, count))) for count in (1, 7, 23)]
        stats = runtime.stats()
    assert (empty.queries, empty.disagreement, empty.alarm, empty.drift) == (0, None, None, None)
    assert [exit_.share for exit_ in empty.exits] == [0, 0, 0]
    left = np.concatenate([result.exit_index for result in results])
    confidence = np.concatenate([result.confidence for result in results])
    assert stats.queries == 31
    assert [exit_.name for exit_ in stats.exits] == ["cut_0", "cut_1", "final head"]
    assert [exit_.expected_share for exit_ in stats.exits] == pytest.approx([0.1, 0.1, 0.8])
    for index, exit_ in enumerate(stats.exits):
        assert exit_.count == (left == index).sum()
        assert exit_.share == exit_.count / 31
        counts = np.histogram(confidence[left == index], bins=20, range=(0, 1))[0]
        assert exit_.confidence_counts == tuple(counts.tolist())


def test_a_snapshot_is_plain_data(watched: tuple[Any, Runtime]) -> None:
    net, runtime = watched
    runtime.run(net.batch(random_confidence(8, 0)))
    stats = runtime.stats()
    plain = json.loads(json.dumps(to_plain(stats)))
    assert plain["queries"] == 8
    assert plain["alarm"] is None
    assert plain["drift"]["reference_samples"] == 4000
    assert sum(exit_["count"] for exit_ in plain["exits"]) == 8
    runtime.run(net.batch(random_confidence(8, 1)))
    assert stats.queries == 8, "a snapshot stands still"
    with pytest.raises(AttributeError):
        stats.queries = 3  # type: ignore[misc]


def test_strange_confidences_are_counted_somewhere() -> None:
    confidence = np.array([np.nan, -1, 0, 0.999, 1, 1.0000001, np.inf], np.float32)
    cells = count_cells(np.zeros(7, np.int64), confidence, heads=2, bins=10)
    assert cells.tolist() == [[3, 0, 0, 0, 0, 0, 0, 0, 0, 4], [0] * 10]


def test_a_stream_counts_when_it_has_ended(fake_net: Any) -> None:
    net = fake_net(thresholds=THRESHOLDS, max_batch_size=4)
    batch = net.batch(random_confidence(11, 3))
    with net.open() as runtime:
        runtime.run(batch)
        by_run = runtime.stats()
        runtime.reset_stats()
        for _ in runtime.stream(batch):
            pass
        assert runtime.stats() == by_run
        dropped = runtime.stream(batch)
        next(dropped)
        dropped.close()
        assert runtime.stats() == by_run


def test_what_the_caller_does_to_a_result_changes_no_count(fake_net: Any) -> None:
    net = fake_net(thresholds=THRESHOLDS)
    with net.open() as runtime:
        result = runtime.run(net.batch(np.ones((4, 3))))
        result.exit_index[:] = 2
        result.confidence[:] = 0
        stats = runtime.stats()
    assert stats.exits[0].count == stats.exits[0].confidence_counts[-1] == 4


def test_every_row_of_many_threads_is_counted_once(fake_net: Any) -> None:
    net = fake_net(thresholds=THRESHOLDS, max_batch_size=4)
    batches = [net.batch(random_confidence(3 + seed, seed)) for seed in range(6)]
    calls = FOLD_CALLS // 2

    def serve(seed: int) -> None:
        for turn in range(calls):
            runtime.run(batches[seed])
            if turn % 50 == seed:
                assert runtime.stats().queries > 0

    with net.open() as runtime, ThreadPoolExecutor(6) as threads:
        expected = np.sum([np.bincount(runtime.run(batch).exit_index, minlength=3) for batch in batches], axis=0)
        runtime.reset_stats()
        for done in [threads.submit(serve, seed) for seed in range(6)]:
            done.result()
        stats = runtime.stats()
    assert [exit_.count for exit_ in stats.exits] == (expected * calls).tolist()


def test_calls_fold_by_themselves_and_little_is_kept(fake_net: Any) -> None:
    net = fake_net(thresholds=THRESHOLDS)
    batch = net.batch(random_confidence(2, 0))
    with net.open() as runtime:
        for _ in range(3 * FOLD_CALLS):
            runtime.run(batch)
            assert len(runtime._watch._stats._pending) <= FOLD_CALLS
        assert len(runtime._watch._stats._pending) == 0


@pytest.mark.parametrize("drift", [None, DriftConfig()])
def test_no_answer_depends_on_them(fake_net: Any, drift: DriftConfig | None) -> None:
    batches = [random_confidence(7, seed) for seed in range(20)]

    def answers(**options: Any) -> list[list[np.ndarray]]:
        net = fake_net(thresholds=THRESHOLDS, max_batch_size=5, reference=make_reference(fake_net, batches[0]))
        with net.open(**options) as runtime:
            found = [runtime.run(net.batch(batch)) for batch in batches]
        return [[result.outputs, result.exit_index, result.confidence] for result in found]

    plain = answers(stats=False)
    for options in ({"drift": drift}, {"drift": drift, "shadow_fraction": 0.5}, {"shadow_fraction": 1.0}):
        for expected, found in zip(plain, answers(**options), strict=True):
            for array, same in zip(expected, found, strict=True):
                np.testing.assert_array_equal(array, same)


def test_a_shifted_stream_is_reported_once(watched: tuple[Any, Runtime], caplog: pytest.LogCaptureFixture) -> None:
    net, runtime = watched
    with caplog.at_level(logging.WARNING, logger="pame.runtime"):
        for seed in range(100):
            runtime.run(net.batch(random_confidence(32, seed)))
        assert runtime.stats().alarm is None
        for seed in range(100):
            runtime.run(net.batch(random_confidence(32, seed) ** 2))
        stats = runtime.stats()
        for seed in range(100):
            runtime.run(net.batch(random_confidence(32, seed) ** 2))
            runtime.stats()
    assert stats.alarm is not None
    assert stats.drift.log10_capital >= stats.drift.log10_alarm
    (record,) = caplog.records
    assert record.getMessage() == stats.alarm.message
    assert runtime.stats().alarm == stats.alarm
    assert json.loads(json.dumps(to_plain(stats)))["alarm"]["exit_name"] == stats.alarm.exit_name


def test_an_alarm_comes_without_a_snapshot(watched: tuple[Any, Runtime], caplog: pytest.LogCaptureFixture) -> None:
    net, runtime = watched
    with caplog.at_level(logging.WARNING, logger="pame.runtime"):
        for _ in range(FOLD_CALLS):
            runtime.run(net.batch(np.zeros((8, 3))))
    assert len(caplog.records) == 1


def test_a_log_handler_may_ask_for_a_snapshot(watched: tuple[Any, Runtime]) -> None:
    net, runtime = watched
    seen: list[RuntimeStats] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(runtime.stats())

    logger, handler = logging.getLogger("pame.runtime"), Handler()
    logger.addHandler(handler)
    try:
        for _ in range(FOLD_CALLS):
            runtime.run(net.batch(np.zeros((8, 3))))
    finally:
        logger.removeHandler(handler)
    assert [stats.alarm is not None for stats in seen] == [True]


def test_a_reset_forgets_everything(watched: tuple[Any, Runtime]) -> None:
    net, runtime = watched
    before = runtime.stats()
    for _ in range(100):
        runtime.run(net.batch(np.zeros((8, 3))))
    assert runtime.stats().alarm is not None
    runtime.run(net.batch(np.zeros((8, 3))))
    runtime.reset_stats()
    assert runtime.stats() == before


def test_an_alarm_may_be_unwanted(fake_net: Any) -> None:
    net = fake_net(thresholds=THRESHOLDS, reference=make_reference(fake_net, random_confidence(4000, 99)))
    with net.open(drift=None) as runtime:
        for _ in range(100):
            runtime.run(net.batch(np.zeros((8, 3))))
        stats = runtime.stats()
    assert (stats.queries, stats.drift, stats.alarm) == (800, None, None)


def test_a_plan_without_a_reference_says_that_it_is_not_tested(fake_net: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pame.runtime"), fake_net(thresholds=THRESHOLDS).open() as runtime:
        assert runtime.stats().drift is None
    assert "not tested" in caplog.text


def test_statistics_that_are_off_say_so(fake_net: Any) -> None:
    net = fake_net(thresholds=THRESHOLDS)
    with net.open(stats=False) as runtime:
        runtime.run(net.batch(random_confidence(8, 0)))
        for call in (runtime.stats, runtime.reset_stats):
            with pytest.raises(UsageError, match="stats=False"):
                call()


def test_statistics_outlive_the_runtime(fake_net: Any) -> None:
    net = fake_net(thresholds=THRESHOLDS)
    with net.open() as runtime:
        runtime.run(net.batch(random_confidence(8, 0)))
    assert runtime.stats().queries == 8


def test_a_reference_of_other_exits_is_refused(fake_net: Any) -> None:
    net = fake_net(thresholds=THRESHOLDS, reference=draw_reference(np.random.default_rng(0), 100))
    net.reference = StreamReference(samples=1, confidence_counts=((1,),), agreements=(1,))
    with pytest.raises(SchemaError, match="does not belong to its 2 exits"):
        net.open()

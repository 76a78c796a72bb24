"""Shadowed rows: answered where they leave, compared at the end, and without an effect on other rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import UsageError
from runtime.shadow import ShadowDraw
from tests.runtime.task_worlds import CloseAnswers


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    depth, largest = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    count = draw(st.integers(1, 2 * largest))
    values = st.sampled_from((0.0, 0.3, 0.5, 0.9, 1.0, float("nan")))
    confidence = draw(st.lists(values, min_size=count * depth, max_size=count * depth))
    thresholds = draw(st.lists(st.sampled_from((0.3, 0.5, 0.9, 1.5)), min_size=depth - 1, max_size=depth - 1))
    return {
        "thresholds": tuple(thresholds),
        "largest": largest,
        "confidence": np.array(confidence, np.float32).reshape(count, depth),
        "mask": np.random.default_rng(draw(st.integers(0, 99))).random((count, 2)) < 0.5,
        "fraction": draw(st.sampled_from((0.3, 0.7, 1.0))),
        "seed": draw(st.integers(0, 99)),
    }


def final_answer(net: Any, x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The answer of the whole network to one row."""
    without_leaving = type(net)(thresholds=(2.0,) * len(net.thresholds), check_finite=False)
    return without_leaving.answer_row(x, mask)[2]


@settings(deadline=None)
@given(case=cases())
def test_every_row_gets_the_answer_it_would_get_alone_and_shadows_meet_the_final_head(
    case: dict[str, Any], fake_net: Any
) -> None:
    net = fake_net(thresholds=case["thresholds"], max_batch_size=case["largest"], check_finite=False)
    x, mask = net.batch(case["confidence"], mask=case["mask"])
    alone = [net.answer_row(x[row], mask[row]) for row in range(len(x))]
    draw = ShadowDraw(seed=case["seed"])
    starts = range(0, len(x), case["largest"])
    chosen = [
        start + row for start in starts for row in draw.draw(min(case["largest"], len(x) - start), case["fraction"])
    ]
    early = [row for row in chosen if alone[row][0] < net.depth - 1]
    same = [alone[row][2].argmax() == final_answer(net, x[row], mask[row]).argmax() for row in early]
    options = {"shadow_fraction": case["fraction"], "shadow_seed": case["seed"]}
    for stream in (False, True):
        with net.open(**options) as runtime:
            outputs = np.full((len(x), 2), np.nan, np.float32)
            if stream:
                seen: list[int] = []
                for rows, answers in runtime.stream((x, mask)):
                    outputs[rows] = answers
                    seen += rows.tolist()
                assert sorted(seen) == list(range(len(x)))
            else:
                result = runtime.run((x, mask))
                outputs = result.outputs
                assert result.exit_index.tolist() == [exit_index for exit_index, _, _ in alone]
                np.testing.assert_array_equal(result.confidence, [confidence for _, confidence, _ in alone])
            np.testing.assert_array_equal(outputs, [answer for _, _, answer in alone])
            stats = runtime.stats()
        assert stats.shadowed == len(early)
        for index, exit_ in enumerate(stats.exits):
            there = [agrees for row, agrees in zip(early, same, strict=True) if alone[row][0] == index]
            assert (exit_.shadowed, exit_.agreements) == (len(there), sum(there))


def test_latency_remains_that_of_the_exit_and_the_engines_time_is_all_of_it(
    fake_net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("runtime.runtime.perf_counter", lambda: now[0])
    monkeypatch.setattr("engines.HostDevice.mark", staticmethod(lambda: now[0]))

    def second() -> None:
        now[0] += 1

    net = fake_net(thresholds=(0.5, 0.5), hook=second)
    with net.open(shadow_fraction=1.0) as runtime:
        result = runtime.run(net.batch(np.array([[1, 0, 0], [0, 1, 0]])))
    assert result.latency_ms.tolist() == [1000, 2000]
    assert result.exit_index.tolist() == [0, 1]
    assert result.engine_ms == 3000
    assert [fake.batches for fake in net.fakes] == [[2], [2], [2]]


def test_a_batch_without_shadows_is_no_longer_than_before(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    with net.open(shadow_fraction=1e-9, shadow_seed=0) as runtime:
        runtime.run(net.batch(np.ones((4, 2))))
    assert [fake.batches for fake in net.fakes] == [[4], []]


def test_disagreement_is_estimated_over_all_queries(fake_net: Any) -> None:
    """With this mask the fake answers the first class at the first exit, the second one later."""
    net = fake_net(thresholds=(0.5, 0.5), max_batch_size=64)
    confidence = np.zeros((64, 3))
    confidence[:32, 0] = 1
    confidence[32:48, 1] = 1
    mask = np.tile(np.array([False, True]), (64, 1))
    with net.open(shadow_fraction=1.0) as runtime:
        result = runtime.run(net.batch(confidence, mask=mask))
        stats = runtime.stats()
    x, _ = net.batch(confidence)
    final = np.array([final_answer(net, x[row], mask[row]) for row in range(64)])
    assert stats.disagreement == (result.outputs.argmax(1) != final.argmax(1)).mean() == 0.5
    assert stats.shadowed == 48
    assert stats.exits[2].shadowed == 0


def test_what_was_never_shadowed_is_not_guessed(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    with net.open() as runtime:
        runtime.run(net.batch(np.zeros((4, 2))))
        assert runtime.stats().disagreement == 0.0, "all answers are the final head's"
        runtime.run(net.batch(np.ones((4, 2))))
        assert runtime.stats().disagreement is None


def test_the_draw_is_seeded_and_fair() -> None:
    first, again, other = (ShadowDraw(seed=seed) for seed in (1, 1, 2))
    drawn = [first.draw(1000, 0.3) for _ in range(3)]
    assert drawn == [again.draw(1000, 0.3) for _ in range(3)]
    assert drawn[0] != drawn[1]
    assert drawn[0] != other.draw(1000, 0.3)
    assert all(240 < len(rows) < 360 for rows in drawn)
    assert ShadowDraw().draw(5, 1.0) == set(range(5))
    assert ShadowDraw().draw(5, 0.0) == set()


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_that_is_none_is_refused(fake_net: Any, fraction: float) -> None:
    with pytest.raises(UsageError, match="shadow_fraction.*from 0 to 1"):
        fake_net(thresholds=(0.5,)).open(shadow_fraction=fraction)


def test_a_hosts_own_task_says_how_far_answers_agree(fake_net: Any) -> None:
    """The fake's first number grows by one from stage to stage, and by twice the row's number at the last."""
    net = fake_net(thresholds=(0.5, 0.5), masked=False, task="numbers")
    confidence = np.zeros((3, 3))
    confidence[0, 0] = confidence[1, 1] = 1
    with net.open(shadow_fraction=1.0, task=CloseAnswers()) as runtime:
        result = runtime.run(net.batch(confidence))
        stats = runtime.stats()
    final = [final_answer(net, net.batch(confidence)[0][row], np.zeros(2, np.bool_))[0] for row in range(2)]
    means = [1 - abs(result.outputs[row, 0] - final[row]) / 4 for row in range(2)]
    assert [exit_.mean_agreement for exit_ in stats.exits] == [means[0], means[1], None]
    assert means == [0.5, 0.25]
    assert [exit_.agreements for exit_ in stats.exits] == [0, 0, 0], "only the very same answer counts as one"
    assert stats.disagreement == pytest.approx(2 / 3)


def test_a_task_of_another_name_than_the_bundles_is_refused(fake_net: Any) -> None:
    with pytest.raises(UsageError, match="task numbers: bundle 'fake' is for the task 'classification'"):
        fake_net(thresholds=(0.5,)).open(task=CloseAnswers())


def test_shadowing_needs_statistics_and_a_known_task(fake_net: Any) -> None:
    with pytest.raises(UsageError, match="stats=False"):
        fake_net(thresholds=(0.5,)).open(shadow_fraction=0.1, stats=False)
    with pytest.raises(UsageError, match=r"unknown task 'poses'.*Known: classification.*task=mine"):
        fake_net(thresholds=(0.5,), task="poses").open(shadow_fraction=0.1)

"""Learn then Test: halves, the choice of a test, the fixed sequence, and what is said when nothing passes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import InputError, UsageError
from calibration.certify.risk_tests import (
    RiskTest,
    bounded_losses,
    choose_test,
    count_in_all,
    count_needed,
    find_tolerance,
    least_samples,
    relative_loss,
    run_sequence,
    split_for_tuning,
)


def pairs(n: int, *, lost: float, won: float = 0.0, right: float = 0.9, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Metrics of full and early with these shares of samples, in random order."""
    full, early = np.zeros(n), np.zeros(n)
    full[: round(right * n)] = 1
    early[round(lost * n) : round((right + won) * n)] = 1
    order = np.random.default_rng(seed).permutation(n)
    return full[order], early[order]


@settings(deadline=None)
@given(st.integers(2, 500), st.integers(0, 99))
def test_tuning_and_test_are_disjoint_and_all(samples: int, seed: int) -> None:
    split = split_for_tuning(samples, seed=seed)
    assert sorted([*split.tuning, *split.certification]) == list(range(samples))
    assert len(split.tuning) == (samples // 2 if samples < 200 else 100)
    again = split_for_tuning(samples, seed=seed)
    np.testing.assert_array_equal(split.certification, again.certification)
    assert (split.tuning_digest, split.certification_digest) == (again.tuning_digest, again.certification_digest)
    if samples > 50:
        assert split_for_tuning(samples, seed=seed + 1).tuning_digest != split.tuning_digest


@pytest.mark.parametrize(("samples", "tuning"), [(900, 180), (10_000, 2_000), (1_000_000, 20_000)])
def test_a_fifth_is_for_tuning_and_never_too_many(samples: int, tuning: int) -> None:
    assert len(split_for_tuning(samples, seed=0).tuning) == tuning


@pytest.mark.parametrize("tested", [1, 99, 100, 101, 340, 401, 8_000, 100_000])
def test_samples_in_all_leave_so_many_for_the_test(tested: int) -> None:
    found = count_in_all(tested)
    assert len(split_for_tuning(found, seed=0).certification) >= tested
    assert found < 3 or len(split_for_tuning(found - 1, seed=0).certification) < tested


def test_one_sample_cannot_be_split() -> None:
    with pytest.raises(InputError, match="1 samples cannot be split"):
        split_for_tuning(1, seed=0)


def test_hypothesis_is_a_mean_of_bounded_losses() -> None:
    full, early = np.array([1, 1, 0, 0.5]), np.array([1, 0, 1, 0.5])
    losses, level = bounded_losses(full, early, tolerance=0.1, risk="metric")
    assert 0 <= losses.min() <= losses.max() <= 1
    excess = 0.9 * full.mean() - early.mean()
    assert losses.mean() - level == pytest.approx(excess / 1.9)
    losses, level = bounded_losses(full, early, tolerance=0.1, risk="agreement")
    np.testing.assert_array_equal(losses, 1 - early)
    assert level == 0.1


def test_the_test_is_chosen_on_the_tuning_samples() -> None:
    def choose(full: np.ndarray, early: np.ndarray, risk: str = "metric") -> RiskTest:
        return choose_test(full, [early], tolerance=0.01, risk=risk, delta=0.05, samples=4 * len(full))

    full, early = pairs(5000, lost=0.012, won=0.006, right=0.93)
    assert choose(full, early).name == "paired-exact"
    assert choose(full, early).full_metric == pytest.approx(0.93)
    graded = np.random.default_rng(0).uniform(0.6, 0.9, 3000)
    assert choose(graded, graded - 0.001).name == "betting"
    assert choose(np.ones(1000), np.ones(1000), "agreement").name == "binomial"


def test_sequence_ends_with_the_first_failure() -> None:
    full, good = pairs(4000, lost=0.0)
    _, bad = pairs(4000, lost=0.2)
    test = RiskTest(name="paired-exact", risk="metric", delta=0.05)
    found = run_sequence(test, full, iter([good, bad, good]), tolerance=0.05)
    assert [p <= 0.05 for p, _ in found] == [True, False]
    assert [observed for _, observed in found] == [relative_loss(full, good), relative_loss(full, bad)]
    assert run_sequence(test, full, [], tolerance=0.05) == ()


@pytest.mark.parametrize("name", ["paired-exact", "betting"])
def test_offered_tolerance_is_the_smallest_that_passes(name: str) -> None:
    full, early = pairs(3000, lost=0.02, won=0.005)
    test = RiskTest(name=name, risk="metric", delta=0.05)
    assert test.p_value(full, early, tolerance=0.01) > 0.05
    offered = find_tolerance(test, full, early, above=0.01)
    assert offered is not None
    assert test.p_value(full, early, tolerance=offered) <= 0.05
    assert test.p_value(full, early, tolerance=offered - 3e-4) > 0.05
    assert offered > relative_loss(full, early)


def test_no_tolerance_certifies_a_plan_that_answers_nothing() -> None:
    full, _ = pairs(300, lost=0.0)
    test = RiskTest(name="paired-exact", risk="metric", delta=0.05)
    assert find_tolerance(test, full, np.zeros(300), above=0.01) is None


@pytest.mark.parametrize(
    ("name", "risk"), [("paired-exact", "metric"), ("betting", "metric"), ("binomial", "agreement")]
)
def test_needed_samples_are_enough_and_not_too_many(name: str, risk: str) -> None:
    full, early = pairs(1000, lost=0.006, right=1.0)
    test = RiskTest(name=name, risk=risk, delta=0.05)
    assert test.p_value(full, early, tolerance=0.01) > 0.05
    needed = count_needed(test, full, early, tolerance=0.01)
    assert needed is not None
    assert least_samples(tolerance=0.01, delta=0.05) < needed
    enough, short = (pairs(int(needed * factor), lost=0.006, right=1.0) for factor in (1.5, 0.6))
    assert test.p_value(*enough, tolerance=0.01) <= 0.05
    if name != "betting":  # whose p-value depends on the order too much for a sharp count
        assert test.p_value(*short, tolerance=0.01) > 0.05


def test_no_number_of_samples_certifies_a_plan_that_loses_more() -> None:
    full, early = pairs(1000, lost=0.03)
    for name in ("paired-exact", "betting"):
        test = RiskTest(name=name, risk="metric", delta=0.05)
        assert count_needed(test, full, early, tolerance=0.01) is None


def test_least_samples_is_a_law() -> None:
    """With one sample fewer, a test that passes a faultless plan would pass a bad one with more than delta."""
    n = least_samples(tolerance=0.01, delta=0.05)
    assert 0.99 ** (n - 1) > 0.05 >= 0.99**n
    test = RiskTest(name="binomial", risk="agreement", delta=0.05)
    found = [test.p_value(np.ones(some), np.ones(some), tolerance=0.01) for some in (n - 1, n)]
    assert found[0] > 0.05 >= found[1]
    assert least_samples(tolerance=0.0, delta=0.05) == 0


def test_what_does_not_belong_together_is_refused() -> None:
    with pytest.raises(UsageError, match="binomial"):
        RiskTest(name="binomial", risk="metric", delta=0.05)
    with pytest.raises(UsageError, match="Did you mean 'metric'"):
        RiskTest(name="betting", risk="metrik", delta=0.05)
    for delta in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError, match="delta"):
            RiskTest(name="betting", risk="metric", delta=delta)
    test = RiskTest(name="betting", risk="metric", delta=0.05)
    with pytest.raises(InputError, match="shapes"):
        test.p_value(np.ones(3), np.ones(2), tolerance=0.1)
    with pytest.raises(InputError, match="tolerance"):
        test.p_value(np.ones(3), np.ones(3), tolerance=1.0)
    with pytest.raises(InputError, match="metric is 0"):
        relative_loss(np.zeros(3), np.zeros(3))

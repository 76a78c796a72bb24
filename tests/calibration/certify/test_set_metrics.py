"""F1 and Matthews against their textbook formulas, and the bootstrap that stands in for a test."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import InputError
from calibration.certify.risk_tests import RiskTest
from calibration.certify.set_metrics import bootstrap_p_value, set_metric

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=50))
def test_two_classes(samples: list[tuple[int, int]]) -> None:
    evidence = np.array(samples)
    labels, predictions = evidence.T
    tp, fp = int((labels & predictions).sum()), int((~labels & predictions & 1).sum())
    fn, tn = int((labels & ~predictions & 1).sum()), int(((labels | predictions) == 0).sum())
    assert set_metric("f1", evidence) == pytest.approx(2 * tp / max(2 * tp + fp + fn, 1))
    spread = float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert set_metric("matthews", evidence) == pytest.approx((tp * tn - fp * fn) / spread if spread else 0)


@settings(deadline=None)
@given(pairs)
def test_many_classes(samples: list[tuple[int, int]]) -> None:
    evidence = np.array(samples)
    labels, predictions = evidence.T
    classes = sorted(set(labels.tolist()))
    if set(classes) <= {0, 1}:
        return
    each = [
        2 * ((labels == k) & (predictions == k)).sum() / ((labels == k).sum() + (predictions == k).sum())
        for k in classes
    ]
    assert set_metric("f1", evidence) == pytest.approx(np.mean(each))
    one_hot = [np.eye(4)[classes] - np.eye(4)[classes].mean(axis=0) for classes in (labels, predictions)]
    joint, spread = (one_hot[0] * one_hot[1]).sum(), np.prod([(centred**2).sum() for centred in one_hot]) ** 0.5
    assert set_metric("matthews", evidence) == pytest.approx(joint / spread if spread > 1e-9 else 0)


def evidence(n: int, *, wrong: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, n)
    full = np.where(random.random(n) < 0.05, 1 - labels, labels)
    early = np.where(random.random(n) < wrong, 1 - full, full)
    return np.stack([labels, full], axis=1), np.stack([labels, early], axis=1)


@pytest.mark.parametrize("name", ["f1", "matthews"])
def test_bootstrap_tells_good_from_bad(name: str) -> None:
    assert bootstrap_p_value(name, *evidence(2000, wrong=0.002), tolerance=0.03) < 0.01
    assert bootstrap_p_value(name, *evidence(2000, wrong=0.10), tolerance=0.03) > 0.9
    good, bad = evidence(2000, wrong=0.002), evidence(2000, wrong=0.10)
    test = RiskTest(name="bootstrap", risk=name, delta=0.05)
    assert not test.finite_sample
    assert test.observe(*good) < 0.03 < test.observe(*bad)
    assert test.p_value(*good, tolerance=0.03) == bootstrap_p_value(name, *good, tolerance=0.03)


def test_bootstrap_passes_at_the_boundary_about_as_often_as_it_says() -> None:
    """Asymptotically: no guarantee, so the bound is loose."""
    large = evidence(200_000, wrong=0.03)
    tolerance = RiskTest(name="bootstrap", risk="f1", delta=0.2).observe(*large)
    passed = sum(
        bootstrap_p_value("f1", *evidence(800, wrong=0.03, seed=seed), tolerance=tolerance) <= 0.2
        for seed in range(1, 151)
    )
    assert 0.08 < passed / 150 < 0.32


def test_a_handful_of_samples_passes_nothing() -> None:
    full, _ = evidence(10, wrong=0.0)
    assert bootstrap_p_value("f1", full, full, tolerance=0.01) > 0.5


def test_what_does_not_belong_together_is_refused() -> None:
    full, early = evidence(20, wrong=0.1)
    with pytest.raises(InputError, match="same samples"):
        bootstrap_p_value("f1", full, early[::-1], tolerance=0.1)
    with pytest.raises(InputError, match="same samples"):
        bootstrap_p_value("f1", full[:, 1], early[:, 1], tolerance=0.1)
    with pytest.raises(InputError, match="no relative loss"):
        RiskTest(name="bootstrap", risk="f1", delta=0.1).observe(np.zeros((5, 2), int), np.zeros((5, 2), int))


def test_miou_is_the_mean_of_ratios_of_sums_over_the_classes_that_occur() -> None:
    counts = np.array([[4, 0, 0, 10, 0, 2], [0, 3, 0, 2, 3, 0]], np.float64)

    assert set_metric("miou", counts) == pytest.approx((4 / 12 + 3 / 3 + 0 / 2) / 3)
    assert set_metric("miou", counts[:1]) == pytest.approx((4 / 10 + 0 / 2) / 2)


def test_the_bootstrap_of_miou_tells_a_harmless_plan_from_a_harmful_one() -> None:
    random = np.random.default_rng(0)
    union = random.integers(500, 900, (300, 3)).astype(np.float64)
    full = np.concatenate([np.round(union * 0.8), union], axis=1)
    harmless, harmful = full.copy(), full.copy()
    harmless[::50, :3] -= 20
    harmful[::3, :3] *= 0.8

    test = RiskTest(name="bootstrap", risk="miou", delta=0.05)
    assert test.p_value(full, harmless, tolerance=0.02) <= 0.05 < test.p_value(full, harmful, tolerance=0.02)
    assert test.observe(full, harmful) == pytest.approx(0.2 / 3, abs=0.01)
    assert not test.finite_sample
    with pytest.raises(InputError, match="counts"):
        bootstrap_p_value("miou", full[:, :5], full[:, :5], tolerance=0.1)

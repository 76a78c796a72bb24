"""Tests of learned confidences: what they are fitted to, what they must never see, and when they are taken."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import Trace, UsageError, describe_choice
from calibration import split_for_tuning
from planner.certify.certified import plan_certified
from planner.confidence.choosing import settle_confidence, tuning_samples
from planner.confidence.fitting import cross_fit, fit_confidences
from planner.config import CertifyConfig, PlanConfig
from planner.search.searches import find_search
from planner.validate.methods import make_methods
from planner.validate.resampling import ValidationConfig, validate_methods
from tests.planner.planning_worlds import make_costs, make_problem

COSTS = make_costs(0, exits=2, head=0.01)
LEARNED, AUTO = PlanConfig(confidence="learned", tolerance=0.05), PlanConfig(tolerance=0.05)
CLASSES = 4


def make_choices(seed: int, *, samples: int = 600, unfair: float = 4.0) -> Trace:
    """A trace of a choice among four classes. The exits are too sure of class 0 by ``unfair`` logits: where they answer
    that, they are often wrong for all their confidence."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, samples)
    hardness = random.gamma(1.0, 1.0, samples)
    own = np.eye(CLASSES)[labels]
    logits = np.stack([
        own * 6 - hardness[:, None] * 2 * scale * own + random.normal(0, 1.2 * scale, (samples, CLASSES))
        for scale in (1.6, 1.2, 0.3)
    ])  # fmt: skip
    logits[:-1, :, 0] += unfair
    shares = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    predictions = logits.argmax(axis=2)
    return Trace(
        exits=("cut0", "cut1"),
        confidence=shares.max(axis=2).astype(np.float32),
        metric=(predictions == labels).astype(np.float32),
        agreement=(predictions == predictions[-1]).astype(np.float32),
        predictions=predictions.astype(np.int32),
        labels=labels.astype(np.int32),
        features=np.stack([describe_choice(exit_, probabilities=False) for exit_ in logits]),
    )


def spoil(trace: Trace, samples: np.ndarray, seed: int) -> Trace:
    """Replaces all that is known of some samples by noise."""
    random = np.random.default_rng(seed)
    other = make_choices(seed + 1000, samples=trace.sample_count)
    arrays = {}
    for name in ("confidence", "metric", "agreement", "predictions", "features"):
        array = getattr(trace, name).copy()
        array[:, samples] = getattr(other, name)[:, random.permutation(trace.sample_count)[: len(samples)]]
        arrays[name] = array
    return replace(trace, **arrays)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**16), noise=st.integers(0, 2**16), way=st.sampled_from([LEARNED, AUTO]))
def test_the_samples_of_the_test_are_never_seen(seed: int, noise: int, way: PlanConfig) -> None:
    config = replace(way, certify=CertifyConfig(seed=seed))
    trace = make_choices(seed, samples=200)
    split = split_for_tuning(200, seed=seed)
    first, second = (
        settle_confidence(each, COSTS, config) for each in (trace, spoil(trace, split.certification, noise))
    )
    assert dict(first.learned) == dict(second.learned)
    np.testing.assert_array_equal(
        first.trace.confidence[:, split.tuning], second.trace.confidence[:, split.tuning]
    )  # fmt: skip
    other = settle_confidence(spoil(trace, split.tuning, noise), COSTS, LEARNED)
    assert dict(other.learned) != dict(settle_confidence(trace, COSTS, LEARNED).learned)


def test_a_fit_finds_the_class_that_exits_are_too_sure_of() -> None:
    trace = make_choices(1, samples=3000)
    learned = fit_confidences(trace)
    assert list(learned) == ["cut0", "cut1"]
    for model in learned.values():
        assert len(model.class_biases) == CLASSES
        assert model.class_biases[0] < min(model.class_biases[1:]) - 0.5
    fitted = trace.with_confidences(learned)
    np.testing.assert_array_equal(fitted.confidence[-1], trace.confidence[-1])
    for row in range(2):
        kept = 1 - np.maximum(0, trace.metric[-1] - trace.metric[row])
        assert rank_quality(fitted.confidence[row], kept) > rank_quality(trace.confidence[row], kept) + 0.05
        sure = fitted.confidence[row] > np.median(fitted.confidence[row])
        assert fitted.confidence[row, sure].mean() == pytest.approx(kept[sure].mean(), abs=0.05)


def rank_quality(confidence: np.ndarray, kept: np.ndarray) -> float:
    """The share of (kept, lost) pairs that a confidence puts in order."""
    good, bad = confidence[kept == 1], confidence[kept < 1]
    return float((good[:, None] > bad[None, :]).mean())


def test_fits_without_losses_or_with_rare_classes_stay_finite() -> None:
    trace = make_choices(2, samples=60)
    perfect = replace(trace, metric=np.ones_like(trace.metric))
    for model in fit_confidences(perfect).values():
        assert perfect.with_confidences({"cut0": model}).confidence[0].min() > 0.9
    few = trace.select(np.arange(8))
    assert all(not model.class_biases for model in fit_confidences(few).values())
    alike = replace(trace, features=np.ones_like(trace.features))
    assert all(np.isfinite(model.weights).all() for model in fit_confidences(alike).values())


def test_a_class_that_only_the_samples_of_the_test_answer_has_no_offset() -> None:
    trace = make_choices(8, samples=400)
    split = split_for_tuning(400, seed=0)
    predictions = trace.predictions.copy()  # type: ignore[union-attr]
    predictions[:, split.tuning] %= 3
    predictions[:, split.certification[:5]] = 3
    settled = settle_confidence(replace(trace, predictions=predictions), COSTS, LEARNED)
    assert {len(model.class_biases) for model in settled.learned.values()} == {3}
    assert np.isfinite(settled.trace.confidence).all()


def test_cross_fitting_never_fits_a_sample_to_itself() -> None:
    trace = make_choices(3, samples=120)
    right, wrong = trace.metric.copy(), trace.metric.copy()
    right[:, 7], wrong[:, 7] = 1, (0, 0, 1)
    before = cross_fit(replace(trace, metric=right), seed=1).confidence
    after = cross_fit(replace(trace, metric=wrong), seed=1).confidence
    np.testing.assert_array_equal(before[:, 7], after[:, 7])
    assert (before[:-1] != after[:-1]).any()


def test_the_faster_confidence_is_taken() -> None:
    said: list[str] = []
    found = settle_confidence(make_choices(4, samples=2000), COSTS, AUTO, said.append)
    assert list(found.learned) == ["cut0", "cut1"]
    assert "the learned one is taken" in said[0]
    fair = make_choices(4, samples=2000, unfair=0.0)
    kept = settle_confidence(fair, COSTS, replace(AUTO, confidence="max-softmax"), said.append)
    assert (kept.trace, dict(kept.learned), len(said)) == (fair, {}, 1)
    bare = replace(fair, features=None)
    assert settle_confidence(bare, COSTS, AUTO, said.append).trace is bare
    with pytest.raises(UsageError, match="no features of the answers"):
        settle_confidence(bare, COSTS, LEARNED)
    with pytest.raises(UsageError, match="unknown confidence 'learnt'"):
        PlanConfig(confidence="learnt")


def test_without_a_certificate_all_samples_are_for_tuning() -> None:
    config = replace(LEARNED, certify=CertifyConfig(method="none"))
    np.testing.assert_array_equal(tuning_samples(10, config), np.arange(10))
    assert len(tuning_samples(10, LEARNED)) == 5
    assert len(tuning_samples(1000, LEARNED)) == 200


def test_learned_plans_are_certified_and_save_more() -> None:
    trace = make_choices(5, samples=4000)
    config = PlanConfig(confidence="learned", tolerance=0.02)
    settled = settle_confidence(trace, COSTS, config)
    times = []
    for each in (trace, settled.trace):
        problem = make_problem(each, COSTS, config.tolerance)
        certified = plan_certified(problem, find_search("joint survey"), config.certify)
        assert certified.boldest.cuts
        times.append(problem.price(certified.boldest).times.mean_ms)
    assert times[1] < times[0]


def test_validation_fits_anew_to_every_set() -> None:
    population = make_choices(6, samples=800)
    config, certify = ValidationConfig(tolerance=0.05, resplits=3, samples=200), CertifyConfig(delta=0.2)
    methods = make_methods(COSTS, config, certify, search="joint survey", step=0.05, learns=True)
    records = {record.method: record for record in validate_methods(population, COSTS, methods, config)}
    learned = records["joint survey, certified, learned confidence"]
    assert (learned.loss <= 0.05).mean() >= 0.5
    assert (learned.latency_ratio != records["joint survey, certified"].latency_ratio).any()

"""Certified plans: validity by simulation on populations whose truth is known, and what bad traces lead to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from artifacts import InputError, NoPlanError, Trace, UsageError
from calibration.certify.risk_tests import choose_test, split_for_tuning
from planner import (
    NO_EXITS,
    Exits,
    NetworkCosts,
    SearchProblem,
    SlowBatchRule,
    evaluate_exits,
    expect_times,
    plan_greedy,
)
from planner.certify.certified import CertifiedPlans, plan_certified
from planner.certify.evidence import metric_under, remark_on_risk, risk_trace
from planner.certify.test_order import choose_order, make_path
from planner.config import CertifyConfig
from tests.planner.planning_worlds import make_costs, make_problem, make_trace, search_by

COSTS = make_costs(0, exits=2, head=0.01)


ANY_BATCHES = SlowBatchRule(share=0.0, stay_allowance=None)


def problem_of(trace: Trace, tolerance: float, costs: NetworkCosts = COSTS) -> SearchProblem:
    return make_problem(trace, costs, tolerance, slow_batches=ANY_BATCHES)


def mean_ms(trace: Trace, plan: Exits) -> float:
    return expect_times(COSTS.plan_costs(plan.cuts), evaluate_exits(trace, plan).survival).mean_ms


@search_by
def search_one_exit(trace: Trace, tolerances: Sequence[float]) -> list[Exits]:
    """The lowest threshold of the first exit that keeps each tolerance on this trace."""
    plans = [Exits(cuts=trace.exits[:1], thresholds=(float(t),)) for t in np.linspace(1, 0.3, 24)]
    kept = [metric_under(trace, plan).mean(dtype=float) for plan in plans]
    found = []
    for tolerance in tolerances:
        good = [plan for plan, metric in zip(plans, kept, strict=True) if metric >= (1 - tolerance) * trace.full_metric]
        found.append(good[-1] if good else NO_EXITS)
    return found


def population(seed: int, *, graded: bool = False, samples: int = 4000) -> Trace:
    """Two exits whose confidence tells how likely the answer is right; the final head is better and independent."""
    random = np.random.default_rng(seed)
    ease = random.random(samples)
    confidence = np.clip(ease + random.normal(0, 0.05, (3, samples)), 0, 1)
    chance = np.stack([0.55 + 0.45 * ease, 0.7 + 0.3 * ease, np.full(samples, 0.93)])
    draw = random.random(samples)  # shared: most samples are right or wrong for all exits alike
    metric = np.clip(chance + random.normal(0, 0.05, (3, samples)), 0, 1) if graded else draw < chance
    return Trace(
        exits=("cut0", "cut1"), confidence=confidence.astype(np.float32), metric=metric.astype(np.float32),
        agreement=np.concatenate([draw < chance[:2] + 0.07, np.ones((1, samples), bool)]),
    )  # fmt: skip


def true_risk(trace: Trace, plan: Exits) -> float:
    return 1 - metric_under(trace, plan).mean(dtype=float) / trace.full_metric


@pytest.mark.parametrize(("risk", "graded"), [("metric", False), ("metric", True), ("agreement", False)])
def test_certified_plans_exceed_the_tolerance_at_most_with_delta(risk: str, graded: bool) -> None:
    """Redrawn calibration sets of a population; the same search without a certificate fails about every second time."""
    whole = risk_trace(population(1, graded=graded), risk)
    random = np.random.default_rng(2)
    rounds, tolerance, delta = 40, 0.05, 0.2
    violations = uncertified = with_exits = 0
    for seed in range(rounds):
        drawn = whole.select(random.integers(0, whole.sample_count, 800))
        settings = CertifyConfig(delta=delta, seed=seed, risk=risk)
        found = plan_certified(problem_of(drawn, tolerance), search_one_exit, settings)
        risks = [true_risk(whole, plan) for plan in found.certificates]
        violations += max(risks) > tolerance
        with_exits += len(risks) > 1
        (alone,) = search_one_exit(problem_of(drawn, tolerance))
        uncertified += true_risk(whole, alone.best.exits) > tolerance
    assert violations / rounds <= delta + 3 * np.sqrt(delta * (1 - delta) / rounds)
    assert uncertified / rounds > 0.25
    assert with_exits / rounds > 0.9


def test_first_bad_plan_passes_with_delta_at_most_and_nearly_so() -> None:
    """The sequence is as bold as it may be: a plan exactly at the tolerance passes with a chance of about delta."""
    whole = population(3, samples=20000)
    plan = Exits(cuts=("cut0",), thresholds=(0.4,))
    tolerance, delta = float(true_risk(whole, plan)), 0.2
    assert tolerance > 0.02
    random = np.random.default_rng(0)
    passed = 0
    for seed in range(200):
        drawn = whole.select(random.integers(0, whole.sample_count, 2000))
        split = split_for_tuning(2000, seed=seed)
        tuning, held_out = drawn.select(split.tuning), drawn.select(split.certification)
        test = choose_test(
            tuning.metric[-1], [metric_under(tuning, plan)], tolerance=tolerance, risk="metric", delta=delta,
            samples=held_out.sample_count,
        )  # fmt: skip
        passed += test.p_value(held_out.metric[-1], metric_under(held_out, plan), tolerance=tolerance) <= delta
    assert 0.05 < passed / 200 <= delta + 3 * np.sqrt(delta * (1 - delta) / 200)


def certified(trace: Trace, *, tolerance: float = 0.05, **settings: object) -> CertifiedPlans:
    return plan_certified(problem_of(trace, tolerance), plan_greedy, CertifyConfig(**settings))


def test_search_never_sees_the_samples_of_the_test() -> None:
    """Whatever happens to them, the same plans are tried in the same order with the same test."""
    trace = population(4, samples=1500)
    split = split_for_tuning(1500, seed=0)
    spoiled = trace.metric.copy()
    spoiled[:-1, split.certification] = 0
    before, after = certified(trace), certified(replace(trace, metric=spoiled))
    assert [plan.exits for plan in before.sequence] == [plan.exits for plan in after.sequence]
    assert before.boldest.cuts
    assert after.boldest == NO_EXITS
    assert after.shortage is not None
    assert after.shortage.needed is None or after.shortage.needed > 1500
    hopeless = replace(after.shortage, needed=None)
    assert "more samples alone would hardly help" in hopeless.describe(tolerance=0.05, delta=0.05)


def test_certificate_says_what_was_done() -> None:
    trace = population(5, samples=3001)
    found = certified(trace, seed=7)
    split = split_for_tuning(3001, seed=7)
    passed = [plan for plan in found.sequence if plan.certificate]
    assert passed == list(found.sequence[: len(passed)])
    for position, plan in enumerate(passed, start=1):
        certificate = plan.certificate
        assert (certificate.position, certificate.bound, certificate.risk) == (position, 0.05, "metric")
        assert certificate.p_value == plan.p_value <= certificate.delta == 0.05
        assert certificate.observed == pytest.approx(true_risk(trace.select(split.certification), plan.exits))
        assert (certificate.samples, certificate.tuning_samples) == (2401, 600)
        assert certificate.tuning_digest == split.tuning_digest != certificate.certification_digest
        assert certificate.finite_sample
    tried = [plan.p_value is not None for plan in found.sequence]
    assert tried == sorted(tried, reverse=True)
    assert found.no_exits.method == "no exits"
    assert found.certificates[found.boldest] == passed[-1].certificate


def test_plans_are_faster_from_one_to_the_next() -> None:
    trace = population(6)
    found = certified(trace)
    tuning = trace.select(found.split.tuning)
    means = [mean_ms(tuning, plan.exits) for plan in found.sequence]
    assert means == sorted(means, reverse=True)
    assert len(means) > 2
    assert means[0] < mean_ms(tuning, NO_EXITS)


def test_a_path_goes_from_safe_to_bold_in_small_steps() -> None:
    """So the sequence goes nearly as far as it could: a small step further fails."""
    path = make_path(Exits(cuts=("cut0", "cut1"), thresholds=(0.9, 0.5)))
    thresholds = np.array([plan.thresholds for plan in path])
    assert (np.diff(thresholds, axis=0) <= 0).all()
    assert thresholds[0] == pytest.approx((0.998, 0.99))
    assert thresholds[-1] == pytest.approx((0.8, 0.0))
    assert np.diff(thresholds, axis=0).min() > -0.011
    assert any(plan.thresholds == pytest.approx((0.9, 0.5), abs=2e-3) for plan in path)
    trace = population(4, samples=6000)
    coarse = [Exits(cuts=("cut0",), thresholds=(threshold,)) for threshold in (0.9, 0.7, 0.5, 0.3, 0.1)]
    found = plan_certified(problem_of(trace, 0.05), search_by(lambda *_: coarse), CertifyConfig())
    tested = [plan.exits.thresholds[0] for plan in found.sequence if plan.p_value is not None]
    assert found.sequence[len(tested) - 1].certificate is None
    assert 0 < tested[-2] - tested[-1] <= 0.05 + 1e-6
    assert len({plan.exits.cuts for plan in found.sequence}) == 1


def test_the_path_that_is_the_fastest_where_it_ends_is_tested() -> None:
    """Both exits lose the same on all samples that leave, and the first one is the faster."""
    trace = population(15, samples=4000)
    useless = replace(trace, confidence=np.stack([trace.confidence[0], trace.confidence[0], trace.confidence[2]]))
    metric = np.stack([trace.metric[1], trace.metric[1], trace.metric[2]])
    both = [Exits(cuts=(cut,), thresholds=(0.8,)) for cut in ("cut1", "cut0")]
    problem = problem_of(replace(useless, metric=metric), 0.05)
    _, order = choose_order(problem, both, risk="metric", delta=0.05, samples=4000)
    assert {plan.cuts for plan in order} == {("cut0",)}


def test_too_few_samples_are_counted_and_a_tolerance_is_offered() -> None:
    whole = population(7)
    few = certified(whole.select(np.arange(160)), tolerance=0.02)
    assert few.boldest == NO_EXITS
    shortage = few.shortage
    assert shortage is not None
    assert shortage.least <= 298 < 300
    if shortage.needed is not None:
        assert shortage.needed > 160
    assert shortage.offered > 0.02
    said = shortage.describe(tolerance=0.02, delta=0.05)
    assert "160 samples" in said
    assert "--tolerance" in said
    assert "--certify none" in said


@pytest.mark.parametrize("samples", [2, 3, 10])
def test_a_handful_of_samples_certifies_nothing(samples: int) -> None:
    trace = population(8).select(np.arange(samples))
    trace = replace(trace, metric=np.ones_like(trace.metric))
    found = certified(trace, tolerance=0.01)
    assert found.boldest == NO_EXITS
    assert list(found.certificates) == [NO_EXITS]


def test_one_sample_is_refused() -> None:
    with pytest.raises(InputError, match="1 samples cannot be split"):
        certified(population(8).select(np.arange(1)))


def test_constant_confidences_lead_to_a_sound_plan() -> None:
    """All samples leave at the first exit or none does; the certificate is still true."""
    trace = population(9)
    flat = replace(trace, confidence=np.full_like(trace.confidence, 0.5))
    found = certified(flat, tolerance=0.05)
    assert found.boldest == NO_EXITS
    perfect = replace(flat, metric=np.repeat(trace.metric[-1:], 3, axis=0))
    assert certified(perfect, tolerance=0.05).boldest.cuts


def test_one_class_and_a_useless_network() -> None:
    trace = population(10)
    ones = certified(replace(trace, metric=np.ones_like(trace.metric)))
    assert ones.boldest.cuts
    with pytest.raises(NoPlanError, match="no meaning"):
        certified(replace(trace, metric=np.zeros_like(trace.metric)))


def test_metric_right_on_one_half_only_has_no_plan() -> None:
    trace = population(11, samples=40)
    split = split_for_tuning(40, seed=0)
    metric = trace.metric.copy()
    metric[:, split.certification] = 0
    with pytest.raises(NoPlanError, match="or of those for the test"):
        certified(replace(trace, metric=metric))


def test_agreement_needs_no_labels() -> None:
    trace = risk_trace(replace(population(12), metric=np.zeros((3, 4000), np.float32)), "agreement")
    found = certified(trace, risk="agreement")
    assert found.boldest.cuts
    certificate = found.certificates[found.boldest]
    assert (certificate.method, certificate.risk) == ("binomial", "agreement")


def test_noise_in_the_times_does_not_touch_the_certificate() -> None:
    """An inference time matrix that is no monotone function of the batch makes other plans, not wrong ones."""
    trace = population(13)
    random = np.random.default_rng(0)
    noisy = {
        name: tuple(float(x) for x in np.array(row) * random.uniform(0.2, 3, len(row)))
        for name, row in COSTS.itm.median_ms.items()
    }
    costs = NetworkCosts(itm=replace(COSTS.itm, median_ms=noisy), cuts=COSTS.cuts, batch_size=8)
    found = plan_certified(problem_of(trace, 0.05, costs), plan_greedy, CertifyConfig())
    for plan in found.certificates:
        assert true_risk(trace, plan) <= 0.05


def test_holes_in_the_times_are_refused() -> None:
    with pytest.raises(InputError, match="not a time"):
        replace(COSTS.itm, median_ms={**COSTS.itm.median_ms, "full": (1.0, 2.0, float("nan"), 4.0)})
    holes = {name: row for name, row in COSTS.itm.median_ms.items() if name != "exit_cut1"}
    spread = {name: COSTS.itm.spread_ms[name] for name in holes}
    costs = NetworkCosts(itm=replace(COSTS.itm, median_ms=holes, spread_ms=spread), cuts=COSTS.cuts, batch_size=8)
    with pytest.raises(UsageError, match="exit_cut1"):
        plan_certified(problem_of(population(1), 0.05, costs), plan_greedy, CertifyConfig())


@pytest.mark.parametrize("name", ["confidence", "metric"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 1.1])
def test_values_that_are_none_are_refused(name: str, value: float) -> None:
    trace = make_trace(0)
    spoiled = getattr(trace, name).copy()
    spoiled[1, 5] = value
    with pytest.raises(InputError, match=name):
        replace(trace, **{name: spoiled})


def test_exits_out_of_order_or_twice_are_refused() -> None:
    trace = make_trace(0, exits=2)
    with pytest.raises(InputError, match="names of their own"):
        replace(trace, exits=("cut0", "cut0"))
    turned = replace(trace, exits=("cut1", "cut0"))
    plan = Exits(cuts=("cut1", "cut0"), thresholds=(0.2, 0.2))
    with pytest.raises(UsageError, match="data flow"):
        choose_order(problem_of(turned, 0.1), [plan], risk="metric", delta=0.05, samples=100)


@pytest.mark.parametrize(
    "settings", [{"delta": 0.0}, {"delta": 1.0}, {"delta": np.nan}, {"method": "lt"}, {"risk": "loss"}, {"seed": -1}]
)
def test_settings_check_themselves(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        CertifyConfig(**settings)


def test_set_metrics_are_certified_by_bootstrap_and_say_so() -> None:
    trace = population(14)
    labels = np.random.default_rng(0).integers(0, 2, trace.sample_count).astype(np.int32)
    predictions = np.where(trace.metric > 0.5, labels, 1 - labels).astype(np.int32)
    classed = replace(trace, predictions=predictions, labels=labels)
    found = certified(classed, risk="f1")
    certificate = found.certificates[found.boldest]
    assert found.boldest.cuts
    assert (certificate.risk, certificate.method, certificate.finite_sample) == ("f1", "bootstrap", False)
    with pytest.raises(InputError, match="--risk f1 needs the class"):
        certified(trace, risk="f1")


@pytest.mark.parametrize(
    ("task", "risk", "words"),
    [("matthews", "metric", "--risk matthews"), ("f1", "metric", "--risk f1"), ("matthews", "matthews", None),
     ("matthews", "agreement", None), ("classification", "metric", None), ("segmentation", "metric", None)],
)  # fmt: skip
def test_whose_share_of_right_answers_is_not_the_metric_is_told(task: str, risk: str, words: str | None) -> None:
    remark = remark_on_risk(task, risk)
    assert remark is None if words is None else words in str(remark)

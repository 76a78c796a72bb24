"""The exact paired test against brute force: its law, its bound over the nuisance, its size, its power."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import InputError
from calibration.certify.paired import Pairs, _Region, paired_exact
from calibration.certify.pvalues import betting, hoeffding_bentkus

LEVELS = (0.01, 0.05, 0.1, 0.3)


def multinomial(counts: tuple[int, ...], n: int, chances: tuple[float, ...]) -> float:
    """Probability of some counts of n draws; what is left over is the last kind."""
    counts, chances = (*counts, n - sum(counts)), (*chances, max(0.0, 1 - sum(chances)))
    ways = math.factorial(n) // math.prod(map(math.factorial, counts))
    return ways * math.prod(p**k for p, k in zip(chances, counts, strict=True))


def extremeness(lost: int, won: int, n: int, centre: float) -> float:
    return (lost - won - n * centre) / math.sqrt(lost + won + n * centre / 2)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_the_bound_holds_for_every_share_of_discordant_pairs(data: st.DataObject) -> None:
    """The claims of the module: the law of the region is exact, and nowhere is it above the bound, or far below."""
    n = data.draw(st.integers(5, 40))
    lost = data.draw(st.integers(0, n))
    won = data.draw(st.integers(0, n - lost))
    centre, difference = data.draw(st.floats(1 / n, 0.4)), data.draw(st.floats(0.0, 0.3))
    low = data.draw(st.floats(max(difference, 1e-3), 0.6))
    high = data.draw(st.floats(low, 1.0))
    pairs = Pairs(samples=n, right=n, lost=lost, won=won)
    region = _Region.of(pairs, centre=centre, difference=difference, low=low, high=high)
    limit = extremeness(lost, won, n, centre) + 1e-9
    inside = [(a, b) for a in range(n + 1) for b in range(n + 1 - a) if extremeness(a, b, n, centre) <= limit]
    exact = [
        sum(multinomial(counts, n, ((psi + difference) / 2, (psi - difference) / 2)) for counts in inside)
        for psi in np.linspace(low, high, 23).tolist()
    ]
    bound = region.largest(low, high, aim=0.05)
    assert max(exact) <= bound + 1e-9
    for psi, value in zip(np.linspace(low, high, 23).tolist(), exact, strict=True):
        assert region.probability(psi) == pytest.approx(value, abs=2e-6)
    if 0.005 < max(exact) < 0.1:  # where it matters
        assert bound <= 1.05 * max(exact) + 0.002


@pytest.mark.parametrize("tolerance", [0.0, 0.3, 0.6])
def test_exact_paired_test_has_its_size(tolerance: float) -> None:
    """Summed over all outcomes, at laws on the boundary of the hypothesis: P(p <= alpha) <= alpha."""
    n = 12
    p_values = {
        (both, lost, won): Pairs(samples=n, right=both + lost, lost=lost, won=won).p_value(
            tolerance=tolerance, centre=0.8 * tolerance, aim=0.1
        )
        for both, lost, won in itertools.product(range(n + 1), repeat=3)
        if both + lost + won <= n
    }
    assert min(p_values.values()) < 0.1 or tolerance == 0  # there n is too small
    for right, won in itertools.product((0.3, 0.6, 0.85, 1.0), (0.0, 0.05, 0.15)):
        lost = tolerance * right + won  # the boundary: p10 - p01 = tolerance * p1
        if lost > right or right + won > 1:
            continue
        for alpha in LEVELS:
            size = sum(
                multinomial(counts, n, (right - lost, lost, won)) for counts, p in p_values.items() if p <= alpha
            )
            assert size <= alpha + 1e-9, (right, won, alpha)


@pytest.mark.parametrize(("won", "centre"), [(0.0, 1.0), (0.01, 1.0), (0.03, 0.7)])
def test_a_plan_just_at_the_tolerance_passes_with_delta_at_most_and_nearly_so(won: float, centre: float) -> None:
    n, tolerance, right, delta, rounds = 1500, 0.02, 0.9, 0.1, 2500
    lost = tolerance * right + won
    random = np.random.default_rng(0)

    @functools.cache
    def passes(right: int, lost: int, won: int) -> bool:
        pairs = Pairs(samples=n, right=right, lost=lost, won=won)
        return pairs.p_value(tolerance=tolerance, centre=centre * tolerance * right / n, aim=delta) <= delta

    draws = random.multinomial(n, [right - lost, lost, won, 1 - right - won], size=rounds)
    passed = sum(passes(round(right * n), int(lost), int(won)) for _, lost, won, _ in draws) / rounds
    assert passed <= delta + 3 * math.sqrt(delta * (1 - delta) / rounds)
    assert passed > 0.5 * delta


def test_power_where_full_and_early_nearly_always_agree() -> None:
    """5,000 pairs, 93 % right, 1 % lost and 0.5 % won: well within 1 %, but only tests that use the pairing see it."""
    full, early = np.ones(5000), np.ones(5000)
    full[:25], early[25:75] = 0, 0
    full[75:400], early[75:400] = 0, 0
    order = np.random.default_rng(0).permutation(5000)
    full, early = full[order], early[order]
    losses, level = (1 + 0.99 * full - early) / 1.99, 1 / 1.99
    exact = paired_exact(full, early, tolerance=0.01, centre=0.0093, aim=0.05)
    assert exact < 0.02
    assert exact < betting(losses, level, delta=0.05) < 0.15
    assert hoeffding_bentkus(losses, level) > 0.5


def test_how_much_may_be_lost() -> None:
    """The figures of the module: 5,000 pairs with 100 discordant ones; samples that never err."""

    def p_value(samples: int, lost: int, won: int, right: float) -> float:
        pairs = Pairs(samples=samples, right=round(right * samples), lost=lost, won=won)
        return pairs.p_value(tolerance=0.01, centre=0.01 * right, aim=0.05)

    assert p_value(5000, 64, 36, 0.93) <= 0.05 < p_value(5000, 65, 35, 0.93)
    assert p_value(340, 0, 0, 0.95) <= 0.05 < p_value(330, 0, 0, 0.95)


def test_fractional_metrics_are_rounded_against_the_plan() -> None:
    full, early = np.full(500, 0.4), np.full(500, 0.9)
    assert paired_exact(full, early, tolerance=0.1, centre=0.04, aim=0.05) == 1
    assert paired_exact(full, np.ones(500), tolerance=0.1, centre=0.04, aim=0.05) < 0.01


@pytest.mark.parametrize("n", [1, 2, 10, 100])
def test_nothing_passes_on_a_handful_of_samples(n: int) -> None:
    assert paired_exact(np.ones(n), np.ones(n), tolerance=0.01, centre=0.01, aim=0.05) > 0.05


@pytest.mark.parametrize("lost", [0, 20])
@pytest.mark.parametrize("right", [0, 20])
def test_outcomes_at_the_ends(right: int, lost: int) -> None:
    full = np.repeat([1.0, 0.0], [right, 20 - right])
    early = np.full(20, 0.0 if lost else 1.0)
    for tolerance in (0.0, 0.99):
        p_value = paired_exact(full, early, tolerance=tolerance, centre=tolerance, aim=0.05)
        assert 0 < p_value <= 1
        assert (p_value == 1) == (early.sum() <= (1 - tolerance) * full.sum())


@pytest.mark.parametrize("bad", [[], [np.nan], [1.5], [-0.1], [[0.5]]])
def test_what_is_no_metric_is_refused(bad: list) -> None:
    with pytest.raises(InputError):
        paired_exact(np.array(bad), np.ones(len(bad)), tolerance=0.1, centre=0.1, aim=0.05)
    with pytest.raises(InputError, match="belong together"):
        paired_exact(np.ones(5), np.ones(4), tolerance=0.1, centre=0.1, aim=0.05)

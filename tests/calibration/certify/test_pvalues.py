"""p-values against brute force: exact laws by convolution, exact sizes by summing over every possible outcome."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from artifacts import InputError
from calibration.certify.binomials import binomial_cdf, binomial_pmf_at
from calibration.certify.pvalues import (
    betting,
    binomial_tail,
    difference_cdf,
    hoeffding_bentkus,
    lower_share,
    paired_exact,
    paired_exact_counts,
    upper_share,
)

shares = st.floats(0.001, 0.999)
LEVELS = (0.01, 0.05, 0.1, 0.3)


def brute_difference(d: int, n: int, discordant: float, difference: float) -> float:
    draw = np.array([(discordant - difference) / 2, 1 - discordant, (discordant + difference) / 2])
    law = np.ones(1)
    for _ in range(n):
        law = np.convolve(law, draw)
    return float(law[: max(0, d + n + 1)].sum())


@settings(deadline=None)
@given(st.integers(1, 200), st.floats(0.0005, 0.4), st.data())
def test_clopper_pearson_limits_invert_the_binomial(n: int, eta: float, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    high, low = upper_share(hits, n, eta), lower_share(hits, n, eta)
    assert low <= hits / n <= high
    assert high == 1 if hits == n else binomial_cdf(hits, n, high) == pytest.approx(eta, rel=1e-6)
    assert low == 0 if hits == 0 else binomial_cdf(n - hits, n, 1 - low) == pytest.approx(eta, rel=1e-6)


@settings(deadline=None)
@given(st.integers(1, 60), st.floats(0.001, 1), st.floats(0, 1), st.data())
def test_difference_cdf_equals_the_convolution(n: int, discordant: float, part: float, data: st.DataObject) -> None:
    d = data.draw(st.integers(-n, n))
    expected = brute_difference(d, n, discordant, part * discordant)
    found = difference_cdf(d, n, discordant, part * discordant)
    assert found == pytest.approx(expected, abs=1e-10)
    assert found >= expected - 1e-11


def test_difference_cdf_without_discordance() -> None:
    assert [difference_cdf(d, 9, 0.0, 0.0) for d in (-1, 0, 1)] == [0, 1, 1]


@settings(deadline=None)
@given(st.integers(2, 300), st.floats(0.0, 0.3), st.data())
def test_the_supremum_lies_in_the_corner(n: int, difference: float, data: st.DataObject) -> None:
    """The claim that the exact paired test stands on: over the confidence set, P(D <= d) is largest in its corner."""
    discordant = data.draw(st.floats(difference, 0.5))
    d = data.draw(st.integers(-n, n))
    assume(d <= (n - 1) * difference - 2)
    corner = difference_cdf(d, n, discordant, difference)
    for psi in np.linspace(difference, discordant, 7):
        for e in np.linspace(difference, psi, 4):
            assert difference_cdf(d, n, float(psi), float(e)) <= corner + 1e-9


def outcomes(n: int) -> list[tuple[int, int, int]]:
    """All (right both, lost, won) of n samples."""
    return [c for c in itertools.product(range(n + 1), repeat=3) if sum(c) <= n]


def multinomial(counts: tuple[int, int, int], n: int, chances: tuple[float, float, float]) -> float:
    rest = n - sum(counts)
    ways = math.factorial(n) // math.prod(map(math.factorial, (*counts, rest)))
    return ways * math.prod(p**k for p, k in zip((*chances, 1 - sum(chances)), (*counts, rest), strict=True))


@pytest.mark.parametrize("tolerance", [0.0, 0.3, 0.6])
def test_exact_paired_test_has_its_size(tolerance: float) -> None:
    """Summed over all outcomes, at laws on the boundary of the hypothesis: P(p <= alpha) <= alpha."""
    n, eta = 14, 0.01
    p_values = {
        (both, lost, won): paired_exact_counts(n, both + lost, lost, won, tolerance=tolerance, eta=eta)
        for both, lost, won in outcomes(n)
    }
    assert min(p_values.values()) < 0.3 or tolerance == 0  # there n is too small
    for right, won in itertools.product((0.3, 0.6, 0.85, 1.0), (0.0, 0.05, 0.15)):
        lost = tolerance * right + won  # the boundary: p10 - p01 = tolerance * p1
        if lost > right or right + won > 1:
            continue
        for alpha in LEVELS:
            size = sum(
                multinomial(counts, n, (right - lost, lost, won)) for counts, p in p_values.items() if p <= alpha
            )
            assert size <= alpha + 1e-9, (right, won, alpha)


@pytest.mark.parametrize("level", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("n", [5, 40])
def test_tests_of_a_mean_have_their_size(n: int, level: float) -> None:
    hits = np.arange(n + 1)
    chance = binomial_pmf_at(hits, n, level)
    for p_value in (hoeffding_bentkus, binomial_tail):
        found = np.array([p_value((np.arange(n) < k).astype(float), level) for k in hits])
        for alpha in LEVELS:
            assert chance[found <= alpha].sum() <= alpha + 1e-12


@pytest.mark.parametrize("level", [0.2, 0.5])
def test_betting_has_its_size_over_all_sequences(level: float) -> None:
    n = 12
    sequences = np.array(list(itertools.product((0.0, 1.0), repeat=n)))
    chance = np.prod(np.where(sequences == 1, level, 1 - level), axis=1)
    found = np.array([betting(row, level, delta=0.1) for row in sequences])
    assert found.min() < 0.3
    for alpha in LEVELS:
        assert chance[found <= alpha].sum() <= alpha + 1e-12


def test_betting_has_its_size_for_graded_losses() -> None:
    random = np.random.default_rng(0)
    found = np.array([betting(random.beta(0.4, 1.6, 150), 0.2, delta=0.1) for _ in range(1500)])
    assert 0.02 < (found <= 0.1).mean() <= 0.1 + 3 * math.sqrt(0.09 / 1500)


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60), shares)
def test_binomial_is_never_less_tight_than_hoeffding_bentkus(losses: list[float], level: float) -> None:
    assert binomial_tail(np.array(losses), level) <= hoeffding_bentkus(np.array(losses), level) + 1e-12


def test_power_where_full_and_early_nearly_always_agree() -> None:
    """5,000 pairs, 93 % right, 1 % lost and 0.5 % won: well within 1 %, but only tests that use the pairing see it."""
    full, early = np.ones(5000), np.ones(5000)
    full[:25], early[25:75] = 0, 0
    full[75:400], early[75:400] = 0, 0
    order = np.random.default_rng(0).permutation(5000)
    full, early = full[order], early[order]
    losses, level = (1 + 0.99 * full - early) / 1.99, 1 / 1.99
    exact = paired_exact(full, early, tolerance=0.01, eta=0.0025)
    assert exact < 0.05
    assert exact < betting(losses, level, delta=0.05) < 0.15
    assert hoeffding_bentkus(losses, level) > 0.5


def test_fractional_metrics_are_rounded_against_the_plan() -> None:
    full, early = np.full(500, 0.4), np.full(500, 0.9)
    assert paired_exact(full, early, tolerance=0.1, eta=0.001) == 1
    assert paired_exact(full, np.ones(500), tolerance=0.1, eta=0.001) < 0.01


def test_nothing_passes_on_a_handful_of_samples() -> None:
    for n in (1, 2, 10, 100):
        assert paired_exact(np.ones(n), np.ones(n), tolerance=0.01, eta=0.0025) > 0.05
        assert binomial_tail(np.zeros(n), 0.01) > 0.05
        assert betting(np.full(n, 1 / 1.99 - 0.01 / 1.99), 1 / 1.99, delta=0.05) > 0.05


@pytest.mark.parametrize("bad", [[], [np.nan], [1.5], [-0.1], [[0.5]]])
def test_what_is_no_loss_is_refused(bad: list) -> None:
    for p_value in (hoeffding_bentkus, binomial_tail):
        with pytest.raises(InputError):
            p_value(np.array(bad), 0.5)
    with pytest.raises(InputError):
        betting(np.array(bad), 0.5, delta=0.1)
    with pytest.raises(InputError):
        paired_exact(np.array(bad), np.ones(len(bad)), tolerance=0.1, eta=0.01)


def test_levels_at_the_ends() -> None:
    assert hoeffding_bentkus(np.zeros(5), 0.0) == 1
    assert hoeffding_bentkus(np.zeros(5), 1.0) < 0.01
    assert betting(np.ones(5), 1.0, delta=0.1) == 1
    assert betting(np.array([1, 0.5]), 1.0, delta=0.1) == 0
    with pytest.raises(InputError, match="level"):
        hoeffding_bentkus(np.zeros(5), 1.1)
    with pytest.raises(InputError, match="belong together"):
        paired_exact(np.ones(5), np.ones(4), tolerance=0.1, eta=0.01)

"""p-values against brute force: exact laws by convolution, exact sizes by summing over every possible outcome."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import InputError
from calibration.certify.binomials import binomial_cdf, binomial_pmf_at
from calibration.certify.pvalues import (
    betting,
    binomial_tail,
    hoeffding_bentkus,
    lower_share,
    upper_share,
)

shares = st.floats(0.001, 0.999)
LEVELS = (0.01, 0.05, 0.1, 0.3)


@settings(deadline=None)
@given(st.integers(1, 200), st.floats(0.0005, 0.4), st.data())
def test_clopper_pearson_limits_invert_the_binomial(n: int, eta: float, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    high, low = upper_share(hits, n, eta), lower_share(hits, n, eta)
    assert low <= hits / n <= high
    assert high == 1 if hits == n else binomial_cdf(hits, n, high) == pytest.approx(eta, rel=1e-6)
    assert low == 0 if hits == 0 else binomial_cdf(n - hits, n, 1 - low) == pytest.approx(eta, rel=1e-6)


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


def test_nothing_passes_on_a_handful_of_samples() -> None:
    for n in (1, 2, 10, 100):
        assert binomial_tail(np.zeros(n), 0.01) > 0.05
        assert betting(np.full(n, 1 / 1.99 - 0.01 / 1.99), 1 / 1.99, delta=0.05) > 0.05


@pytest.mark.parametrize("bad", [[], [np.nan], [1.5], [-0.1], [[0.5]]])
def test_what_is_no_loss_is_refused(bad: list) -> None:
    for p_value in (hoeffding_bentkus, binomial_tail):
        with pytest.raises(InputError):
            p_value(np.array(bad), 0.5)
    with pytest.raises(InputError):
        betting(np.array(bad), 0.5, delta=0.1)


def test_levels_at_the_ends() -> None:
    assert hoeffding_bentkus(np.zeros(5), 0.0) == 1
    assert hoeffding_bentkus(np.zeros(5), 1.0) < 0.01
    assert betting(np.ones(5), 1.0, delta=0.1) == 1
    assert betting(np.array([1, 0.5]), 1.0, delta=0.1) == 0
    with pytest.raises(InputError, match="level"):
        hoeffding_bentkus(np.zeros(5), 1.1)

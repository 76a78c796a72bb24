"""Binomial distributions against their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import InputError
from calibration.certify.binomials import binomial_cdf, binomial_pmf, binomial_pmf_at, log_factorial

shares = st.floats(0, 1)
inner_shares = st.floats(0.001, 0.999)


def brute_binomial(k: int, n: int, share: float) -> float:
    return sum(math.comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(k + 1))


def test_log_factorial_is_exact_to_rounding() -> None:
    k = np.array([0, 1, 2, 15, 16, 17, 100, 12345, 10**6])
    np.testing.assert_allclose(log_factorial(k), [math.lgamma(i + 1) for i in k], rtol=1e-14, atol=1e-13)


@settings(deadline=None)
@given(st.integers(1, 60), inner_shares, st.data())
def test_binomial_cdf_equals_the_sum(n: int, share: float, data: st.DataObject) -> None:
    k = data.draw(st.integers(-1, n))
    assert binomial_cdf(k, n, share) == pytest.approx(brute_binomial(k, n, share), abs=1e-12)


def test_binomial_pmf_at_the_ends() -> None:
    assert binomial_pmf_at(np.arange(-1, 4), 2, 0.0).tolist() == [0, 1, 0, 0, 0]
    assert binomial_pmf_at(np.arange(-1, 4), 2, 1.0).tolist() == [0, 0, 0, 1, 0]


@given(st.integers(0, 60), st.lists(shares, min_size=1, max_size=4))
def test_pmf_is_the_binomial_distribution(trials: int, p: list[float]) -> None:
    found = binomial_pmf(trials, p)
    for row, share in zip(found, p, strict=True):
        expected = [math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(trials + 1)]
        np.testing.assert_allclose(row, expected, rtol=1e-9, atol=1e-14)


def test_pmf_is_stable_at_large_batches() -> None:
    found = binomial_pmf(4096, [1e-9, 0.3, 0.5, 1 - 1e-9, 0.0, 1.0])
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-9)
    np.testing.assert_allclose(found @ np.arange(4097), np.array([1e-9, 0.3, 0.5, 1 - 1e-9, 0, 1]) * 4096, rtol=1e-8)
    assert found[4, 0] == 1
    assert found[5, 4096] == 1


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_pmf_refuses_what_is_no_share(share: float) -> None:
    with pytest.raises(InputError, match="within"):
        binomial_pmf(3, share)

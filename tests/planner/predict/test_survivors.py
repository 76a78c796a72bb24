"""The batching pattern matrix against enumeration, Monte Carlo and itself."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import CorruptArtifactError, load_arrays, save_arrays
from planner import BatchingPatternMatrix, binomial_pmf, count_survivors, draw_patterns, survivor_transition

shares = st.floats(0, 1)


@pytest.mark.parametrize("leaves", [[0, 1, 2], [0, 0, 1, 2], [2, 2, 2], [0, 0]])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_survivor_counts_equal_the_enumeration_of_all_batches(leaves: list[int], batch_size: int) -> None:
    """Every batch of B samples drawn with replacement is equally likely; count them all, jointly over two exits."""
    joint = np.zeros((batch_size + 1, batch_size + 1))
    for batch in itertools.product(leaves, repeat=batch_size):
        joint[sum(at > 0 for at in batch), sum(at > 1 for at in batch)] += 1
    joint /= joint.sum()
    s1, s2 = (np.mean([at > k for at in leaves]) for k in (0, 1))
    np.testing.assert_allclose(binomial_pmf(batch_size, s1), joint.sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(binomial_pmf(batch_size, s2), joint.sum(axis=0), atol=1e-12)
    chain = binomial_pmf(batch_size, s1)[:, None] * survivor_transition(batch_size, s2 / s1 if s1 else 0.0)
    np.testing.assert_allclose(chain, joint, atol=1e-12)


@given(st.integers(1, 40), shares, shares)
def test_chain_of_two_exits_has_the_direct_margin(batch_size: int, first: float, second: float) -> None:
    through = binomial_pmf(batch_size, first) @ survivor_transition(batch_size, second)
    np.testing.assert_allclose(through, binomial_pmf(batch_size, first * second), atol=1e-10)


def test_survivor_counts_equal_monte_carlo() -> None:
    """200,000 batches: by Hoeffding an entry is off by more than 0.006 with probability < 33 * 2 exp(-14.4) < 4e-5."""
    random = np.random.default_rng(1)
    leaves = random.random(500) < 0.37
    survive = ~leaves[random.integers(0, 500, (200_000, 32))]
    seen = np.bincount(survive.sum(axis=1), minlength=33) / 200_000
    assert np.abs(seen - binomial_pmf(32, 1 - leaves.mean())).max() < 0.006


def test_recorded_batches_are_consecutive_and_filled_up_from_the_start() -> None:
    survivors = count_survivors(np.array([0, 1, 2, 2, 0]), exit_count=2, batch_size=2)
    assert survivors.tolist() == [[1, 0], [2, 2], [0, 0]]  # (0,1) (2,2) (0,0): the last is filled up with the first
    assert count_survivors(np.array([1]), exit_count=1, batch_size=4).tolist() == [[4]]


def test_recorded_tells_ordered_load_from_random_load() -> None:
    leaves = np.array([[True] * 8 + [False] * 8])
    patterns = draw_patterns(leaves, exits=("a",), thresholds=np.array([0.5]), batch_size=8)
    assert patterns.recorded[0, [0, 8]].tolist() == [0.5, 0.5]
    np.testing.assert_allclose(patterns.probability[0], binomial_pmf(8, 0.5))


def test_matrix_comes_back_from_its_file(tmp_path: Path) -> None:
    leaves = np.random.default_rng(0).random((3, 50)) < 0.4
    patterns = draw_patterns(leaves, exits=("a", "b", "c"), thresholds=np.array([0.1, 0.2, 0.3]), batch_size=4)
    save_arrays(tmp_path / "bpm.npz", patterns.to_arrays())
    found = BatchingPatternMatrix.from_arrays(load_arrays(tmp_path / "bpm.npz"))
    assert (found.exits, found.batch_size) == (patterns.exits, 4)
    for name in ("thresholds", "probability", "recorded"):
        np.testing.assert_array_equal(getattr(found, name), getattr(patterns, name))


def test_matrix_of_no_exits_comes_back(tmp_path: Path) -> None:
    patterns = draw_patterns(np.zeros((0, 5), bool), exits=(), thresholds=np.zeros(0), batch_size=4)
    save_arrays(tmp_path / "bpm.npz", patterns.to_arrays())
    assert BatchingPatternMatrix.from_arrays(load_arrays(tmp_path / "bpm.npz")).exits == ()


def test_matrix_with_a_missing_array_is_refused() -> None:
    with pytest.raises(CorruptArtifactError, match="probability"):
        BatchingPatternMatrix.from_arrays({"exits": np.array(["a"])})

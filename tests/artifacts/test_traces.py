"""The trace's helpers against plain Python."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from artifacts import find_first_true


def test_the_first_true_row_of_each_column() -> None:
    flags = np.array([[True, False, False, True], [False, True, False, True]])
    assert find_first_true(flags).tolist() == [0, 1, 2, 0]
    assert find_first_true(np.empty((0, 3), np.bool_)).tolist() == [0, 0, 0]


@given(rows=st.integers(0, 5), columns=st.integers(0, 9), seed=st.integers(0, 99))
def test_it_is_what_a_loop_finds(rows: int, columns: int, seed: int) -> None:
    flags = np.random.default_rng(seed).random((rows, columns)) < 0.4
    expected = [next((row for row in range(rows) if flags[row, column]), rows) for column in range(columns)]
    assert find_first_true(flags).tolist() == expected

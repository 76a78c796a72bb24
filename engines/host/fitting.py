"""Fitting to a length: rows of several lengths, padded or cut off to the smallest length that holds a whole batch.

A row ends at the last position that its mask does not hide. What lies behind that is padding: the export proved that
answers do not depend on it, whatever it holds and however much of it there is. So a batch may come padded to its own
longest row, or to any other length; the columns that no row of it needs are cut off, and missing ones are filled with
zeros, in the mask too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from artifacts import InputError, SequenceSpec, TensorSpec
from engines.protocols import Buffer

_SHOWN_ROWS = 5

Arrays = Sequence[np.ndarray | Buffer]


def find_length(arrays: Arrays, inputs: Sequence[TensorSpec]) -> int:
    """Returns how many positions the rows of checked arrays have; 0 where rows have one shape."""
    for array, spec in zip(arrays, inputs, strict=True):
        if spec.length_axes:
            return int(array.shape[1 + spec.length_axes[0]])
    return 0


def fit_length(arrays: Arrays, inputs: Sequence[TensorSpec], sequence: SequenceSpec) -> tuple[np.ndarray | Buffer, ...]:
    """Returns the arrays of a batch at the smallest length that holds its rows.

    Args:
        arrays: one per input, checked, all of one length, which may be none of the sequence's.
        inputs: those of the network.
        sequence: the lengths that there are engines for, and the mask.

    Returns:
        The arrays themselves where they have that length; otherwise views, or padded copies. Arrays on a GPU are never
        looked at: they are returned as they are.

    Raises:
        InputError: a row is longer than the largest length, or has no position at all; or arrays on a GPU have a length
            that there are no engines for.
    """
    given = find_length(arrays, inputs)
    if not all(isinstance(array, np.ndarray) for array in arrays):
        if given not in sequence.lengths:
            raise InputError(
                f"arrays on the GPU have rows of length {given}, but there are engines for "
                f"{', '.join(map(str, sequence.lengths))}: pad them to one of these with '{sequence.mask}' 0, or pass "
                "arrays of the host, which are padded here"
            )
        return tuple(arrays)
    hosted = [np.asarray(array) for array in arrays]
    mask = next(array for array, spec in zip(hosted, inputs, strict=True) if spec.name == sequence.mask)
    wanted = sequence.bucket(_longest_row(mask, sequence))
    if wanted == given:
        return tuple(arrays)
    return tuple(resize_rows(array, spec, wanted) for array, spec in zip(hosted, inputs, strict=True))


def row_lengths(mask: np.ndarray) -> np.ndarray:
    """Returns how long each row is by its mask (B, L): (B,) int64, the place behind its last position; 0 for none."""
    kept = mask != 0
    found: np.ndarray = np.where(kept.any(axis=1), kept.shape[1] - kept[:, ::-1].argmax(axis=1), 0)
    return found


def _longest_row(mask: np.ndarray, sequence: SequenceSpec) -> int:
    lengths = row_lengths(mask)
    if not lengths.all():
        raise InputError(
            f"'{sequence.mask}' hides every position of rows {_show(np.flatnonzero(lengths == 0))}. Give each row at "
            "least one position that is not padding, or leave it out"
        )
    longest = int(lengths.max())
    if longest > sequence.lengths[-1]:
        raise InputError(
            f"rows {_show(np.flatnonzero(lengths > sequence.lengths[-1]))} are up to {longest} long, and the network "
            f"was exported for rows up to {sequence.lengths[-1]}. Cut them off there, or export and plan again with "
            f"--lengths {','.join(map(str, sequence.lengths))},{longest}"
        )
    return longest


def resize_rows(array: np.ndarray, spec: TensorSpec, length: int) -> np.ndarray:
    """Cuts off, or fills up with zeros, every axis of an array (B, ...) of the host that is as long as its rows.

    Args:
        array: of an input.
        spec: the input.
        length: no shorter than any row is by its mask.

    Returns:
        The array itself where it has that length; otherwise a view, or a padded copy.
    """
    for axis in spec.length_axes:
        given = array.shape[axis + 1]
        if length < given:
            array = array[(slice(None),) * (axis + 1) + (slice(length),)]
        elif length > given:
            widths = [(0, length - given if place == axis + 1 else 0) for place in range(array.ndim)]
            array = np.pad(array, widths)
    return array


def _show(rows: np.ndarray) -> str:
    shown = ", ".join(map(str, rows[:_SHOWN_ROWS].tolist()))
    return shown + (", ..." if len(rows) > _SHOWN_ROWS else "")

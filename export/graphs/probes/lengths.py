"""The length axis: which axes of a tensor follow the length of the rows, and the proof that padding does not show.

The same random rows are run at every length that the network is to be served at. Then the rows of one length are run
again at each longer one: the mask is 0 at what is added, and all other inputs hold random values there. The answers
must be those of before; so the values that pad a row at run time do not matter either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from artifacts import SequenceSpec, TensorSpec
from export.graphs.probes.lines import BatchLine, join_lines

Rows = Mapping[str, np.ndarray]
Verdict = TensorSpec | BatchLine | str


def shorten_rows(rows: Rows, inputs: Sequence[TensorSpec], length: int) -> dict[str, np.ndarray]:
    """Returns the rows cut off behind ``length``: input name -> (count, ...)."""
    found = dict(rows)
    for spec in inputs:
        for axis in spec.length_axes:
            found[spec.name] = found[spec.name].take(range(length), axis=axis + 1)
    return found


def mask_rows(rows: Rows, mask: str, length: int) -> dict[str, np.ndarray]:
    """Returns the rows with a mask that is 0 from ``length`` on; the other inputs stay as they are there."""
    masked = rows[mask].copy()
    masked[:, length:] = 0
    return {**rows, mask: masked}


def binary_mask(rows: Rows, mask: str) -> dict[str, np.ndarray]:
    """Returns the rows with a mask of zeros and ones, 1 in the first place of every row."""
    masked = (rows[mask] > 0).astype(rows[mask].dtype)
    masked[:, 0] = 1
    return {**rows, mask: masked}


def padded_pairs(rows: Rows, inputs: Sequence[TensorSpec], sequence: SequenceSpec) -> Iterator[tuple[str, Rows, Rows]]:
    """Yields pairs of rows whose answers must be equal, each with what is done to the second of them in words.

    Args:
        rows: of the largest length, full of random values.
        inputs: the network's.
        sequence: lengths and mask.
    """
    lengths = sequence.lengths
    for place, length in enumerate(lengths):
        padded = mask_rows(rows, sequence.mask, length)
        for longer in lengths[place + 1 :]:
            words = f"padded from a length of {length} to {longer}"
            yield words, shorten_rows(rows, inputs, length), shorten_rows(padded, inputs, longer)
    half = lengths[-1] // 2
    if len(lengths) == 1 and half:
        padded = mask_rows(rows, sequence.mask, half)
        blank = dict(padded)
        for spec in inputs:
            if spec.length_axes == (0,):
                blank[spec.name] = padded[spec.name].copy()
                blank[spec.name][:, half:] = 0
        yield f"padded with other values from {half} on", padded, blank


def join_lengths(found: Mapping[int, Verdict]) -> Verdict:
    """Returns what a tensor is from what it is at each length, ascending; a reason where that does not go together."""
    for verdict in found.values():
        if isinstance(verdict, str):
            return verdict
    lines = {length: verdict for length, verdict in found.items() if isinstance(verdict, BatchLine)}
    if lines:
        line = join_lines(lines) if len(lines) == len(found) else None
        return "has values that do not follow the length of the rows linearly" if line is None else line
    (low, joined), *others = [(length, spec) for length, spec in found.items() if isinstance(spec, TensorSpec)]
    short = joined.row_shape
    for length, spec in others:
        sizes = spec.row_shape
        if len(sizes) != len(short):
            return f"has rows of {short} at a length of {low} and of {sizes} at {length}"
        axes = tuple(axis for axis, size in enumerate(sizes) if size != short[axis])
        if any((short[axis], sizes[axis]) != (low, length) for axis in axes):
            return (
                f"has rows of {short} at a length of {low} and of {sizes} at {length}: an axis changes that is not the "
                "length itself"
            )
        joined = replace(spec, length_axes=axes)
    return joined

"""Lines: shape tensors that depend on the number of rows, and on their length, linearly.

They do not have the batch as leading axis, so they cannot cross a cut; but what lies behind it can work them out again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchLine:
    """A small tensor of fixed shape whose values are ``offset + slope * rows``, and more for every unit of length.

    Attributes:
        offset, slope: arrays of the tensor's shape and dtype; a slope of zeros is a constant.
        longer: by how much offset and slope rise with the length of the rows; ``None``: not at all.
    """

    offset: np.ndarray
    slope: np.ndarray
    longer: tuple[np.ndarray, np.ndarray] | None = None


def fit_line(runs: Sequence[np.ndarray]) -> BatchLine | None:
    """Returns the line through a tensor's values for one, two and three rows; ``None`` where they lie on none."""
    single, pair, triple = runs
    if not single.shape == pair.shape == triple.shape or single.dtype.kind not in "iufb":
        return None
    if single.dtype.kind == "b":
        same = np.array_equal(single, pair) and np.array_equal(pair, triple)
        return BatchLine(offset=single, slope=np.zeros_like(single)) if same else None
    slope = pair - single
    if not np.array_equal(triple, pair + slope):
        return None
    return BatchLine(offset=single - slope, slope=slope)


def join_lines(lines: Mapping[int, BatchLine]) -> BatchLine | None:
    """Returns the line for all lengths from those of each; ``None`` where it is not linear in the length.

    Args:
        lines: length -> the line in the number of rows, lengths ascending.
    """
    (low, first), *others = lines.items()
    last, line = low, first
    for length, other in others:
        if is_same_line(first, other):
            continue
        if first.offset.shape != other.offset.shape or first.offset.dtype.kind not in "iuf":
            return None
        last, line = length, other
    if last == low:
        return first
    longer = (_step(first.offset, line.offset, last - low), _step(first.slope, line.slope, last - low))
    joined = BatchLine(offset=first.offset - longer[0] * low, slope=first.slope - longer[1] * low, longer=longer)
    return joined if all(is_same_line(at_length(joined, length), other) for length, other in lines.items()) else None


def at_length(line: BatchLine, length: int) -> BatchLine:
    """Returns the line in the number of rows alone, where these are ``length`` long."""
    if line.longer is None:
        return line
    offset, slope = (
        (base + more * length).astype(base.dtype)
        for base, more in zip((line.offset, line.slope), line.longer, strict=True)
    )
    return replace(line, offset=offset, slope=slope, longer=None)


def is_same_line(a: BatchLine, b: BatchLine) -> bool:
    """Tells whether two lines have the same values at every length."""
    parts = ((line.offset, line.slope, *(line.longer or ())) for line in (a, b))
    first, second = map(tuple, parts)
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def _step(low: np.ndarray, high: np.ndarray, distance: int) -> np.ndarray:
    """Returns the rise per unit; of integers rounded down, which ``join_lines`` finds out."""
    rise = high - low
    step: np.ndarray = rise // distance if rise.dtype.kind in "iu" else rise / distance
    return step.astype(low.dtype)

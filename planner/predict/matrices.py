"""Inference time matrices made of others: some of their batch sizes, some of their rows, other times. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from artifacts import InferenceTimeMatrix, LengthTimes

Rows = Mapping[str, tuple[float, ...]]


def keep_sizes(itm: InferenceTimeMatrix, sizes: tuple[int, ...]) -> InferenceTimeMatrix:
    """Returns a matrix with some of its batch sizes only."""
    columns = [itm.batch_sizes.index(size) for size in sizes]
    return _change(itm, sizes, lambda rows: {name: tuple(row[at] for at in columns) for name, row in rows.items()})


def keep_rows(itm: InferenceTimeMatrix, names: Collection[str]) -> InferenceTimeMatrix:
    """Returns a matrix with only those of its rows that are among ``names``."""
    return _change(itm, itm.batch_sizes, lambda rows: {name: row for name, row in rows.items() if name in names})


def scale_times(itm: InferenceTimeMatrix, factor: float) -> InferenceTimeMatrix:
    """Returns a matrix whose times are all ``factor`` times as long."""
    return _change(
        itm, itm.batch_sizes, lambda rows: {name: tuple(factor * ms for ms in row) for name, row in rows.items()}
    )


def _change(itm: InferenceTimeMatrix, sizes: tuple[int, ...], change: Callable[[Rows], Rows]) -> InferenceTimeMatrix:
    shorter = {
        length: LengthTimes(median_ms=change(times.median_ms), spread_ms=change(times.spread_ms))
        for length, times in itm.shorter.items()
    }
    return replace(
        itm, batch_sizes=sizes, median_ms=change(itm.median_ms), spread_ms=change(itm.spread_ms), shorter=shorter
    )

"""Classification: the largest values of a row with their places, as strings ``value:index[:label]``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from artifacts import InputError
from runtime.oip.datatypes import bytes_array


def classify(values: np.ndarray, classes: int, labels: Sequence[str] = ()) -> np.ndarray:
    """Returns the ``classes`` largest values of each row, largest first; of equal ones the first is first.

    Args:
        values: (n, ...) numbers; a row is taken flat.
        classes: how many; at most a row's.
        labels: names of a row's values; of another number they are not those, and are left out.

    Returns:
        (n, k) object array of ``bytes``.

    Raises:
        InputError: a row is a single value, or not of numbers.
    """
    rows = values.reshape(len(values), -1)
    if values.ndim < 2 or values.dtype.kind not in "iuf":
        raise InputError("classification needs an output of several numbers per row")
    count = min(classes, rows.shape[1])
    if len(labels) != rows.shape[1]:
        labels = ()
    items: list[bytes] = []
    for row in rows:
        known = np.where(np.isnan(row), -np.inf, row) if row.dtype.kind == "f" else row
        largest = len(row) - 1 - np.argsort(known[::-1], kind="stable")[::-1][:count]
        items += [_describe(row[place], int(place), labels) for place in largest]
    return bytes_array(items, (len(rows), count))


def _describe(value: np.generic, place: int, labels: Sequence[str]) -> bytes:
    number = f"{value:f}" if value.dtype.kind == "f" else f"{value}"
    label = f":{labels[place]}" if place < len(labels) else ""
    return f"{number}:{place}{label}".encode()

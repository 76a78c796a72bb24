"""Tensors in JSON: lists of numbers, truth values or strings, flat or nested as their shape, and back.

Values are never bent to a type: 1.5 is no INT64, "1" is no number, 300 is no UINT8, and a list that is nested unlike
the shape is refused, for its values would come to lie elsewhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from artifacts import InputError
from runtime.oip.datatypes import BYTES, NUMPY_NAMES, bytes_array

_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
_MEANINGS = {"b": "truth values", "i": "whole numbers", "u": "whole numbers", "f": "numbers"}


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> np.ndarray:
    """Returns a tensor of its ``data``.

    Args:
        name: for messages.
        datatype, shape: as it states them.
        data: what JSON makes of it.

    Returns:
        An array of that shape; an object array of ``bytes`` (UTF-8) for ``BYTES``.

    Raises:
        InputError: the values do not fit the type or the shape.
    """
    if not isinstance(data, list):
        raise InputError(f"tensor '{name}': expected a list as data, got {type(data).__name__}")
    found = np.array(data, object)  # an array of its own choice would pad all values to the longest string
    types = set(map(type, found.flat))
    if list in types:
        raise InputError(f"tensor '{name}': the lists of its data have different lengths, or are nested too deep")
    wanted, meaning = _wanted(datatype)
    if not types <= wanted:
        strange = ", ".join(sorted("null" if kind is type(None) else kind.__name__ for kind in types - wanted))
        raise InputError(f"tensor '{name}': expected {meaning} for {datatype}, got {strange}")
    _check_nesting(name, found.shape, shape)
    if datatype == BYTES:
        return bytes_array([item.encode() for item in found.flat], shape)
    return _convert(name, found, datatype).reshape(shape)


def to_json(array: np.ndarray) -> Any:
    """Returns the ``data`` of a tensor, flat: an array of numbers, or a list of strings.

    Raises:
        InputError: a byte string is no UTF-8.
    """
    if array.dtype != object:
        return np.ascontiguousarray(array).reshape(-1)
    try:
        return [item.decode() for item in array.flat]
    except UnicodeDecodeError as error:
        raise InputError("an answer of bytes that are no text cannot be sent as JSON; ask for binary data") from error


def _wanted(datatype: str) -> tuple[set[type], str]:
    if datatype == BYTES:
        return {str}, "strings"
    kind = np.dtype(NUMPY_NAMES[datatype]).kind
    return _TYPES[kind], _MEANINGS[kind]


def _check_nesting(name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> None:
    count, wanted = math.prod(found), math.prod(shape)
    if count != wanted:
        raise InputError(f"tensor '{name}': {count} values do not fit shape {list(shape)}")
    if len(found) > 1 and found != shape and count:
        raise InputError(f"tensor '{name}': its data is nested as {list(found)}, its shape is {list(shape)}")


def _convert(name: str, found: np.ndarray, datatype: str) -> np.ndarray:
    dtype = np.dtype(NUMPY_NAMES[datatype])
    if dtype.kind in "iu" and found.size:
        limits = np.iinfo(dtype)
        if found.min() < limits.min or found.max() > limits.max:
            raise InputError(f"tensor '{name}': a value is outside of {datatype} ({limits.min} to {limits.max})")
    with np.errstate(over="ignore"):  # infinity is refused with its row, where that is asked for
        return found.astype(dtype)

"""Datatypes of the Open Inference Protocol, and arrays as the bytes that it sends: little-endian, row-major.

``BYTES`` is a sequence of byte strings, each behind its length in four bytes; in memory an object array of ``bytes``.
Nothing is allocated for what a header claims: every claim is compared with the bytes that are there first.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np

from artifacts import InputError

BYTES = "BYTES"
NUMPY_NAMES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
_LITTLE = {name: np.dtype(dtype).newbyteorder("<") for name, dtype in NUMPY_NAMES.items()}
_NAMES = {dtype: name for name, dtype in NUMPY_NAMES.items()}
_MOST_AXES = 16
_MOST_ELEMENTS = 1 << 48
_LENGTH_BYTES = 4


def datatype_of(dtype: str) -> str:
    """Returns the protocol's name of a numpy type, e.g. ``FP32`` of ``float32``.

    Raises:
        InputError: it has none.
    """
    if dtype not in _NAMES:
        raise InputError(f"the protocol has no datatype for {dtype}; known are {', '.join(_NAMES)}")
    return _NAMES[dtype]


def check_datatype(name: str, datatype: object) -> str:
    """Returns the datatype of a tensor; ``InputError`` where the protocol has none of that name."""
    if isinstance(datatype, str) and (datatype == BYTES or datatype in NUMPY_NAMES):
        return datatype
    raise InputError(f"tensor '{name}': datatype {datatype!r}: expected one of {', '.join([*NUMPY_NAMES, BYTES])}")


def check_shape(name: str, shape: object) -> tuple[int, ...]:
    """Returns the shape of a tensor; ``InputError`` where it is no list of numbers from 0."""
    if isinstance(shape, Sequence) and not isinstance(shape, (str, bytes)) and len(shape) <= _MOST_AXES:
        found = tuple(shape)
        if all(type(size) is int and size >= 0 for size in found):
            sizes = [size or 1 for size in found]  # numpy refuses huge axes beside one of 0, too
            if math.prod(sizes) < _MOST_ELEMENTS:
                return found
    shown = str(shape)[:200]
    raise InputError(f"tensor '{name}': shape {shown}: expected at most {_MOST_AXES} whole numbers from 0")


def from_binary(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> np.ndarray:
    """Returns a tensor of its bytes: a read-only view of them, or an object array for ``BYTES``.

    Raises:
        InputError: the bytes do not fit the shape.
    """
    if datatype == BYTES:
        return _split_bytes(name, shape, data)
    dtype = _LITTLE[datatype]
    wanted = math.prod(shape) * dtype.itemsize
    if len(data) != wanted:
        raise InputError(
            f"tensor '{name}': {len(data)} bytes for {datatype} {list(shape)}; expected {wanted}, row-major and "
            "little-endian"
        )
    if datatype == "BOOL" and len(data) and np.frombuffer(data, np.uint8).max() > 1:
        raise InputError(f"tensor '{name}': a BOOL is one byte, 0 or 1")
    found = np.frombuffer(data, dtype).reshape(shape)
    return found if sys.byteorder == "little" else found.astype(NUMPY_NAMES[datatype])


def to_binary(array: np.ndarray) -> bytes | memoryview:
    """Returns the bytes of a tensor; a view where it lies in memory as it is sent."""
    if array.dtype == object:
        return b"".join(part for item in array.flat for part in (len(item).to_bytes(_LENGTH_BYTES, "little"), item))
    sent = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return sent.reshape(-1).view(np.uint8).data if sent.size else b""


def bytes_array(items: Sequence[bytes], shape: tuple[int, ...]) -> np.ndarray:
    """Returns an object array of byte strings."""
    array = np.empty(len(items), object)
    array[:] = items
    return array.reshape(shape)


def _split_bytes(name: str, shape: tuple[int, ...], data: memoryview) -> np.ndarray:
    count, at = math.prod(shape), 0
    if count * _LENGTH_BYTES > len(data):
        raise InputError(f"tensor '{name}': {len(data)} bytes cannot hold the {count} strings of shape {list(shape)}")
    items: list[bytes] = []
    for place in range(count):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(data[at:start], "little")
        if start > len(data) or at > len(data):
            raise InputError(f"tensor '{name}': string {place} of {count} is longer than the bytes that are left")
        items.append(bytes(data[start:at]))
    if at != len(data):
        raise InputError(f"tensor '{name}': {len(data) - at} bytes are left behind its {count} strings")
    return bytes_array(items, shape)

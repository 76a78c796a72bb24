"""The codec between frozen dataclasses and canonical JSON, strict in both directions.

Canonical: UTF-8, sorted keys, no spaces, no NaN, so that equal values have equal bytes and equal digests.
Strict: an unknown key, a missing key or a value of another type is a ``SchemaError``.
"""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from artifacts.errors import CorruptArtifactError, SchemaError

T = TypeVar("T")

OPTIONAL = {"optional": True}
"""Metadata of a field that is not written while it is empty: artifacts from before it was there keep their bytes."""


def to_plain(value: Any) -> Any:
    """Turns dataclasses, tuples and mappings into values that ``json`` can write."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        return {f.name: to_plain(item) for f, item in pairs if item or "optional" not in f.metadata}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise SchemaError(f"{value} cannot be stored: JSON artifacts hold finite numbers only")
    return value


def canonical_json(value: Any) -> bytes:
    """Returns the canonical JSON of ``value``: equal values give equal bytes.

    Bytes of file names that are no UTF-8, which Python keeps as lone surrogates, are written as JSON's escapes.
    """
    return json.dumps(
        to_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode(errors="backslashreplace")


def from_plain(kind: type[T], value: Any, where: str = "$") -> T:
    """Builds a ``kind`` from plain JSON data.

    Args:
        kind: a dataclass, or a type built from scalars, tuples, mappings, unions and dataclasses.
        value: the result of ``json.loads``.
        where: the path of ``value`` in its document, for the message.

    Raises:
        SchemaError: a key is unknown or missing, or a value has another type.
    """
    return cast(T, _decode(kind, value, where))


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _decode_union(args, value, where)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(cast(type, kind), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _mismatch(where, "a list", value)
        return tuple(_decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise _mismatch(where, "an object", value)
        return {key: _decode(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _mismatch(where, kind.__name__, value)
    return value


def _decode_union(args: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    errors = []
    for option in args:
        if option is type(None):
            continue
        try:
            return _decode(option, value, where)
        except SchemaError as error:
            errors.append(str(error))
    raise SchemaError("; ".join(errors))


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(where, f"an object ({kind.__name__})", value)
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(value) - set(fields))
    required = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(value))
    if unknown or missing:
        raise SchemaError(f"{where} ({kind.__name__}): unknown keys {unknown}, missing keys {missing}")
    return kind(**{name: _decode(hints[name], value[name], f"{where}.{name}") for name in fields if name in value})


def _mismatch(where: str, expected: str, value: Any) -> SchemaError:
    return SchemaError(f"{where}: expected {expected}, got {type(value).__name__} {value!r:.60}")


def read_json(path: Path, kind: type[T]) -> T:
    """Reads a JSON file as a ``kind``; a file that is not JSON is a ``CorruptArtifactError``."""
    try:
        plain = json.loads(path.read_bytes())
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptArtifactError(f"{path} is not JSON ({error}); make the artifact again") from error
    try:
        return from_plain(kind, plain)
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Writes ``value`` as canonical JSON with a final newline."""
    path.write_bytes(canonical_json(value) + b"\n")

"""Class names that an ONNX file carries among its notes, in the order of the network's answers."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

_KEYS = ("names", "class_names", "classes", "id2label", "labels")


def find_class_names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the names of the classes; none where the notes hold no list of names that makes sense.

    Ultralytics writes ``names`` as a Python dictionary from number to name, others a list or JSON.
    """
    for key in _KEYS:
        found = _read(metadata.get(key, ""))
        if isinstance(found, dict) and {str(number) for number in found} == {str(place) for place in range(len(found))}:
            found = [found[number] for number in sorted(found, key=int)]
        if isinstance(found, list | tuple) and found and all(isinstance(name, str) for name in found):
            return tuple(found) if len(set(found)) == len(found) else ()
    return ()


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None

"""Load files: batch distributions, as they are given to ``--batch-distribution``."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

from artifacts import UsageError
from planner.predict.traffic import Load

_LOAD_FORM = 'a JSON object such as {"1": 0.5, "8": 0.3, "32": 0.2}, or CSV lines "batch_size,share"'


def read_load(path: Path) -> Load:
    """Reads a batch distribution from a file.

    JSON: an object, batch size -> share or count of the batches. CSV: two columns, batch size and share or count, with
    or without a line of headings. The ending of the name decides.

    Raises:
        UsageError: the file cannot be read, or is of another form.
        InputError: the numbers are no distribution.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--batch-distribution {path}: cannot be read ({error}); expected {_LOAD_FORM}") from error
    try:
        pairs = _parse_csv(text) if path.suffix.lower() == ".csv" else _parse_json(text)
    except ValueError as error:
        raise UsageError(f"--batch-distribution {path}: {error}; expected {_LOAD_FORM}") from error
    if len(dict(pairs)) != len(pairs):
        raise UsageError(f"--batch-distribution {path}: a batch size comes twice; add their shares up")
    ordered = sorted(pairs)
    return Load(batch_sizes=tuple(size for size, _ in ordered), shares=tuple(share for _, share in ordered))


def _parse_json(text: str) -> list[tuple[int, float]]:
    plain = json.loads(text)
    if not isinstance(plain, Mapping) or not all(type(share) in (int, float) for share in plain.values()):
        raise ValueError("not an object of numbers")
    return [(int(size), float(share)) for size, share in plain.items()]


def _parse_csv(text: str) -> list[tuple[int, float]]:
    lines = [[cell.strip() for cell in line] for line in csv.reader(text.splitlines()) if line]
    if lines and not lines[0][0].isdigit():
        lines = lines[1:]
    if any(len(line) != 2 for line in lines):
        raise ValueError("a line does not have two columns")
    return [(int(size), float(share)) for size, share in lines]

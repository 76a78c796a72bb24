"""Traces and times of systems that are not ours, from documented files (docs/import-trace.md).

A trace is an ``.npz`` or a CSV. The final head is always the last exit. Per exit and sample a file holds

- ``logits`` (confidence is the largest softmax share, the prediction its class), with or without ``labels``; or
- ``confidence`` in [0, 1] with ``predictions``, with or without ``labels``, both numbers or both words; or
- ``confidence`` in [0, 1] with ``correct``, the metric in [0, 1]; or
- ``confidence`` in [0, 1] with ``counts``: of masks, the pixels in the intersection of each class, then in its union.

Without labels only the agreement with the final head can be bounded. Where a file does not hold the answers themselves,
two exits are taken to agree only where both are fully right: disagreement is never underestimated.

Times are a CSV: a row per part of the network, a column per batch size, milliseconds. A CSV may have semicolons or tabs
in place of commas, and then decimal commas, as spreadsheets write them in many countries.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from artifacts import (
    FINAL_HEAD,
    FINAL_HEAD_GRAPH,
    InferenceTimeMatrix,
    InputError,
    Segmentation,
    Trace,
    UsageError,
    load_arrays,
)
from planner.predict.costs import END, FULL, SERVING, gather_row, head_row, segment_row

_DECIMAL_COMMA = re.compile(r"^([-+]?\d+),(\d+)$")
_NPZ = ("logits", "confidence", "correct", "predictions", "labels", "agreement", "exits", "counts")


def read_trace(path: Path) -> Trace:
    """Reads a trace; the ending of the name decides about the form.

    Raises:
        UsageError: the ending is neither ``.npz`` nor ``.csv``, or the file cannot be read.
        InputError: arrays or columns are missing, or hold impossible values.
    """
    if not path.is_file():
        raise UsageError(f"--trace {path}: there is no such file")
    if path.suffix == ".npz":
        arrays = load_arrays(path)
    elif path.suffix == ".csv":
        arrays = _read_columns(path)
    else:
        raise UsageError(f"--trace {path}: expected an .npz or a .csv, see docs/import-trace.md")
    unknown = sorted(set(arrays) - set(_NPZ))
    if unknown:
        raise InputError(f"{path}: unknown arrays {unknown}; expected are {', '.join(_NPZ)}")
    try:
        return build_trace(arrays)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def build_trace(arrays: Mapping[str, np.ndarray]) -> Trace:
    """Makes a trace of E exits, the final head and N samples.

    Args:
        arrays: ``logits`` (E + 1, N, C), or ``confidence`` (E + 1, N) with ``predictions`` (E + 1, N) or ``correct``
            (E + 1, N), or ``counts`` (E + 1, N, 2 C); optionally ``labels`` (N,), ``agreement`` (E + 1, N) and
            ``exits``, E names.

    Raises:
        InputError: an array is missing, has another shape, or holds impossible values.
    """
    arrays = {**arrays, **_number_words(arrays)}
    predictions = arrays.get("predictions")
    if "logits" in arrays:
        confidence, predictions = _decide(arrays["logits"])
    elif "confidence" in arrays:
        confidence = np.asarray(arrays["confidence"], np.float64)
    else:
        raise InputError("neither logits nor confidence; see docs/import-trace.md")
    if confidence.ndim != 2 or confidence.shape[0] < 2 or confidence.shape[1] == 0:
        raise InputError(f"expected one row per exit, the final head last, and samples; got shape {confidence.shape}")
    for name, array in (("predictions", predictions), ("correct", arrays.get("correct"))):
        if array is not None and array.shape != confidence.shape:
            raise InputError(f"{name} has shape {array.shape}, confidence {confidence.shape}")
    exits = tuple(map(str, arrays.get("exits", [f"exit_{i + 1}" for i in range(len(confidence) - 1)])))
    if len(exits) != len(confidence) - 1 or {FINAL_HEAD, END} & set(exits):
        raise InputError(f"exits {list(exits)}: expected {len(confidence) - 1} names, none '{FINAL_HEAD}' or '{END}'")
    counts = arrays.get("counts")
    if counts is not None:
        _check_counts(counts, confidence.shape)
    if predictions is not None and "labels" in arrays and arrays["labels"].shape == predictions.shape[1:]:
        _check_counted_alike(predictions, arrays["labels"])
    metric = _find_metric(arrays, predictions)
    agreement = _find_agreement(arrays, predictions, metric)
    labels = arrays.get("labels")
    return Trace(
        exits=exits,
        confidence=_narrow("confidence", confidence),
        metric=agreement if metric is None else _narrow("correct", metric),
        agreement=agreement,
        predictions=None if predictions is None else predictions.astype(np.int32),
        counts=None if counts is None else counts.astype(np.float64),
        labels=None if labels is None else labels.astype(np.int32),
        labelled=metric is not None,
    )


def _number_words(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns predictions and labels that are words (class names) as numbers, the same for both."""
    given = {name: arrays[name] for name in ("predictions", "labels") if name in arrays}
    words = {name: array for name, array in given.items() if array.dtype.kind in "US"}
    if not words:
        return {}
    if len(words) < len(given):
        raise InputError(f"{' and '.join(words)} holds words, the other numbers: predictions and labels must be alike")
    plain = {name: np.char.strip(array.astype(np.str_)) for name, array in words.items()}
    names = np.unique(np.concatenate([array.reshape(-1) for array in plain.values()]))
    if len(plain) == 2 and not np.isin(plain["labels"], plain["predictions"]).any():
        shown = " against ".join(f"{name} '{array.reshape(-1)[0]}'" for name, array in plain.items())
        raise InputError(f"no word is among both predictions and labels ({shown}); write classes alike in both")
    return {name: np.searchsorted(names, array) for name, array in plain.items()}


def _check_counted_alike(predictions: np.ndarray, labels: np.ndarray) -> None:
    """Refuses numbers of classes that predictions and labels count from another one."""
    shifts, counts = np.unique(labels.astype(np.int64) - predictions[-1].astype(np.int64), return_counts=True)
    usual = int(shifts[counts.argmax()])
    if usual and 2 * counts.max() > len(labels):
        raise InputError(
            f"most labels ({counts.max() / len(labels):.1%}) are the last exit's prediction and {usual:+d}: count "
            "classes from the same number in both"
        )


def _check_counts(counts: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuses counts of pixels that are not intersections and unions of the same classes."""
    if counts.ndim != 3 or counts.shape[:2] != shape or counts.shape[2] % 2 or not counts.shape[2]:
        raise InputError(
            f"counts have shape {counts.shape}, expected {(*shape, '2 classes')}: per exit and sample the pixels in "
            "the intersection of each class, then those in each union"
        )
    intersections, unions = np.split(np.asarray(counts, np.float64), 2, axis=2)
    if not (np.isfinite(unions).all() and (intersections >= 0).all() and (intersections <= unions).all()):
        raise InputError("counts: an intersection is negative or larger than its union; put all intersections first")


def _decide(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if logits.ndim != 3 or logits.shape[2] < 2 or not np.isfinite(logits).all():
        raise InputError(f"logits: expected finite numbers (exits + 1, samples, classes), got shape {logits.shape}")
    shifted = logits.astype(np.float64) - logits.max(axis=2, keepdims=True)
    confidence: np.ndarray = 1 / np.exp(shifted).sum(axis=2)
    return confidence, logits.argmax(axis=2)


def _narrow(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
        raise InputError(
            f"{name} must be finite and within [0, 1], found {values.min():g} to {values.max():g}. Scale a confidence "
            "by any increasing function; thresholds are found on the same scale"
        )
    return values.astype(np.float32)


def _find_metric(arrays: Mapping[str, np.ndarray], predictions: np.ndarray | None) -> np.ndarray | None:
    labels = arrays.get("labels")
    if "correct" in arrays:
        return arrays["correct"]
    if "counts" in arrays:
        return np.array([[Segmentation().summarise(counts) for counts in exit_] for exit_ in arrays["counts"]])
    if predictions is None:
        raise InputError(
            "confidence alone does not say what an exit answers: add correct, counts, predictions or logits"
        )
    if labels is None:
        return None
    if labels.shape != predictions.shape[1:]:
        raise InputError(f"labels have shape {labels.shape}, expected {predictions.shape[1:]}")
    right: np.ndarray = predictions == labels
    return right


def _find_agreement(
    arrays: Mapping[str, np.ndarray], predictions: np.ndarray | None, metric: np.ndarray | None
) -> np.ndarray:
    if predictions is not None:
        found: np.ndarray = predictions == predictions[-1]
    elif "agreement" in arrays:
        found = _narrow("agreement", arrays["agreement"])
    else:
        right = np.asarray(metric) >= 1
        found = right & right[-1]
    found = found.astype(np.float32)
    found[-1] = 1
    return found


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    """Reads ``<what> <exit>`` columns, exits in the order of their first column, ``final`` for the final head."""
    header, rows = _read_csv(path)
    table = [_column(path, title, [row[position] for row in rows]) for position, title in enumerate(header)]
    columns: dict[str, dict[str, np.ndarray]] = {}
    arrays: dict[str, np.ndarray] = {}
    for position, title in enumerate(header):
        what, _, name = title.partition(" ")
        if title == "label":
            arrays["labels"] = table[position]
        elif what in ("confidence", "correct", "prediction") and name:
            columns.setdefault(what, {})[name] = table[position]
        elif title != "sample":
            raise InputError(
                f"{path}: column '{title}' is not one of 'confidence EXIT', 'correct EXIT', 'prediction EXIT', "
                "'label', 'sample'"
            )
    names = list(columns.get("confidence", {}))
    if FINAL_HEAD not in names:
        raise InputError(f"{path}: there is no column 'confidence {FINAL_HEAD}' for the final head")
    exits = [name for name in names if name != FINAL_HEAD]
    for what, found in columns.items():
        if set(found) != set(names):
            raise InputError(
                f"{path}: columns '{what}' are of {sorted(found)}, columns 'confidence' of {sorted(names)}"
            )
        array = np.stack([found[name] for name in (*exits, FINAL_HEAD)])
        arrays["predictions" if what == "prediction" else what] = array
    return {**arrays, "exits": np.array(exits, np.str_)}


def read_times(path: Path, exits: Sequence[str], *, fixed: bool = False, threads: int = 1) -> InferenceTimeMatrix:
    """Reads the times of a network whose candidate exits are ``exits``.

    Rows: ``segment EXIT`` (from the previous exit to this one), ``segment end`` (from the last exit to the answer),
    ``head EXIT``; optionally ``gather EXIT`` (0 without), ``full`` (the whole network in one piece; the sum of the
    segments without) and ``serving`` (the time of a batch outside the engines; 0 without).

    Args:
        path: the CSV; its first line holds the batch sizes from the second column on.
        exits: in the order of the data flow.
        fixed: True where an engine runs at these batch sizes only.
        threads: of each engine, for the record.

    Raises:
        UsageError: there is no such file.
        InputError: a row is missing, unknown, or has a hole; an entry is not a time; the segments are in another order.
    """
    if not path.is_file():
        raise UsageError(f"--itm {path}: there is no such file")
    header, rows = _read_csv(path)
    sizes = tuple(_batch_size(path, cell) for cell in header[1:])
    found = {row[0].strip(): _times(path, row, sizes) for row in rows}
    if len(found) != len(rows):
        raise InputError(f"{path}: a row appears twice")
    segments = [f"segment {name}" for name in (*exits, END)]
    needed, optional = [*segments, *(f"head {name}" for name in exits)], [f"gather {name}" for name in exits]
    unknown = sorted(set(found) - {*needed, *optional, FULL, SERVING})
    missing = [name for name in needed if name not in found]
    if missing or unknown:
        raise InputError(f"{path}: rows {missing} are missing, rows {unknown} are unknown; exits are {list(exits)}")
    ordered = [name for name in found if name in segments]
    if ordered != segments:
        raise InputError(
            f"{path}: the segments come in the order {ordered}, by the exits of the trace it is {segments}; "
            "put both in the order of the data flow"
        )
    nothing = (0.0,) * len(sizes)
    whole = tuple(np.sum([found[name] for name in segments], axis=0).tolist())
    medians = {segment_row(index): found[name] for index, name in enumerate(segments)}
    medians |= {FINAL_HEAD_GRAPH: nothing, FULL: found.get(FULL, whole), SERVING: found.get(SERVING, nothing)}
    for name in exits:
        medians[head_row(name)] = found[f"head {name}"]
        medians[gather_row(name)] = found.get(f"gather {name}", nothing)
    return InferenceTimeMatrix(
        backend="imported",
        threads=threads,
        batch_sizes=sizes,
        median_ms=medians,
        fixed=fixed,
        spread_ms=dict.fromkeys(medians, nothing),
        environment={"source": path.name},
    )


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            text = stream.read()
        heading = text.partition("\n")[0]
        delimiter = max(",;\t", key=heading.count)
        cells = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path}: cannot be read as CSV ({error})") from error
    lines = [row for row in cells if any(row)]
    if delimiter != ",":
        lines = [[_DECIMAL_COMMA.sub(r"\1.\2", cell) for cell in row] for row in lines]
    if len(lines) < 2:
        raise InputError(f"{path}: expected a line of headings and at least one row")
    header, *rows = lines
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise InputError(f"{path}, line {number}: {len(row)} cells, the headings are {len(header)}")
    if len(set(header)) != len(header):
        raise InputError(f"{path}: a heading appears twice: {header}")
    return header, rows


def _column(path: Path, title: str, cells: Sequence[str]) -> np.ndarray:
    """Returns the numbers of a column; one of answers may hold words."""
    if title.partition(" ")[0] in ("prediction", "label") and not all(cell.isdigit() for cell in cells):
        return np.array(cells, np.str_)
    return np.array([_number(path, line, cell) for line, cell in enumerate(cells, start=2)])


_TRUTH = {"true": "1", "false": "0"}  # as spreadsheets and pandas write them


def _number(path: Path, line: int, cell: str) -> float:
    try:
        value = float(_TRUTH.get(cell.strip().lower(), cell))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}, line {line}: '{cell}' is not a number")
    return value


def _batch_size(path: Path, cell: str) -> int:
    if not cell.isdigit():
        raise InputError(f"{path}: heading '{cell}' is not a batch size; expected e.g. part,1,8,32")
    return int(cell)


def _times(path: Path, row: Sequence[str], sizes: Sequence[int]) -> tuple[float, ...]:
    times = []
    for size, cell in zip(sizes, row[1:], strict=True):
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < 0:
            raise InputError(f"{path}: row '{row[0]}' at batch size {size} holds '{cell}', which is not a time in ms")
        times.append(value)
    return tuple(times)

"""Tables: image data sets as Parquet or Arrow files, as the Hugging Face hub and its datasets library keep them.

A column holds the encoded images (bytes, or structs of bytes and path), another one the labels. Which ones they are,
and the names of the classes, stand in the schema's metadata or in ``dataset_info.json``; without either the types tell,
where they leave no choice. The part of a file is in its name (``train-00000-of-00002.parquet``) or its folder's.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import IMAGE_SUFFIXES, InputError
from calibration.data.files import FileImages
from calibration.data.image_input import ImageInput
from calibration.data.labels import (
    CLASSES_TXT,
    describe_counts,
    describe_order,
    name_numbers,
    natural_key,
    number_words,
    read_classes,
)
from calibration.data.samples import PARTS
from calibration.data.splits import PART_NAMES, Splitting, settle_parts, split_by_names
from calibration.data.table_rows import ARROW, PARQUET, Table, TableRows, load_pyarrow

SUFFIXES = (PARQUET, ARROW)
_INFO = "dataset_info.json"
_SHOWN = 12
_LABELS = ("label", "labels", "class", "target")
_PARTS = ("part", "split")


def find_tables(source: Path) -> tuple[Path, ...]:
    """Returns the tables of a folder (or of the file itself) in the order of their names; none where it has images.

    Hidden folders, such as a download's cache, are not looked into.
    """
    if source.is_file():
        return (source,) if source.suffix.lower() in SUFFIXES else ()
    found = []
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names[:_SHOWN]):
            return ()
        found += [Path(folder) / name for name in sorted(names) if Path(name).suffix.lower() in SUFFIXES]
    return tuple(sorted(found, key=lambda path: natural_key(str(path))))


def load_tables(
    source: Path, tables: Sequence[Path], want: ImageInput, *, class_count: int | None, splitting: Splitting,
    report: Callable[[str], None],
) -> FileImages:  # fmt: skip
    """Loads the images of tables, whose bytes are read and decoded when they are asked for.

    Args:
        source: the folder, or the file.
        tables: what ``find_tables`` found there.
        want: the network's input.
        class_count: how many classes the network tells apart; ``None``: not known.
        splitting: decides about the parts that the files do not name.
        report: receives notes for the user.

    Raises:
        InputError: a file is damaged, the columns are not told apart, or labels and class names do not fit.
        MissingExtraError: pyarrow is not installed.
    """
    load_pyarrow()
    root = source if source.is_dir() else source.parent
    opened = [Table(path) for path in tables]
    columns = _find_columns(source, opened, class_count)
    sizes = [sum(table.rows) for table in opened]
    words = [None if columns.label is None else _read_column(table, columns.label) for table in opened]
    labels, classes = (None, ()) if columns.label is None else _read_labels(source, columns, words)
    named = _name_parts(source, tables)
    places = _read_parts(source, opened) if named is None else np.repeat(np.array(named, np.str_), sizes)
    rows = np.arange(sum(sizes)) if labels is None else np.flatnonzero(labels >= 0)
    if len(rows) == 0:
        raise InputError(f"{source}: the {len(tables)} tables there hold no rows with labels")
    if labels is not None:
        if missing := len(labels) - len(rows):
            report(f"{source}: left out {missing} rows without a label")
        labels, places = labels[rows], None if places is None else places[rows]
        report(f"{len(labels)} images in {source}: {describe_counts(labels, classes)}")
        if columns.classes is None and classes != tuple(map(str, range(len(classes)))):
            for note in describe_order(source, classes, class_count, source / CLASSES_TXT):
                report(note)
    parts = None if places is None else {part: np.flatnonzero(places == part) for part in PARTS}
    if parts is not None and len(parts["train"]) == len(rows):
        report(f"{source} has a train part only: train, calibrate and test are drawn from it")
        parts = None
    drawn, seed = settle_parts(source.name, parts, labels, count=len(rows), splitting=splitting, report=report)
    homes = [(number, block) for number, table in enumerate(opened) for block in range(len(table.rows))]
    counts = [count for table in opened for count in table.rows]
    files = TableRows(
        root=root, paths=tuple(tables), column=columns.image, rows=rows, homes=homes,
        blocks=np.cumsum([0, *counts[:-1]], dtype=np.int64),
    )  # fmt: skip
    return FileImages(
        name=source.name, files=files, labels=labels, classes=classes, parts=drawn, input=want, split_seed=seed
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """The columns that count: of images, of labels (if there is one), and the class names where they are told."""

    image: str
    label: str | None
    classes: tuple[str, ...] | None


def _find_columns(source: Path, tables: Sequence[Table], class_count: int | None) -> _Columns:
    schema = tables[0].schema
    for table in tables:
        if table.schema.names != schema.names:
            raise InputError(
                f"{source}: {table.path} has the columns {', '.join(table.schema.names)}, {tables[0].path} has "
                f"{', '.join(schema.names)}; name a folder with tables of one kind"
            )
    features = _read_features(source, tables[0])
    image = _choose(source, "images", _of_type(features, "Image") or _typed(schema, _holds_images), ("image", "img"))
    if image is None:
        raise InputError(f"{source}: none of the columns {', '.join(schema.names)} holds images as bytes")
    named = _of_type(features, "ClassLabel")
    if len(named) > 1:  # coarse and fine labels, for instance
        named = [name for name in named if len(features[name].get("names") or ()) == class_count] or named
    others = [name for name in _typed(schema, _holds_labels) if name not in (image, *_PARTS)]
    others += [name for name in _typed(schema, load_pyarrow().types.is_floating) if name in _LABELS]
    label = _choose(source, "labels", named or others, _LABELS)
    if label is None and (unusual := [name for name in _LABELS if name in schema.names]):
        raise InputError(
            f"{source}: column '{unusual[0]}' holds {schema.field(unusual[0]).type}, which is no class; write one "
            "number or name per image, or remove the column"
        )
    names = features.get(label or "", {}).get("names")
    return _Columns(image=image, label=label, classes=None if names is None else tuple(map(str, names)))


def _choose(source: Path, what: str, names: Sequence[str], usual: Sequence[str]) -> str | None:
    """Returns the one column, or of several the first of the usual names; ``None`` of none."""
    if len(names) <= 1:
        return names[0] if names else None
    for name in usual:
        if name in names:
            return name
    raise InputError(
        f"{source}: the columns {', '.join(names[:_SHOWN])} could all be the {what}; keep one of them, or call it "
        f"'{usual[0]}'"
    )


def _read_features(source: Path, table: Table) -> Mapping[str, Any]:
    """Returns column -> its kind, as the datasets library describes it; empty where nothing says so."""
    recorded = (table.schema.metadata or {}).get(b"huggingface")
    texts = [] if recorded is None else [recorded.decode("utf-8", "replace")]
    root = source if source.is_dir() else source.parent
    folders = [folder for folder in table.path.parents if folder.is_relative_to(root)]
    infos = [folder / _INFO for folder in folders if (folder / _INFO).is_file()]
    texts += [info.read_text(encoding="utf-8", errors="replace") for info in infos]
    for text in texts:
        try:
            plain = json.loads(text)
            features = plain.get("info", plain).get("features")
        except (ValueError, AttributeError):
            continue
        if isinstance(features, dict):
            return {name: kind for name, kind in features.items() if isinstance(kind, dict)}
    return {}


def _of_type(features: Mapping[str, Any], kind: str) -> list[str]:
    return [name for name, feature in features.items() if feature.get("_type") == kind]


def _typed(schema: Any, holds: Callable[[Any], bool]) -> list[str]:
    return [schema_field.name for schema_field in schema if holds(schema_field.type)]


def _holds_images(kind: Any) -> bool:
    types = load_pyarrow().types
    if types.is_struct(kind):
        return any(kind.field(place).name == "bytes" for place in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _holds_labels(kind: Any) -> bool:
    types = load_pyarrow().types
    words = types.is_string(kind) or types.is_large_string(kind)
    return bool(words or types.is_integer(kind) or types.is_boolean(kind) or types.is_dictionary(kind))


def _read_column(table: Table, name: str) -> list[Any]:
    """Returns the values of a column; ``None`` where there is none, or no number."""
    values = [value for block in range(len(table.rows)) for value in table.column(block, name).to_pylist()]
    return [None if isinstance(value, float) and math.isnan(value) else value for value in values]


def _read_labels(
    source: Path, columns: _Columns, read: Sequence[list[Any] | None]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns (N,) int64, -1 where a row has no label, and the classes."""
    words = [word for column in read for word in column or ()]
    given = [word for word in words if word is not None]
    listed = source / CLASSES_TXT
    classes = read_classes(listed) if listed.is_file() else columns.classes
    if given and all(isinstance(word, int | float) and word == int(word) for word in given):
        numbers = np.array([-1 if word is None else int(word) for word in words], np.int64)
        top = int(numbers.max(initial=-1))
        if listed.is_file() and columns.classes is not None and classes != columns.classes:
            return _reorder(source, numbers, columns.classes, classes or ())
        if classes is not None and top >= len(classes):
            raise InputError(f"{source}: label {top} in column '{columns.label}', but {len(classes)} classes are named")
        return numbers, classes or name_numbers(source, numbers[numbers >= 0])
    texts = ["" if word is None else str(word) for word in words]
    if classes is None:
        labels = np.full(len(texts), -1, np.int64)
        rows = np.flatnonzero([text != "" for text in texts])
        labels[rows], classes = number_words(source, [texts[row] for row in rows], listed)
        return labels, classes
    position = {name: place for place, name in enumerate(classes)} | {"": -1}
    if unknown := sorted(set(texts) - set(position)):
        raise InputError(f"{source}: the classes do not name {', '.join(unknown[:_SHOWN])}")
    return np.array([position[text] for text in texts], np.int64), classes


def _reorder(
    source: Path, numbers: np.ndarray, names: tuple[str, ...], classes: tuple[str, ...]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the labels in the order of ``classes.txt``, which is the network's."""
    if unknown := sorted(set(names) - set(classes), key=natural_key):
        raise InputError(f"{source / CLASSES_TXT} does not name {', '.join(unknown[:_SHOWN])}")
    place = np.array([*(classes.index(name) for name in names), -1], np.int64)
    return place[numbers], classes


def _read_parts(source: Path, tables: Sequence[Table]) -> np.ndarray | None:
    """Returns the part of each row as a column of words says; ``None`` where there is no such column."""
    name = next((name for name in _typed(tables[0].schema, load_pyarrow().types.is_string) if name in _PARTS), None)
    if name is None:
        return None
    words = np.array([str(word or "") for table in tables for word in _read_column(table, name)], np.str_)
    found = split_by_names(source.name, words, count=len(words))
    parts = np.empty(len(words), f"<U{max(map(len, PARTS))}")
    for part, rows in found.items():
        parts[rows] = part
    return parts


def _name_parts(source: Path, tables: Sequence[Path]) -> list[str] | None:
    """Returns the part of each table by the words of its name and of its folders; ``None`` where none has one."""
    root = source if source.is_dir() else source.parent
    parts = []
    for path in tables:
        words = [word for piece in reversed(path.relative_to(root).parts) for word in re.split(r"[^A-Za-z]+", piece)]
        parts.append(next((PART_NAMES[word.lower()] for word in words if word.lower() in PART_NAMES), ""))
    if not any(parts):
        return None
    if "" in parts:
        raise InputError(
            f"{source}: {tables[parts.index('')]} does not say which part it is, as others do; name it "
            "train-, validation- or test-, or move it away"
        )
    return parts

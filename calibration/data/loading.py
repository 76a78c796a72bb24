"""Loading: image folders, lists of image files and arrays as samples for one network."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

import numpy as np

from artifacts import IMAGE_SUFFIXES, InputError
from calibration.data.arrays import ArrayImages, load_npz
from calibration.data.files import FileImages, FolderFiles
from calibration.data.folders import find_images
from calibration.data.image_input import ImageInput
from calibration.data.labels import CLASSES_TXT, describe_counts, describe_order, number_words, read_text
from calibration.data.published.cifar10 import find_cifar10, load_cifar10
from calibration.data.samples import PARTS
from calibration.data.splits import PART_NAMES, Splitting, settle_parts, split_by_names
from calibration.data.tables import find_tables, load_tables

_log = logging.getLogger("pame.calibration")
_NO_WISHES = Splitting()
_FIXES: dict[tuple[str, ...], str] = {
    (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"): ". Unpack the archive and name its folder",
    (".npy",): ". Save the array in an .npz: np.savez(file, images=..., labels=...)",
    (".txt", ".lst", ".list", ".tsv", ".json", ".jsonl", ".xlsx"): (
        ". Save the list as a .csv whose first line is path,label"
    ),
    tuple(IMAGE_SUFFIXES): ". Name the folder of the image",
}
"""Suffixes of files that people name -> what to do."""
_COLUMNS = {"path": "path", "label": "label", "part": "part", "split": "part"}  # of a .csv -> ours


def load_samples(
    source: Path, want: ImageInput, *, class_count: int | None = None, splitting: Splitting = _NO_WISHES,
    report: Callable[[str], None] = _log.info,
) -> ArrayImages | FileImages:  # fmt: skip
    """Loads one's own images, with labels or without, for a network.

    Class folders (``calibration.data.folders``), the binary files of CIFAR-10, Parquet or Arrow files
    (``calibration.data.tables``), a ``.csv`` with the columns ``path`` and, where given, ``label`` and ``part``, or an
    ``.npz`` with ``images`` and, where given, ``labels`` and ``split``. Image files are decoded, resized and normalised
    when they are asked for.

    Data without parts is split at random, each class alike (``splits.choose_shares``); without labels nothing can be
    trained, and 80 % calibrate and 20 % test. Of data with only one part besides that for training, half calibrates and
    half tests.

    Args:
        source: the folder or file.
        want: the network's input.
        class_count: how many classes the network tells apart; ``None``: not known.
        splitting: decides about the parts that the data does not name.
        report: receives notes for the user: counts, what was left out, what was assumed.

    Raises:
        InputError: nothing there, or not in one of these forms.
    """
    samples: ArrayImages | FileImages
    if files := find_cifar10(source):
        samples = load_cifar10(source, files, want, splitting=splitting, report=report)
    elif tables := find_tables(source):
        samples = load_tables(source, tables, want, class_count=class_count, splitting=splitting, report=report)
    elif source.is_dir():
        samples = _load_folder(source, want, class_count, splitting, report)
    elif source.suffix.lower() == ".csv" and source.is_file():
        samples = _load_list(source, want, class_count, splitting, report)
    elif source.suffix.lower() == ".npz" and source.is_file():
        samples = load_npz(source, want, splitting=splitting, report=report)
    elif not source.exists():
        raise InputError(f"--data {source}: there is nothing of that name")
    else:
        fix = next((words for suffixes, words in _FIXES.items() if source.suffix.lower() in suffixes), "")
        raise InputError(
            f"--data {source}: expected a folder with one sub-folder per class, an .npz file with images and labels, "
            "or a .csv file of paths and labels; for queries without labels a folder of images, or an .npz file with "
            f"images alone{fix}"
        )
    return samples if want.stated else samples.with_own_normalisation()


def _load_folder(
    source: Path, want: ImageInput, class_count: int | None, splitting: Splitting, report: Callable[[str], None]
) -> FileImages:
    found = find_images(source, class_count=class_count)
    for note in found.notes:
        report(note)
    named = None if found.parts is None else {part: np.flatnonzero(found.parts == part) for part in PARTS}
    parts, seed = settle_parts(
        source.name, named, found.labels, count=len(found.paths),
        splitting=replace(splitting, names=[os.fsdecode(path) for path in found.paths]), report=report,
    )  # fmt: skip
    return FileImages(
        name=source.name, files=FolderFiles(root=source, paths=found.paths), labels=found.labels,
        classes=found.classes, parts=parts, input=want, split_seed=seed,
    )  # fmt: skip


def _load_list(
    source: Path, want: ImageInput, class_count: int | None, splitting: Splitting, report: Callable[[str], None]
) -> FileImages:
    """Loads the files that a .csv names, one a line, relative to its folder."""
    rows = _read_rows(source, report)
    words = [row.label for row in rows]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    if any(words):
        if not all(words):
            raise InputError(
                f"{source}, line {rows[words.index('')].line}: no label, and others have one; give all or none"
            )
        labels, classes = number_words(source, words, source.parent / CLASSES_TXT)
        report(f"{len(labels)} images in {source}: {describe_counts(labels, classes)}")
        if classes != tuple(map(str, range(len(classes)))):
            for note in describe_order(source, classes, class_count, source.parent / CLASSES_TXT):
                report(note)
    named = None
    if any(row.part for row in rows):
        named = split_by_names(source.name, np.array([row.part for row in rows], np.str_), count=len(rows))
    parts, seed = settle_parts(source.name, named, labels, count=len(rows), splitting=splitting, report=report)
    paths = np.array([os.fsencode(row.path) for row in rows], np.bytes_)
    return FileImages(
        name=source.name, files=FolderFiles(root=source.parent, paths=paths), labels=labels, classes=classes,
        parts=parts, input=want, split_seed=seed,
    )  # fmt: skip


class _Row(NamedTuple):
    """A row of a .csv; label and part are empty where it has none."""

    line: int
    path: str
    label: str
    part: str


def _read_rows(source: Path, report: Callable[[str], None]) -> list[_Row]:
    """Returns the rows of a .csv that name a file.

    Raises:
        InputError: it is no .csv with a column ``path``, or says two things about a file.
    """
    text = read_text(source)
    lines = text.split("\n", 2)
    for_excel = lines[0].strip().strip('"').lower().startswith("sep=")
    header = lines[for_excel] if len(lines) > for_excel else ""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count))
    found: dict[tuple[str, str], _Row] = {}
    try:
        if for_excel:
            next(reader)
        names = [_COLUMNS.get(name.strip().lower(), name.strip()) for name in next(reader, [])]
        _check_header(source, names, report)
        for cells in reader:
            if any(cells[len(names) :]):
                raise InputError(
                    f"{source}, line {reader.line_num}: {len(cells)} cells for {len(names)} columns; put a cell that "
                    "holds the delimiter in quotes"
                )
            given = dict(zip(names, (cell.strip() for cell in cells), strict=False))
            if any("\n" in given.get(name, "") or "\0" in given.get(name, "") for name in _COLUMNS.values()):
                raise InputError(
                    f"{source}, line {reader.line_num}: a cell holds a line end or a zero byte; is a quote open?"
                )
            if given.get("path"):
                row = _Row(reader.line_num, *(given.get(name, "") for name in ("path", "label", "part")))
                _add_row(source, row._replace(path=_find_file(source, row)), found)
    except csv.Error as error:
        raise InputError(f"{source}, line {reader.line_num}: {error}; is a quote not closed?") from error
    if not found:
        raise InputError(f"{source} names no files")
    return list(found.values())


def _check_header(source: Path, names: list[str], report: Callable[[str], None]) -> None:
    if "path" not in names:
        raise InputError(
            f"{source}: expected the columns path, label and part (path alone will do), found {names} in the first "
            "line; name the columns there"
        )
    if twice := [name for name, count in Counter(names).items() if count > 1 and name in _COLUMNS.values()]:
        raise InputError(f"{source} has the column {', '.join(twice)} twice (split is a name of part); keep one")
    unknown = [name for name in names if name and name not in _COLUMNS.values()]
    if unknown and "label" not in names:
        raise InputError(
            f"{source}: there is no column label, and {', '.join(unknown)} are unknown; name the labels label, or "
            "leave path (and part) alone for queries without labels"
        )
    if unknown:
        report(f"{source}: the columns {', '.join(unknown)} are not read")


def _find_file(source: Path, row: _Row) -> str:
    """Returns the path of a row's file as this system writes it."""
    for path in (row.path, PureWindowsPath(row.path).as_posix()):
        if (source.parent / path).is_file():
            return os.path.normpath(path)
    raise InputError(f"{source}, line {row.line}: {source.parent / row.path} does not exist, or is no file")


def _add_row(source: Path, row: _Row, found: dict[tuple[str, str], _Row]) -> None:
    """Adds a row; a file may come again in the train part, as often as it shall count there."""
    before = found.get((row.path, ""))
    again = before is not None and PART_NAMES.get(row.part.lower()) == "train"
    if before is not None and not (again and (before.label, before.part) == (row.label, row.part)):
        raise InputError(
            f"{source}, lines {before.line} and {row.line}: {row.path} is there twice, as {_describe(before)} and "
            f"{_describe(row)}; a file has one label, and lies in one part. Remove one of the lines"
        )
    found[row.path, str(row.line) if again else ""] = row


def _describe(row: _Row) -> str:
    return " ".join(word for word in (f"'{row.label}'", row.part and f"in '{row.part}'") if word)

"""Loading: image folders, lists of image files and arrays as samples for one network."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from artifacts import InputError
from calibration.data.arrays import ArrayImages, load_npz
from calibration.data.files import FileImages, FolderFiles
from calibration.data.folders import CLASSES_TXT, describe_counts, find_images, natural_key, read_classes
from calibration.data.image_input import ImageInput
from calibration.data.published.cifar10 import find_cifar10, load_cifar10
from calibration.data.samples import PARTS
from calibration.data.splits import Splitting, settle_parts, split_by_names
from calibration.data.tables import find_tables, load_tables

_log = logging.getLogger("pame.calibration")
_NO_WISHES = Splitting()


def load_samples(
    source: Path, want: ImageInput, *, class_count: int | None = None, splitting: Splitting = _NO_WISHES,
    report: Callable[[str], None] = _log.info,
) -> ArrayImages | FileImages:  # fmt: skip
    """Loads one's own images, with labels or without, for a network.

    Class folders (``calibration.data.folders``), the binary files of CIFAR-10, Parquet or Arrow files
    (``calibration.data.tables``), a ``.csv`` with the columns ``path`` and, where given, ``label`` and ``part``, or an
    ``.npz`` with ``images`` and, where given, ``labels`` and ``split``. Image files are decoded, resized and normalised
    when they are asked for.

    Data without parts is split at random, each class 60 / 20 / 20; without labels nothing can be trained, and 80
    calibrate and 20 test. Of data with only one part besides that for training, half calibrates and half tests.

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
        samples = _load_list(source, want, splitting, report)
    elif source.suffix.lower() == ".npz" and source.is_file():
        samples = load_npz(source, want, splitting=splitting, report=report)
    elif not source.exists():
        raise InputError(f"--data {source}: there is nothing of that name")
    else:
        raise InputError(
            f"--data {source}: expected a folder with one sub-folder per class, an .npz file with images and labels, "
            "or a .csv file of paths and labels; for queries without labels a folder of images, or an .npz file with "
            "images alone"
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


def _load_list(source: Path, want: ImageInput, splitting: Splitting, report: Callable[[str], None]) -> FileImages:
    """Loads the files that a .csv names, one a line, relative to its folder."""
    columns = _read_columns(source)
    labels, classes = _read_labels(source, columns["label"], report=report)
    count, named = len(columns["path"]), None
    if any(columns["part"]):
        named = split_by_names(source.name, np.array(columns["part"], np.str_), count=count)
    parts, seed = settle_parts(source.name, named, labels, count=count, splitting=splitting, report=report)
    paths = np.array([os.fsencode(path) for path in columns["path"]], np.bytes_)
    return FileImages(
        name=source.name, files=FolderFiles(root=source.parent, paths=paths), labels=labels, classes=classes,
        parts=parts, input=want, split_seed=seed,
    )  # fmt: skip


def _read_columns(source: Path) -> dict[str, list[str]]:
    """Returns the columns ``path``, ``label`` and ``part`` of a .csv; cells that are not there are empty."""
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source} cannot be read: {error}") from error
    lines = text.splitlines()
    header = lines[0] if lines else ""
    reader = csv.reader(lines, delimiter=max(",;\t", key=header.count))
    names = [name.strip().lower() for name in next(reader, [])]
    if "path" not in names:
        raise InputError(f"{source}: expected the columns path, label and part (path alone will do), found {names}")
    columns: dict[str, list[str]] = {"path": [], "label": [], "part": []}
    for line, row in enumerate(reader, start=2):
        cells = dict(zip(names, (cell.strip() for cell in row), strict=False))
        if not cells.get("path"):
            continue
        if not (source.parent / cells["path"]).is_file():
            raise InputError(f"{source}, line {line}: {source.parent / cells['path']} does not exist")
        for name, column in columns.items():
            column.append(cells.get(name, ""))
    if not columns["path"]:
        raise InputError(f"{source} names no files")
    return columns


def _read_labels(
    source: Path, words: list[str], *, report: Callable[[str], None]
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Returns labels and classes: numbers are the network's classes as they are, words come in natural order."""
    if not any(words):
        return None, ()
    if not all(words):
        raise InputError(f"{source}: row {words.index('') + 1} has no label, others have one; give all or none")
    listed = source.parent / CLASSES_TXT
    if all(word.isdigit() for word in words) and not listed.is_file():
        labels = np.array([int(word) for word in words], np.int64)
        classes = tuple(map(str, range(int(labels.max()) + 1)))
    else:
        classes = read_classes(listed) if listed.is_file() else tuple(sorted(set(words), key=natural_key))
        position = {name: place for place, name in enumerate(classes)}
        if unknown := sorted(set(words) - set(classes)):
            raise InputError(f"{source}: {listed} does not name {', '.join(unknown[:5])}")
        labels = np.array([position[word] for word in words], np.int64)
    report(f"{len(labels)} images in {source}: {describe_counts(labels, classes)}")
    return labels, classes

"""Loading of texts: a table, or a folder with one for each part, as samples for one network.

The part of a file is in its name: ``train.tsv``, ``dev.tsv.xz``, ``test-00000-of-00001.parquet``. Where a file is
called just as a part is, others that merely contain the word are left out, and that is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from artifacts import InputError, TextEncoder
from calibration.data.labels import CLASSES_TXT, describe_counts, natural_key, number_words
from calibration.data.samples import PARTS
from calibration.data.splits import PART_NAMES, Splitting, settle_parts, split_by_names
from calibration.text.samples import TextSamples
from calibration.text.store import TextStore
from calibration.text.tables import find_columns, is_text_table, read_records, table_stem

_SHOWN = 6
_BINS = 5  # of numbers, so that every part has small and large ones


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Read:
    """What was read: the texts, and per text its label and the name of its part."""

    texts: TextStore
    labels: list[str | int | float | None] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)


def load_texts(
    source: Path, encoder: TextEncoder, *, numbers: bool, splitting: Splitting, report: Callable[[str], None]
) -> TextSamples:  # fmt: skip
    """Loads one's own texts, with labels or without, for a network.

    Args:
        source: a table (``calibration.text.tables``), or a folder of them.
        encoder: the way from a text to the network's inputs.
        numbers: the labels are numbers of a regression, not classes.
        splitting: decides about the parts that the data does not name.
        report: receives notes for the user.

    Raises:
        InputError: nothing there, a file cannot be read, or labels are not what they should be.
    """
    files = find_text_files(source, report)
    read = _read_files(source, files, report)
    labels, classes = _read_labels(source, read.labels, numbers=numbers)
    count = len(read.texts)
    if labels is not None and not numbers:
        report(f"{count} texts in {source}: {describe_counts(labels, classes)}")
    else:
        report(f"{count} texts in {source}{' with numbers' if labels is not None else ', without labels'}")
    named = _name_parts(source, read.parts, count)
    if named is not None and len(named["train"]) == count and splitting.share is None:
        report(f"{source} has a train part only: train, calibrate and test are drawn from it")
        named = None
    alike = _bin(labels) if numbers and labels is not None else labels
    parts, seed = settle_parts(source.name, named, alike, count=count, splitting=splitting, report=report)
    samples = TextSamples(
        name=source.name, texts=read.texts, labels=labels, classes=classes, parts=parts, encoder=encoder,
        split_seed=seed,
    )  # fmt: skip
    cut, asked = samples.count_cut()
    if cut:
        report(
            f"{cut} of {asked} texts that were looked at are longer than {encoder.wanted.length} tokens and are cut "
            "there (--length when exporting)"
        )
    return samples


def find_text_files(source: Path, report: Callable[[str], None]) -> list[tuple[Path, str]]:
    """Returns the tables of a source and the part that the name of each says; empty: there is only one.

    Raises:
        InputError: there are none, or of several some do not say their part.
    """
    if source.is_file() and is_text_table(source):
        return [(source, "")]
    if not source.exists():
        raise InputError(f"--data {source}: there is nothing of that name")
    found = (path for path in source.rglob("*") if path.is_file() and is_text_table(path)) if source.is_dir() else ()
    tables = sorted(
        (path for path in found if not any(part.startswith(".") for part in path.relative_to(source).parts)),
        key=lambda path: natural_key(str(path)),
    )
    if not tables:
        raise InputError(
            f"--data {source}: expected texts as a .tsv, .csv (also .gz, .xz), .parquet or .arrow file, or a folder "
            "with such files called train, dev (or validation) and test"
        )
    if len(tables) == 1:
        return [(tables[0], "")]
    return _keep_named(source, tables, report)


def _keep_named(source: Path, tables: Sequence[Path], report: Callable[[str], None]) -> list[tuple[Path, str]]:
    parts = {path: _part_of(path, source) for path in tables}
    exact = {PART_NAMES[table_stem(path)] for path in tables if table_stem(path) in PART_NAMES}
    kept = [
        (path, part)
        for path, part in parts.items()
        if part is not None and (part not in exact or table_stem(path) in PART_NAMES)
    ]
    left = [path.name for path in tables if path not in dict(kept)]
    if not kept:
        raise InputError(
            f"--data {source}: none of {', '.join(left[:_SHOWN])} says which part it is; call them train, dev and "
            "test, or name one of them"
        )
    if left:
        report(f"{source}: left out {', '.join(left[:_SHOWN])}{' ...' if len(left) > _SHOWN else ''}")
    return kept


def _part_of(path: Path, source: Path) -> str | None:
    """Returns the part that the name of a table, or of its folder below the source, says."""
    for name in (table_stem(path), *([path.parent.name.lower()] if path.parent != source else [])):
        for word in re.split(r"[^a-z]+", name):
            if word in PART_NAMES:
                return PART_NAMES[word]
    return None


def _read_files(source: Path, files: Sequence[tuple[Path, str]], report: Callable[[str], None]) -> _Read:
    columns = find_columns(files[0][0])
    read = _Read(texts=TextStore(len(columns.texts)))
    empty = 0
    for path, part in files:
        for record in read_records(path, columns):
            if not any(text.strip() for text in record.texts):
                empty += 1
                continue
            read.texts.append(*record.texts)
            read.labels.append(record.label)
            read.parts.append(record.part or part)
    read.texts.flush()
    if len(read.texts) == 0:
        raise InputError(f"--data {source}: {', '.join(path.name for path, _ in files)} hold no texts")
    if empty:
        report(f"{source}: left out {empty} rows without a text")
    labelled = [label is not None and label not in (-1, "-1") for label in read.labels]
    if any(labelled) and not all(labelled):
        report(f"{source}: left out {labelled.count(False)} texts without a label")
        return _select(read, np.flatnonzero(labelled))
    return read if any(labelled) else _Read(texts=read.texts, labels=[None] * len(read.texts), parts=read.parts)


def _select(read: _Read, rows: np.ndarray) -> _Read:
    kept = _Read(texts=TextStore(read.texts.columns))
    for row in rows.tolist():
        kept.texts.append(*read.texts.read(row))
        kept.labels.append(read.labels[row])
        kept.parts.append(read.parts[row])
    kept.texts.flush()
    return kept


def _read_labels(
    source: Path, words: Sequence[str | int | float | None], *, numbers: bool
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Returns labels and classes: whole numbers are the network's classes as they are, words come in natural order."""
    if words[0] is None:
        return None, ()
    texts = [str(word) for word in words]
    if numbers:
        try:
            found = np.array([float(text) for text in texts], np.float32)
        except ValueError as error:
            raise InputError(f"{source}: a label is no number ({error}), and the task is a regression") from error
        if not np.isfinite(found).all():
            raise InputError(f"{source}: the label of text {int(np.flatnonzero(~np.isfinite(found))[0])} is not finite")
        return found, ()
    listed = (source if source.is_dir() else source.parent) / CLASSES_TXT
    return number_words(source, texts, listed)


def _name_parts(source: Path, names: Sequence[str], count: int) -> dict[str, np.ndarray] | None:
    if not any(names):
        return None
    if not all(names):
        raise InputError(f"{source}: text {list(names).index('')} does not say which part it is, as others do")
    found = split_by_names(source.name, np.array(names, np.str_), count=count)
    return {part: found[part] for part in PARTS}


def _bin(numbers: np.ndarray) -> np.ndarray:
    """Returns which of ``_BINS`` equal shares each number is in."""
    edges = np.quantile(numbers, np.linspace(0, 1, _BINS + 1)[1:-1])
    binned: np.ndarray = np.digitize(numbers, np.unique(edges)).astype(np.int64)
    return binned

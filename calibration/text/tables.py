"""Tables of texts: TSV and CSV files, also compressed, and Parquet and Arrow files, row by row in bounded memory.

Which column holds what is known by the names that are usual in the field. TSV has no quoting, CSV has; both begin with
a line of names.
"""

from __future__ import annotations

import csv
import gzip
import lzma
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from artifacts import InputError
from calibration.data.table_rows import ARROW, PARQUET, Table

_PLAIN = (".tsv", ".csv")
_COMPRESSED = {".gz": gzip.open, ".xz": lzma.open}
_PAIRS = (
    ("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis"), ("text1", "text2"),
    ("text_a", "text_b"), ("question", "sentence"), ("question", "passage"), ("text", "text_pair"),
)  # fmt: skip
_TEXTS = ("sentence", "text", "content", "review", "question", "utterance", "title", "body", "comment", "tweet")
_LABELS = ("label", "labels", "class", "target", "score", "gold_label", "label_text", "coarse_label", "is_duplicate",
           "intent", "category")  # fmt: skip
_PARTS = ("part", "split")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextColumns:
    """The columns of a table that count.

    Attributes:
        texts: one, or the two of a pair.
        label: ``None``: there is none.
        part: of the data; ``None``: there is none.
    """

    texts: tuple[str, ...]
    label: str | None
    part: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRecord:
    """One row of a table.

    Attributes:
        texts: as ``TextColumns.texts``.
        label: as the table has it; ``None``: none.
        part: the name of its part; empty: none is named.
    """

    texts: tuple[str, ...]
    label: str | int | float | None
    part: str = ""


def is_text_table(path: Path) -> bool:
    """Tells by its name whether a file may be a table of texts."""
    return table_kind(path) in (*_PLAIN, PARQUET, ARROW)


def table_kind(path: Path) -> str:
    """Returns the ending that says what a file is, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in _COMPRESSED else (suffixes or [""])[-1]


def table_stem(path: Path) -> str:
    """Returns the name of a table without its endings, in lower case."""
    kind = table_kind(path)
    return path.name.lower().partition(kind)[0] if kind else path.name.lower()


def find_columns(path: Path) -> TextColumns:
    """Tells which columns of a table count.

    Raises:
        InputError: the file cannot be read, or no column holds texts by its name.
    """
    names = _read_names(path)
    lower = {name.strip().lower(): name for name in reversed(names)}
    pair = next((pair for pair in _PAIRS if set(pair) <= set(lower)), None)
    texts = pair or tuple(name for name in _TEXTS if name in lower)[:1]
    if not texts:
        raise InputError(
            f"{path}: none of its columns {', '.join(names[:12]) or '(there are none)'} is called as texts are; call "
            "it 'text' or 'sentence', of pairs 'sentence1' and 'sentence2' (the first line names the columns)"
        )
    return TextColumns(
        texts=tuple(lower[name] for name in texts),
        label=next((lower[name] for name in _LABELS if name in lower and name not in texts), None),
        part=next((lower[name] for name in _PARTS if name in lower), None),
    )


def _read_names(path: Path) -> Sequence[str]:
    if table_kind(path) in (PARQUET, ARROW):
        return list(Table(path).schema.names)
    with _open(path) as stream, _Named(path):
        return _read_header(path, stream)[0]


def read_records(path: Path, columns: TextColumns) -> Iterator[TextRecord]:
    """Yields the rows of a table.

    Raises:
        InputError: it cannot be read, lacks a column, or a row has another number of cells than the first line; with
            its line.
    """
    if table_kind(path) in (PARQUET, ARROW):
        yield from _read_blocks(path, columns)
        return
    with _open(path) as stream, _Named(path):
        names, reader = _read_header(path, stream)
        places = _find_places(path, names, columns)
        for row in reader:
            if not row:
                continue
            if len(row) != len(names):
                raise InputError(
                    f"{path}, line {reader.line_num + 1}: {len(row)} cells, and the first line names {len(names)} "
                    "columns. "
                    f"{'A .tsv has no quoting, so a text may hold no tab' if table_kind(path) == '.tsv' else ''}"
                )
            cells = {name: row[place] for name, place in places.items()}
            yield _make_record(cells, columns)


def _make_record(cells: dict[str, Any], columns: TextColumns) -> TextRecord:
    label = None if columns.label is None else cells[columns.label]
    if isinstance(label, str):
        label = label.strip() or None
    part = "" if columns.part is None else str(cells[columns.part] or "")
    return TextRecord(texts=tuple(cells[name] or "" for name in columns.texts), label=label, part=part)


def _find_places(path: Path, names: Sequence[str], columns: TextColumns) -> dict[str, int]:
    wanted = [name for name in (*columns.texts, columns.label, columns.part) if name is not None]
    if missing := [name for name in wanted if name not in names]:
        raise InputError(f"{path} has no column '{missing[0]}', which another file of the same data has")
    return {name: list(names).index(name) for name in wanted}


def _read_header(path: Path, stream: IO[str]) -> tuple[list[str], Any]:
    header = stream.readline()
    line = header.rstrip("\r\n")
    if table_kind(path) == ".tsv":
        return line.split("\t"), csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
    delimiter = max(",;\t", key=header.count)
    names = next(csv.reader([line], delimiter=delimiter), [])
    return names, csv.reader(stream, delimiter=delimiter)


def _open(path: Path) -> IO[str]:
    opened = _COMPRESSED.get(path.suffix.lower(), open)
    try:
        return opened(path, "rt", encoding="utf-8-sig", newline="")  # type: ignore[operator,no-any-return]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


class _Named:
    """Turns what goes wrong while a file is read into a message with its name."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UnicodeDecodeError):
            raise InputError(f"{self._path} is not UTF-8 ({error.reason}); save it in that encoding") from error
        if isinstance(error, (csv.Error, OSError, EOFError, lzma.LZMAError)):
            raise InputError(f"{self._path} cannot be read as a table: {error}") from error


def _read_blocks(path: Path, columns: TextColumns) -> Iterator[TextRecord]:
    table = Table(path)
    wanted = list(_find_places(path, table.schema.names, columns))
    for block in range(len(table.rows)):
        read = {name: table.column(block, name).to_pylist() for name in wanted}
        for values in zip(*read.values(), strict=True):
            yield _make_record(dict(zip(read, values, strict=True)), columns)

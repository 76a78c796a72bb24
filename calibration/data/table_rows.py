"""TableRows: the encoded images of Parquet and Arrow files, by number, in bounded memory.

A file is read in *blocks*, a row group of Parquet or a record batch of Arrow, each of which is found by the number of
its first row. Arrow files are mapped; of Parquet the last few blocks that were read are kept. Files are opened when
they are first read, by every process for itself, so that samples can be handed to forked workers.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import InputError, MissingExtraError

_KEPT_BYTES = 128 << 20
PARQUET, ARROW = ".parquet", ".arrow"


def load_pyarrow() -> Any:
    """Imports pyarrow with its Parquet reader; ``MissingExtraError`` names the extra where it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "tables") from error
    return pyarrow


class Table:
    """One file, open: its schema, and its blocks."""

    def __init__(self, path: Path) -> None:
        """Opens the file.

        Raises:
            InputError: it is damaged, or no table.
        """
        self.path = path
        self._arrow = load_pyarrow()
        self._mapping: mmap.mmap | None = None
        with self._named():
            if path.suffix.lower() == PARQUET:
                self._open_parquet()
            else:
                self._open_arrow()

    def _open_parquet(self) -> None:
        file = self._arrow.parquet.ParquetFile(self.path, memory_map=False, pre_buffer=False)
        self.schema = file.schema_arrow
        self.rows = tuple(file.metadata.row_group(block).num_rows for block in range(file.num_row_groups))
        self._read: Callable[[int, str], Any] = lambda block, name: file.read_row_group(
            block, columns=[name], use_threads=False
        )[name]

    def _open_arrow(self) -> None:
        with self.path.open("rb") as stream:
            self._mapping = mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        source, ipc = self._arrow.BufferReader(self._arrow.py_buffer(mapping)), self._arrow.ipc
        file = mapping[:6] == b"ARROW1"  # otherwise a stream, as the datasets library writes
        table = (ipc.open_file if file else ipc.open_stream)(source).read_all()
        self.schema = table.schema
        batches = table.to_batches()
        self.rows = tuple(batch.num_rows for batch in batches)
        self._read = lambda block, name: batches[block].column(name)

    def column(self, block: int, name: str) -> Any:
        """Returns a column of a block, an array of pyarrow."""
        with self._named():
            return self._read(block, name)

    def release(self) -> None:
        """Gives the pages of a mapped file back."""
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, self._arrow.ArrowException) as error:
            raise InputError(
                f"{self.path} cannot be read as {self.path.suffix[1:]} ({error}); remove it or fetch it again"
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TableRows:
    """Encoded images in tables, an implementation of ``EncodedFiles``.

    Attributes:
        root: paths inside the tables are relative to it.
        paths: the tables' files.
        column: the column of images: their bytes, or structs of bytes and path.
        rows: (N,) int64: which rows of all tables, one after the other, are the images.
        blocks: (B,) int64: the first row of each block of all tables.
        homes: per block, the number of its table and its number there.
    """

    root: Path
    paths: Sequence[Path]
    column: str
    rows: np.ndarray
    blocks: np.ndarray
    homes: Sequence[tuple[int, int]]
    _open: _OpenTables = field(default_factory=lambda: _OpenTables())

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> bytes:
        """Returns the bytes of one image, from the file that the row names where it holds none."""
        block, row = self._find(index)
        table, number = self.homes[block]
        value = self._open.column(self.paths[table], number, self.column)[row].as_py()
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
        if content is None and path and (self.root / path).is_file():
            content = (self.root / path).read_bytes()
        if not content:
            raise InputError(f"{self.name(index)} holds no image{f', nor is there {self.root / path}' if path else ''}")
        return bytes(content)

    def name(self, index: int) -> str:
        block, row = self._find(index)
        table, number = self.homes[block]
        first = self.blocks[block - number]
        return f"{self.paths[table]}, row {self.blocks[block] - first + row}"

    def _find(self, index: int) -> tuple[int, int]:
        row = self.rows[index]
        block = int(np.searchsorted(self.blocks, row, side="right")) - 1
        return block, int(row - self.blocks[block])


class _OpenTables:
    """Tables that this process has opened, and the last blocks that it has read."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._tables: dict[Path, Table] = {}
        self._kept: OrderedDict[tuple[Path, int], Any] = OrderedDict()  # by path and block, the last read at the end

    def column(self, path: Path, block: int, name: str) -> Any:
        if os.getpid() != self._process:  # a fork shares the positions of open files with its parent
            self._process, self._tables = os.getpid(), {}
        if path not in self._tables:
            self._tables[path] = Table(path)
        table = self._tables[path]
        if (path, block) in self._kept:
            self._kept.move_to_end((path, block))
            return self._kept[path, block]
        table.release()
        found = table.column(block, name)
        if path.suffix.lower() == PARQUET:
            self._kept[path, block] = found
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > _KEPT_BYTES:
                self._kept.popitem(last=False)
        return found

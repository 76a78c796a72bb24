"""TextStore: any number of texts in a file without a name, read back by number; in memory is where each begins."""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
import weakref
from array import array

import numpy as np

from artifacts import InputError

_WRITTEN_TOGETHER = 1 << 20


class TextStore:
    """Rows of one or two texts. The file ends with the process, and forked processes may read it at the same time."""

    def __init__(self, columns: int) -> None:
        """Makes an empty store.

        Args:
            columns: texts in a row, 1 or 2.
        """
        self.columns = columns
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  closed with the store
        weakref.finalize(self, self._file.close)
        self._ends = array("q", [0])
        self._waiting: list[bytes] = []
        self._size = 0
        self._digest = hashlib.sha256(f"texts {columns} ".encode())

    def __len__(self) -> int:
        return (len(self._ends) - 1) // self.columns

    def append(self, *texts: str) -> None:
        """Adds a row behind those that are there."""
        for text in texts:
            data = text.encode("utf-8", "surrogatepass")
            self._digest.update(len(data).to_bytes(8, "little") + data)
            self._waiting.append(data)
            self._ends.append(self._ends[-1] + len(data))
            self._size += len(data)
        if self._size >= _WRITTEN_TOGETHER:
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting.

        Raises:
            InputError: the disk has no room.
        """
        data = memoryview(b"".join(self._waiting))
        self._waiting, self._size = [], 0
        try:
            while data:
                data = data[self._file.write(data) or 0 :]
        except OSError as error:
            raise InputError(
                f"texts cannot be kept in {tempfile.gettempdir()} ({error.strerror}); TMPDIR names another place"
            ) from error

    def read(self, index: int) -> tuple[str, ...]:
        """Returns the texts of a row."""
        first = index * self.columns
        ends = self._ends[first : first + self.columns + 1]
        data = os.pread(self._file.fileno(), ends[-1] - ends[0], ends[0])
        return tuple(
            data[start - ends[0] : stop - ends[0]].decode("utf-8", "surrogatepass")
            for start, stop in itertools.pairwise(ends)
        )

    def sizes(self, indices: np.ndarray) -> np.ndarray:
        """Returns (n,) int64: the bytes of the texts of some rows."""
        ends, first = np.frombuffer(self._ends, np.int64), indices * self.columns
        found: np.ndarray = ends[first + self.columns] - ends[first]
        return found

    def digest(self) -> str:
        """Returns the SHA-256 of all texts in hex."""
        return self._digest.hexdigest()

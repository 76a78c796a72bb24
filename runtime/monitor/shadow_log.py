"""The shadow log: rows that a running host has seen at every exit, as traces in files of bounded size; and its reader.

A file holds the arrays of a ``Trace`` without labels, the digest of the model, when its first row was logged and when
its host raised its last alarm, and where that was asked for the inputs. Files are written whole, in a thread of the
log's own; the oldest are removed where all of them together are larger than the log may be. Several processes may write
to one folder. A disk that is full costs rows of the log, never an answer.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from artifacts import (
    ExitPlan,
    InputError,
    PameError,
    Trace,
    clear_interrupted,
    describe_failure,
    load_arrays,
    replace_file,
    try_replacing,
)
from runtime.monitor.seen import SeenRows

_FILE_ROWS = 1000
_FILES = 16  # at least, that a full log is made of
_NAME = "rows-*.npz"
_log = logging.getLogger("pame.runtime")


class ShadowLog:
    """Writes rows of one open bundle; every method may be called from any thread."""

    def __init__(self, folder: Path, plan: ExitPlan, input_names: Sequence[str], *, limit_mb: float) -> None:
        """Makes the folder, and tries whether files can be written there.

        Args:
            folder: where the files go.
            plan: names the exits and the model.
            input_names: of the inputs that come with the rows; none: they are not logged.
            limit_mb: how large all files together may be.

        Raises:
            InputError: the folder cannot be made, or not be written to.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            clear_interrupted(folder)
            try_replacing(folder / _NAME.replace("*", "trial"))
        except OSError as error:
            raise InputError(f"shadow_log={folder} cannot be written to: {describe_failure(error)}") from error
        self._folder = folder
        self._head = {
            "exits": np.array([planned.cut for planned in plan.exits], np.str_),
            "labelled": np.array(False),  # noqa: FBT003 - the array's value
            "model_digest": np.array(plan.model_digest),
        }
        self._names = tuple(input_names)
        self._limit = int(limit_mb * 1e6)
        self._lock = threading.Lock()
        self._rows: list[SeenRows] = []
        self._count = self._bytes = self._lost = 0
        self._began_ns = self._alarm_ns = 0
        self._writer: ThreadPoolExecutor | None = None
        self._writing: Future[None] | None = None

    def add(self, rows: SeenRows) -> None:
        """Takes rows; a file is written when there are enough of them."""
        with self._lock:
            if not self._rows:
                self._began_ns = time.time_ns()
            self._rows.append(rows)
            self._count += rows.confidence.shape[1]
            self._bytes += sum(array.nbytes for array in (rows.confidence, rows.agreement, *rows.inputs))
            if self._count >= _FILE_ROWS or self._bytes * _FILES >= self._limit:
                self._hand_over()

    def start_again(self) -> None:
        """Begins a new file: what comes from now on was seen after an alarm."""
        with self._lock:
            self._hand_over()
            self._alarm_ns = time.time_ns()

    def close(self) -> None:
        """Writes what there is and waits for it."""
        with self._lock:
            if self._writing is not None:
                self._writing.result()
            self._hand_over()
            writer, self._writer = self._writer, None
        if writer is not None:
            writer.shutdown()
        if self._lost:
            _log.warning("%d rows are missing in the shadow log %s: the disk is too slow", self._lost, self._folder)

    def _hand_over(self) -> None:
        """Lets the rows be written, or drops them where the file before them is still being written."""
        rows, count = self._rows, self._count
        if not rows:
            return
        self._rows, self._count, self._bytes = [], 0, 0
        if self._writing is not None and not self._writing.done():
            self._lost += count
            return
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="pame-shadow-log")
        self._writing = self._writer.submit(self._write, rows, self._began_ns, self._alarm_ns)

    def _write(self, rows: Sequence[SeenRows], began_ns: int, alarm_ns: int) -> None:
        arrays = {**self._head, "began_ns": np.array(began_ns), "alarm_ns": np.array(alarm_ns)}
        confidence = np.concatenate([part.confidence for part in rows], axis=1)
        arrays["confidence"] = np.clip(np.nan_to_num(confidence), 0, 1)
        arrays["agreement"] = arrays["metric"] = np.concatenate([part.agreement for part in rows], axis=1)
        classes = [part.predictions for part in rows if part.predictions is not None]
        if classes:
            arrays["predictions"] = np.concatenate(classes, axis=1)
        for place, name in enumerate(self._names):
            arrays[f"input {name}"] = np.concatenate([part.inputs[place] for part in rows])
        content = BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        name = _NAME.replace("*", f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(2)}")
        try:
            replace_file(self._folder / name, content.getvalue(), sync=False)
            self._remove_oldest()
        except OSError as error:
            _log.warning("the shadow log %s cannot be written: %s", self._folder, error.strerror or error)

    def _remove_oldest(self) -> None:
        kept = 0
        for path in sorted(self._folder.glob(_NAME), reverse=True):
            with suppress(FileNotFoundError):  # another process has removed it
                kept += path.stat().st_size
                if kept > self._limit:
                    path.unlink()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoggedRows:
    """The rows of a shadow log, oldest first.

    Attributes:
        trace: their confidences and agreements at the exits of the bundle that was served; without labels.
        inputs: by name, (n, ...) each; ``None`` where some files have none.
        files: how many were read.
        since_ns: when the last alarm was raised before them; 0: never, or all rows were asked for.
    """

    trace: Trace
    inputs: Mapping[str, np.ndarray] | None
    files: int
    since_ns: int


def read_shadow_log(folder: Path, *, model_digest: str, every_row: bool = False) -> LoggedRows:
    """Reads the rows that were seen since the last alarm.

    Args:
        folder: that hosts of one bundle wrote to.
        model_digest: of the model that they are wanted for.
        every_row: those before the last alarm too.

    Raises:
        InputError: there are none, or they are of another model or of several plans.
    """
    found = [arrays for path in sorted(folder.glob(_NAME)) if (arrays := _read(path)) is not None]
    if not found:
        raise InputError(
            f"--log {folder}: there are no rows in it. A host writes them with shadow_log={str(folder)!r} and a "
            "shadow_fraction above 0, or after an alarm; the last ones when it is closed"
        )
    fitting = [arrays for arrays in found if str(arrays["model_digest"]) == model_digest]
    if not fitting:
        raise InputError(
            f"--log {folder}: its rows were seen by another model than this run's; name the run of the bundle that was "
            "served with --run"
        )
    since_ns = 0 if every_row else max(int(arrays["alarm_ns"]) for arrays in fitting)
    recent = [arrays for arrays in fitting if int(arrays["began_ns"]) >= since_ns]
    if not recent:
        raise InputError(
            f"--log {folder}: no rows were logged since the last alarm; let the host run on, or take all rows with "
            "--all-rows"
        )
    exits = {tuple(map(str, arrays["exits"])) for arrays in recent}
    if len(exits) > 1:
        raise InputError(
            f"--log {folder}: bundles with different exits wrote to it ({sorted(exits)}); let each write to a folder "
            "of its own, or remove the older files"
        )
    return _join(recent, exits.pop(), since_ns)


def _read(path: Path) -> dict[str, np.ndarray] | None:
    try:
        arrays = load_arrays(path)
    except PameError as error:
        if path.exists():  # otherwise a host has just removed it
            _log.warning("left out: %s", error)
        return None
    needed = {"exits", "confidence", "agreement", "model_digest", "began_ns", "alarm_ns"}
    if missing := sorted(needed - set(arrays)):
        _log.warning("left out: %s lacks the arrays %s", path, missing)
        return None
    return arrays


def _join(files: Sequence[Mapping[str, np.ndarray]], exits: tuple[str, ...], since_ns: int) -> LoggedRows:
    agreement = np.concatenate([arrays["agreement"] for arrays in files], axis=1)
    classes = [arrays["predictions"] for arrays in files if "predictions" in arrays]
    trace = Trace(
        exits=exits, confidence=np.concatenate([arrays["confidence"] for arrays in files], axis=1), metric=agreement,
        agreement=agreement, labelled=False,
        predictions=np.concatenate(classes, axis=1) if len(classes) == len(files) else None,
    )  # fmt: skip
    names = [name for name in files[0] if name.startswith("input ")]
    inputs = None
    if names and all(set(names) <= set(arrays) for arrays in files):
        inputs = {name.removeprefix("input "): np.concatenate([arrays[name] for arrays in files]) for name in names}
    return LoggedRows(trace=trace, inputs=inputs, files=len(files), since_ns=since_ns)

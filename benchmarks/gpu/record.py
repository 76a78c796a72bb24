"""Record: what a stage found, one JSON file written anew after every row, and the summary of all stages.

Standard library alone: whatever is missing or broken on a machine, its record can be written. The shell that runs the
stages calls this module too, so that a stage which never came to Python's ``main`` has a record as well:

    python -m benchmarks.gpu.record begin OUT STAGE --bound 60
    python -m benchmarks.gpu.record end OUT STAGE --rc 124 --seconds 60.2 --log OUT/stages.log --log-start 1234
    python -m benchmarks.gpu.record skip OUT STAGE --reason "the budget is spent"
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, TypeVar

from benchmarks.gpu.stages import STAGES, find_stage

SUMMARY_JSON = "summary.json"
RUNNING, ENDED, SKIPPED, CUT_OFF, CRASHED = "running", "ended", "skipped", "cut off", "crashed"
_CUT_OFF_CODES = {124: "its time bound", 137: "SIGKILL", 143: "SIGTERM", 130: "SIGINT", 129: "SIGHUP"}
_LOG_LINES = 40
T = TypeVar("T")


def plain(value: Any) -> Any:
    """Turns what JSON does not know into what it does: dataclasses, numpy's arrays and scalars, paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)}
    if hasattr(value, "tolist"):
        return value.tolist()
    return str(value)


def write_json(path: Path, content: Any) -> None:
    """Writes a file whole or not at all, so that a reader and a kill at any moment find sound JSON."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1, default=plain) + "\n", encoding="utf-8")
    beside.replace(path)


def describe_error(error: BaseException) -> str:
    """Returns type and message of an error, and of those that it came from."""
    told = f"{type(error).__module__}.{type(error).__qualname__}: {error}".removeprefix("builtins.")
    return told if error.__cause__ is None else f"{told} <- {describe_error(error.__cause__)}"


class Record:
    """The record of one stage, on disk after every row.

    A row is a mapping with ``row``, its name, ``seconds``, and what was measured; a row that failed has ``error`` with
    the exact message, one that was left out ``skipped`` with the reason.
    """

    def __init__(self, path: Path, *, bound_s: float, rehearsal: bool) -> None:
        """Opens the record that ``begin`` wrote, or a new one.

        Args:
            path: the JSON file, named by the stage's letter.
            bound_s: seconds from now until the stage will be cut off.
            rehearsal: whether nothing here was measured on a GPU.
        """
        self._path = path
        self._until = monotonic() + bound_s
        self.content: dict[str, Any] = begin(path.parent, path.stem, bound_s=bound_s, rehearsal=rehearsal)

    @property
    def remaining_s(self) -> float:
        """Seconds until the stage is cut off."""
        return self._until - monotonic()

    @property
    def failed(self) -> bool:
        """Whether a row has an error."""
        return any("error" in row for row in self.content["rows"])

    def note(self, **facts: Any) -> None:
        """Sets facts of the whole stage."""
        self.content |= facts
        self.save()

    def add(self, row: str, **values: Any) -> None:
        """Appends a row."""
        self.content["rows"].append({"row": row, **values})
        print(f"{datetime.now(UTC):%H:%M:%S} {row}: {json.dumps(values, default=plain)[:400]}", flush=True)
        self.save()

    def attempt(self, row: str, measure: Callable[[], T], *, needs_s: float = 0.0) -> T | None:
        """Measures a row; a failure becomes the row's error and the stage goes on.

        Args:
            row: its name.
            measure: returns the row's values as a mapping, or anything else, which is not recorded but returned.
            needs_s: about how long it takes: it is left out where less time is left.
        """
        if self.remaining_s < needs_s:
            self.add(
                row, skipped=f"{self.remaining_s:.0f} s of the stage's bound are left, this takes about {needs_s:g} s"
            )
            return None
        started = monotonic()
        found: T | None = None
        with _Caught() as caught:
            found = measure()
        seconds = round(monotonic() - started, 3)
        if caught.error is not None:
            self.add(row, seconds=seconds, error=describe_error(caught.error))
            return None
        self.add(row, seconds=seconds, **(found if isinstance(found, dict) else {}))
        return found

    def end(self) -> None:
        """Marks that the stage came to its end."""
        self.note(state=ENDED)

    def save(self) -> None:
        write_json(self._path, self.content)


class _Caught:
    """Keeps an ``Exception`` of its block instead of passing it on: whatever a row throws is that row's result."""

    error: Exception | None = None

    def __enter__(self) -> _Caught:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if isinstance(error, Exception):
            sys.excepthook(type(error), error, error.__traceback__)  # the whole stack, into the stage's log
            self.error = error
            return True
        return False


def begin(out: Path, letter: str, *, bound_s: float, rehearsal: bool) -> dict[str, Any]:
    """Writes the record of a stage that starts now, and returns it; finds its own beginning again."""
    path = out / f"{letter}.json"
    content = _read(path)
    if content.get("state") != RUNNING:
        content = {
            "stage": letter, "title": find_stage(letter).title, "rehearsal": rehearsal, "state": RUNNING,
            "started": datetime.now(UTC).isoformat(timespec="seconds"), "bound_s": bound_s, "rows": [],
        }  # fmt: skip
        write_json(path, content)
    summarise(out)
    return content


def end(out: Path, letter: str, *, rc: int, seconds: float, log: Path, log_start: int) -> None:
    """Completes the record of a stage whose process has ended, however it did."""
    content = _read(out / f"{letter}.json")
    lines = log.read_bytes()[log_start:].decode(errors="replace").splitlines() if log.is_file() else []
    if content.get("state") == RUNNING:
        content["state"] = CUT_OFF if rc in _CUT_OFF_CODES else CRASHED
        content["error"] = (
            f"cut off by {_CUT_OFF_CODES[rc]} after {seconds:.1f} s" if rc in _CUT_OFF_CODES
            else next((line for line in reversed(lines) if line.strip()), f"exit code {rc} without a word")
        )  # fmt: skip
    content |= {"rc": rc, "seconds": seconds, "log": lines[-_LOG_LINES:]}
    write_json(out / f"{letter}.json", content)
    summarise(out)


def skip(out: Path, letter: str, *, reason: str) -> None:
    """Writes the record of a stage that does not run."""
    write_json(out / f"{letter}.json", {"stage": letter, "title": find_stage(letter).title, "state": SKIPPED,
                                        "error": reason, "rows": []})  # fmt: skip
    summarise(out)


def summarise(out: Path) -> None:
    """Writes which stages ran, how they ended, how long they took and what failed."""
    stages = []
    for stage in STAGES:
        content = _read(out / f"{stage.letter}.json")
        rows = content.get("rows", [])
        errors = [f"{row['row']}: {row['error']}" for row in rows if "error" in row]
        stages.append({
            "stage": stage.letter, "title": stage.title, "state": content.get("state", "not run"),
            "rc": content.get("rc"), "seconds": content.get("seconds"), "rows": len(rows),
            "rows_skipped": sum("skipped" in row for row in rows),
            "errors": ([content["error"]] if "error" in content else []) + errors,
        })  # fmt: skip
    rehearsals = {_read(out / f"{stage.letter}.json").get("rehearsal") for stage in STAGES}
    write_json(out / SUMMARY_JSON, {
        "rehearsal": True in rehearsals, "written": datetime.now(UTC).isoformat(timespec="seconds"), "stages": stages,
    })  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def print_summary(out: Path) -> None:
    """Prints the summary, a line per stage and per error."""
    summary = _read(out / SUMMARY_JSON)
    if summary.get("rehearsal"):
        print("a rehearsal: nothing below was measured on a GPU")
    for stage in summary.get("stages", []):
        seconds = "" if stage["seconds"] is None else f", {stage['seconds']:.1f} s, rc {stage['rc']}"
        print(f"({stage['stage']}) {stage['title']}: {stage['state']}{seconds}, {stage['rows']} rows")
        for error in stage["errors"]:
            print(f"      {error}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what the shell asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.record", description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=("begin", "end", "skip", "summary"))
    parser.add_argument("out", type=Path)
    parser.add_argument("stage", nargs="?", default="")
    parser.add_argument("--bound", type=float, default=0.0)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--rc", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--log", type=Path, default=Path())
    parser.add_argument("--log-start", type=int, default=0)
    parser.add_argument("--reason", default="")
    given = parser.parse_args(argv)
    if given.verb == "begin":
        (given.out / f"{given.stage}.json").unlink(missing_ok=True)
        begin(given.out, given.stage, bound_s=given.bound, rehearsal=given.rehearse)
    elif given.verb == "end":
        end(given.out, given.stage, rc=given.rc, seconds=given.seconds, log=given.log, log_start=given.log_start)
    elif given.verb == "skip":
        skip(given.out, given.stage, reason=given.reason)
    else:
        print_summary(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())

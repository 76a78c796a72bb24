"""Console: the common parts of all command lines: ``--run``, ``--json``, exit codes, errors without a stack trace."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from artifacts.codec import canonical_json
from artifacts.errors import PameError, UsageError
from artifacts.files.disk_errors import describe_failure
from artifacts.files.targets import check_target, write_target
from artifacts.plots import check_plot

T = TypeVar("T")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that every command has."""
    parser.add_argument("--run", type=Path, metavar="DIR", help="the run's folder (default: the only one in runs/)")
    parser.add_argument("--json", metavar="FILE", help="write the result as one JSON object; - for stdout")
    parser.add_argument("-v", "--verbose", action="store_true", help="log each step that is run or reused")


def add_plot_argument(parser: argparse.ArgumentParser, what: str) -> None:
    """Adds ``--plot``, for a command that gives ``run_command`` its picture; ``what`` is drawn."""
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help=f"draw {what} as a PNG")


def run_command(
    command: Callable[[argparse.Namespace], T],
    arguments: argparse.Namespace,
    *,
    draw: Callable[[T, Path], None] | None = None,
) -> int:
    """Runs a command's body and turns its outcome into JSON output, a picture and an exit code.

    Files that cannot be written are refused before the work. A result whose file cannot be written after it goes to
    stdout; the picture comes last.

    Args:
        command: the body; returns the result.
        arguments: of the command line, those of ``add_common_arguments`` among them.
        draw: writes the picture of a result to the file of ``add_plot_argument``.

    Returns:
        0 done, 1 known failure, 2 usage, 3 no plan meets the tolerance, 130 interrupted, 143 terminated.
    """
    if sys.stdout is None and arguments.json == "-":
        arguments.json = _NOWHERE
    _open_closed_streams()
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr
    )
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show a name is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    alone = contextlib.redirect_stdout(sys.stderr) if arguments.json == "-" else contextlib.nullcontext()
    try:
        with _terminable():
            _check_target(arguments.json)
            if draw is not None and arguments.plot is not None:
                check_plot(arguments.plot)
            with alone:  # stdout is for the one object
                result = command(arguments)
                sys.stdout.flush()
            if arguments.json is not None:
                write_result(arguments.json, result)
            if draw is not None and arguments.plot is not None:
                draw(result, arguments.plot)
                say(f"drew {arguments.plot}")
    except PameError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # a full disk, a reader that went away: what nobody nearer could say more about
        print(f"error: {describe_failure(error)}", file=sys.stderr)
        _discard_stdout()
        return 1
    except KeyboardInterrupt as error:
        how, code = ("terminated", 143) if isinstance(error, _Terminated) else ("interrupted", 130)
        print(f"{how}; nothing half-written was left behind", file=sys.stderr)
        return code
    return 0


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Lets SIGTERM unwind the block, so that temporary files go; a second one ends the process at once.

    A command that is called from a thread, or in a process that handles the signal itself, leaves it as it is.
    """
    owner = os.getpid()

    def end(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != owner:  # a forked worker
            os.kill(os.getpid(), number)
        raise _Terminated

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


_NOWHERE = "- (stdout is closed)"


def _open_closed_streams() -> None:
    """Lets what is printed to closed streams go nowhere; files would take their numbers, and libraries write there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123 - for good
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123


def _check_target(target: str | None) -> None:
    """Refuses a file that cannot be written, before the work whose result it is to hold."""
    if target == _NOWHERE:
        raise UsageError("--json -: stdout is closed; name a file")
    if target is not None and target != "-":
        check_target("--json", Path(target))


def _discard_stdout() -> None:
    """Lets what is still buffered go nowhere, so that the end of the process does not fail over it."""
    with contextlib.suppress(OSError, ValueError):  # a stream that is no file
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def write_result(target: str, result: Any) -> None:
    """Writes ``result`` as JSON to a file, or to stdout for ``-``.

    Raises:
        PameError: the file cannot be written; the result is on stdout.
    """
    text = canonical_json(result) + b"\n"
    if target == "-":
        _print_bytes(text)
        return
    try:
        write_target("--json", Path(target), text)
    except PameError as error:
        _print_bytes(text)  # what was measured is not lost
        raise PameError(f"{error}. The result is on stdout") from error


def _print_bytes(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.flush()


def say(message: str) -> None:
    """Prints a line of progress to stderr."""
    print(message, file=sys.stderr, flush=True)


def track(items: Iterable[T], *, description: str, total: int | None = None) -> Iterator[T]:
    """Iterates with a progress bar on a terminal, silently elsewhere."""
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(items, description=description, total=total, console=Console(stderr=True), transient=True)


@contextlib.contextmanager
def show_progress(description: str) -> Iterator[Callable[[str, float], None]]:
    """Shows a progress bar on a terminal, nothing elsewhere.

    Yields:
        A function that takes a few words and the fraction done, 0 to 1; it may be called from any thread.
    """
    if not sys.stderr.isatty():
        yield lambda _words, _fraction: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=1.0)
        yield lambda words, fraction: bar.update(
            task, completed=fraction, description=f"{description}: {words}" if words else description
        )


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, to_stderr: bool = False
) -> None:
    """Prints an aligned table: the first column flush left, the others flush right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    lines = [title] if title else []
    for line in [list(columns), ["-" * width for width in widths], *cells]:
        first, *rest = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join([first, *rest]).rstrip())
    print("\n".join(lines), file=sys.stderr if to_stderr else sys.stdout, flush=True)

"""Tests of the console: exit codes, results and tables that all command lines share."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from artifacts import NoPlanError, PameError, UsageError
from artifacts.console import add_common_arguments, add_plot_argument, print_table, run_command
from artifacts.files.disk_errors import describe_failure


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("error", "code"), [(PameError("oh"), 1), (UsageError("oh"), 2), (NoPlanError("oh"), 3), (KeyboardInterrupt(), 130)]
)
def test_errors_become_exit_codes_without_a_stack(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: argparse.Namespace) -> None:
        raise error

    assert run_command(fail, arguments()) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert ("error: oh" if code < 130 else "interrupted") in printed.err


def test_other_errors_are_not_hidden() -> None:
    def fail(_: argparse.Namespace) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_command(fail, arguments())


def test_the_result_goes_where_it_was_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(lambda _: {"x": 1}, arguments("--json", "-")) == 0
    assert json.loads(capsys.readouterr().out) == {"x": 1}
    assert run_command(lambda _: {"x": 2}, arguments("--json", str(tmp_path / "x.json"))) == 0
    assert json.loads((tmp_path / "x.json").read_text()) == {"x": 2}


def test_tables_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("title", ["name", "ms"], [["a", 1], ["longer", 12.5]])
    assert capsys.readouterr().out.splitlines() == [
        "title",
        "name      ms",
        "------  ----",
        "a          1",
        "longer  12.5",
    ]


def test_one_object_is_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    def command(_: argparse.Namespace) -> dict[str, int]:
        print("a table")
        return {"answer": 42}

    assert run_command(command, arguments("--json", "-")) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"answer": 42}
    assert printed.err == "a table\n"


def test_a_terminal_that_cannot_show_a_name_shows_its_code() -> None:
    code = "from artifacts.console import run_command; import argparse; "
    code += "run_command(lambda _: print('caf\u00e9 \u2192 \u00fc'), argparse.Namespace(json=None, verbose=False))"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stdout) == (0, "caf\\xe9 \\u2192 \\xfc\n"), done.stderr


@pytest.mark.parametrize("words", [[], ["--json", "-"]])
def test_output_that_nobody_takes_is_named_without_a_stack(words: list[str]) -> None:
    code = "from artifacts.console import run_command, add_common_arguments; import argparse, sys; "
    code += "parser = argparse.ArgumentParser(); add_common_arguments(parser); "
    code += "sys.exit(run_command(lambda _: print('a table') or 1, parser.parse_args(sys.argv[1:])))"
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([sys.executable, "-c", code, *words], stdout=full, stderr=-1, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: no space left on the disk")
    assert "Traceback" not in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code, *words], stdout=writer, stderr=-1, text=True, check=False)
    os.close(writer)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "has closed it" in done.stderr


def test_a_full_disk_leaves_the_result_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "x.json"
    (tmp_path / "link.json").symlink_to(target)
    assert run_command(lambda _: {"x": 1}, arguments("--json", str(tmp_path / "link.json"))) == 0

    def fill(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fill)
    assert run_command(lambda _: {"x": 2}, arguments("--json", str(target))) == 1
    printed = capsys.readouterr()
    assert f"cannot write --json {target}: no space left" in printed.err
    assert "The result is on stdout" in printed.err
    assert json.loads(printed.out) == {"x": 2}
    assert json.loads(target.read_text()) == {"x": 1}
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "link.json"}


@pytest.mark.parametrize("flag", ["--json", "--plot"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder.png", "is a folder"), ("nowhere/x.png", "there is no folder"), ("file/x.png", "there is no folder"),
        ("x" * 250 + ".png", "too long"), ("/proc/x.png", "No such file"), ("link.png", "No such file"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_written_are_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, name: str, reason: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere" / "x.png")
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    add_plot_argument(parser, "nothing")
    (tmp_path / "folder.png").mkdir()
    words = (flag, str(tmp_path / name))
    begun: list[str] = []
    assert run_command(lambda _: begun.append("work"), parser.parse_args(words), draw=lambda *_: None) == 2
    assert not begun
    printed = capsys.readouterr().err
    assert flag in printed
    assert reason in printed
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_picture_that_fails_costs_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_common_arguments(parser)
    add_plot_argument(parser, "nothing")

    def fail(_result: dict[str, int], path: Path) -> None:
        raise PameError(f"cannot write --plot {path}: no space left on the disk")

    words = ("--json", str(tmp_path / "x.json"), "--plot", str(tmp_path / "x.png"))
    assert run_command(lambda _: {"x": 1}, parser.parse_args(words), draw=fail) == 1
    assert json.loads((tmp_path / "x.json").read_text()) == {"x": 1}
    assert "error: cannot write --plot" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("closed", "words", "code", "printed"),
    [
        ("<&- 2>&-", "--json -", 0, '{"x":1}\n'),  # print(file=None) would go to stdout
        (">&-", "", 0, "a line\n"),
        (">&-", "--json -", 2, "error: --json -: stdout is closed; name a file\n"),
    ],
)
def test_closed_streams_take_what_is_printed_nowhere(closed: str, words: str, code: int, printed: str) -> None:
    script = "from artifacts.console import run_command, add_common_arguments, say; import argparse, sys; "
    script += "parser = argparse.ArgumentParser(); add_common_arguments(parser); "
    script += "work = lambda _: (say('a line'), print('a table'), {'x': 1})[2]; "
    script += "sys.exit(run_command(work, parser.parse_args(sys.argv[1:])))"
    line = f'"{sys.executable}" -c "{script}" {words} {closed}'
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (code, printed)


def test_a_terminated_command_removes_its_temporary_files(tmp_path: Path) -> None:
    script = f"""
        import argparse, os, signal, tempfile, time
        from artifacts.console import add_common_arguments, run_command
        parser = argparse.ArgumentParser()
        add_common_arguments(parser)
        def work(_):
            with tempfile.TemporaryDirectory(dir={str(tmp_path)!r}):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
        raise SystemExit(run_command(work, parser.parse_args([])))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], stderr=-1, text=True, check=False)
    assert (done.returncode, done.stderr) == (143, "terminated; nothing half-written was left behind\n")
    assert list(tmp_path.iterdir()) == []


def test_a_command_leaves_signals_to_who_handles_them() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _frame: seen.append(number))
    try:
        assert run_command(lambda _: os.kill(os.getpid(), signal.SIGTERM), arguments()) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EFBIG, "ulimit -f"), (errno.EDQUOT, "quota"), (errno.EROFS, "read-only"), (errno.ENOSPC, "no space left")],
)
def test_a_disk_that_takes_no_more_is_named_with_what_to_do(number: int, words: str) -> None:
    assert words in describe_failure(OSError(number, os.strerror(number), "x"))


def test_so_is_one_that_takes_no_more_of_a_copied_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "deep" / "x").touch()
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(shutil, "copyfile", lambda *_args, **_: (_ for _ in ()).throw(full))
    with pytest.raises(shutil.Error) as caught:
        shutil.copytree(tmp_path / "from", tmp_path / "to")
    where = tmp_path / "to" / "deep" / "x"
    assert describe_failure(caught.value) == (
        f"no space left on the disk: {where}; free some, then run the command again"
    )

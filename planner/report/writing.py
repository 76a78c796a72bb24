"""Writing a report: the page and its pictures, each file whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from artifacts import (
    MissingArtifactError,
    PameError,
    RunFolder,
    UsageError,
    check_target,
    describe_failure,
    replace_file,
)


def check_output(output: Path, run: RunFolder, *, given: bool) -> Path:
    """Finds out before the work whether the page can be written afterwards.

    Args:
        output: where the page is to be.
        run: the run that it is about.
        given: whether a person named the place, as against the default.

    Raises:
        MissingArtifactError: there is no such run.
        UsageError: the file is to be something else than HTML, or as ``check_target``.
        PameError: as ``check_target``.
    """
    if not run.root.is_dir():
        raise MissingArtifactError(f"there is no run at {run.root}. Start one with: {run.remedy('export')}")
    if given and output.suffix not in (".html", ".htm"):
        raise UsageError(f"--output {output}: the report is an HTML page; name it {output.with_suffix('.html').name}")
    check_target("--output", output)
    return output


def write_report(output: Path, page: str, pictures: Mapping[str, bytes]) -> list[Path]:
    """Writes the pictures into ``NAME_figures/`` beside the page, and the page last; returns the pictures' paths.

    Raises:
        PameError: a file cannot be written.
    """
    folder = output.with_name(f"{output.stem}_figures")
    paths = {folder / f"{name}.png": content for name, content in pictures.items()}
    try:
        folder.mkdir(exist_ok=True)
        for path, content in (*paths.items(), (output, page.encode(errors="backslashreplace"))):
            replace_file(path, content)
    except OSError as error:
        raise PameError(f"cannot write {output}: {describe_failure(error)}. --output names another place") from error
    return list(paths)

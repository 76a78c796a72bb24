"""Plots: the colours and the plain axes that all figures of PAME share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from artifacts.errors import MissingExtraError, PameError, UsageError
from artifacts.files.disk_errors import describe_failure
from artifacts.files.replacing import replace_file

FULL_COLOUR, EARLY_COLOUR = "#8a94a6", "#0b6e99"
INK, FAINT = "#1f2933", "#d9dee5"


def check_plot(path: Path) -> None:
    """Checks, before a measurement, that its plot can be drawn afterwards.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: the folder does not exist, or the file's name does not end with .png.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    if path.suffix != ".png":
        raise UsageError(f"--plot {path}: the plot is a PNG; name it {path.with_suffix('.png').name}")
    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}; make it first")


def save_plot(figure: Any, path: Path) -> None:
    """Writes a figure as a PNG, whole or not at all.

    Raises:
        PameError: the file cannot be written.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    try:
        replace_file(path, drawn.getvalue())
    except OSError as error:
        raise PameError(f"cannot write --plot {path}: {describe_failure(error)}") from error


def clean_axes(axes: Any) -> None:
    """Hides the upper and the right spine and colours the others."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    axes.tick_params(labelsize=9.5, colors=INK)

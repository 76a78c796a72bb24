"""Plots: the colours and the plain axes that all figures of PAME share."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from artifacts.errors import MissingExtraError, UsageError
from artifacts.files.targets import check_target, write_target

FULL_COLOUR, EARLY_COLOUR = "#8a94a6", "#0b6e99"
INK, FAINT = "#1f2933", "#d9dee5"


def check_plot(path: Path) -> None:
    """Checks, before a measurement, that its plot can be drawn afterwards.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: the file's name does not end with .png, or as ``check_target``.
        PameError: as ``check_target``.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    if path.suffix != ".png":
        raise UsageError(f"--plot {path}: the plot is a PNG; name it {path.with_suffix('.png').name}")
    check_target("--plot", path)


def save_plot(figure: Any, path: Path) -> None:
    """Writes a figure as a PNG, whole or not at all.

    Raises:
        PameError: the file cannot be written.
    """
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    write_target("--plot", path, drawn.getvalue())


def clean_axes(axes: Any) -> None:
    """Hides the upper and the right spine and colours the others."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    axes.tick_params(labelsize=9.5, colors=INK)

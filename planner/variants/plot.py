"""The picture of a comparison: for every variant the time of its whole network, and with exits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from artifacts import EARLY_COLOUR, FULL_COLOUR, INK, clean_axes, save_plot
from planner.predict.objectives import OBJECTIVE_WORDS
from planner.variants.comparison import Comparison


def draw_comparison(comparison: Comparison, path: Path) -> None:
    """Writes the picture as a PNG; errors as ``artifacts.save_plot``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = comparison.variants
    figure = Figure(figsize=(9, 1.4 + 0.6 * len(found)), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = np.arange(len(found))
    whole = [variant.whole_ms for variant in found]
    axes.barh(places - 0.18, whole, height=0.34, color=FULL_COLOUR, alpha=0.75, label="whole network, a batch")
    early = [variant.expected_ms or 0.0 for variant in found]
    axes.barh(places + 0.18, early, height=0.34, color=EARLY_COLOUR, alpha=0.85,
              label=f"with exits, {OBJECTIVE_WORDS[comparison.objective]}")  # fmt: skip
    for place, variant in enumerate(found):
        text = "keeps the tolerance nowhere" if variant.expected_ms is None else f"{variant.expected_ms:.2f} ms"
        _write(
            axes, early[place], place + 0.18, f"{text}{', committed' if variant.chosen else ''}", bold=variant.chosen
        )
        _write(axes, whole[place], place - 0.18, f"{variant.whole_ms:.2f} ms")
    axes.set_yticks(places, [variant.label for variant in found])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(*whole, *early))
    axes.set_xlabel(f"milliseconds, batches of {comparison.batch_size}, {comparison.threads} threads", color=INK)
    clean_axes(axes)
    figure.legend(frameon=False, loc="outside upper left", ncols=2, fontsize=9)
    save_plot(figure, path)


def _write(axes: Any, x: float, y: float, text: str, *, bold: bool = False) -> None:
    axes.text(x, y, f" {text}", va="center", fontsize=9, color=INK, fontweight="bold" if bold else "normal")

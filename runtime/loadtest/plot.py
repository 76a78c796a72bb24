"""The picture of a load test: goodput against the latency bound. Drawn from the JSON object alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts import EARLY_COLOUR, FAINT, FULL_COLOUR, INK, clean_axes, save_plot

_STYLES = {"full": (FULL_COLOUR, "-"), "chain": (EARLY_COLOUR, (0, (4, 2))), "auto": (EARLY_COLOUR, "-")}


def draw_goodput(result: Mapping[str, Any], path: Path) -> None:
    """Writes the picture of ``runtime.loadtest``'s JSON object as a PNG of 1200 x 760 pixels.

    Raises:
        PameError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.8), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    bounds = [entry["slo_ms"] for entry in result["bounds"]]
    for place, name in enumerate(contender["policy"] for contender in result["bounds"][0]["contenders"]):
        found = [entry["contenders"][place] for entry in result["bounds"]]
        colour, line = _STYLES.get(name, (INK, (0, (1, 1.5))))
        axes.plot(
            bounds, [contender["goodput_per_s"] for contender in found], color=colour, linestyle=line, marker="o",
            markersize=4, label=f"{name}, measured",
        )  # fmt: skip
        if all("simulated_per_s" in contender for contender in found):
            axes.plot(
                bounds, [contender["simulated_per_s"] for contender in found], color=colour, linestyle="none",
                marker="x", markersize=5, alpha=0.7,
            )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_xlabel(
        "bound that 99 % of the requests are answered within (ms); crosses: simulated", fontsize=9, color=INK
    )
    axes.set_ylabel("requests per second", fontsize=9.5, color=INK)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.legend(frameon=False, fontsize=9)
    clean_axes(axes)
    title = f"{result['model']}: goodput, {result['arrivals']} arrivals"
    figure.suptitle(title, x=0.012, ha="left", fontsize=11, fontweight="bold", color=INK)
    save_plot(figure, path)

"""Picture of a validation: the distribution of the true loss per method, drawn from the JSON object alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts import EARLY_COLOUR, FAINT, INK, save_plot

BAD = "#c2410c"


def draw_validation(result: Mapping[str, Any], path: Path) -> None:
    """Writes the picture of ``python -m planner validate --json`` as a PNG.

    Raises:
        PameError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    methods = result["methods"]
    figure = Figure(figsize=(9, 1.1 + 0.85 * len(methods)), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    losses, latency = figure.subplots(1, 2, width_ratios=(2.2, 1), sharey=True)
    _draw_losses(losses, result)
    _draw_latency(latency, methods)
    figure.suptitle(
        f"{result['resplits']} calibration sets of {result['samples']} samples: which plans keep the tolerance?",
        x=0.012,
        ha="left",
        fontsize=11.5,
        fontweight="bold",
        color=INK,
    )
    save_plot(figure, path)


def _draw_losses(axes: Any, result: Mapping[str, Any]) -> None:
    tolerance, methods = 100 * result["tolerance"], result["methods"]
    edges = [100 * edge for edge in result["loss_edges"]]
    for row, method in enumerate(reversed(methods)):
        counts, largest = method["loss_histogram"], max(method["loss_histogram"])
        for left, right, count in zip(edges, edges[1:], counts, strict=False):
            colour = BAD if left >= tolerance - 1e-9 else EARLY_COLOUR
            axes.bar(
                (left + right) / 2, 0.8 * count / largest, width=0.9 * (right - left), bottom=row, color=colour, lw=0
            )
        axes.text(
            edges[-1], row + 0.55, f"{method['violation_frequency']:.1%} exceed it", ha="right", fontsize=8.5, color=INK
        )
    axes.axvline(tolerance, color=INK, lw=1, ls="--")
    axes.set_yticks([row + 0.3 for row in range(len(methods))], [method["method"] for method in reversed(methods)])
    axes.set_xlabel(f"true relative loss of {result['metric']}, % (dashed: the tolerance)", fontsize=9)
    _tidy(axes)


def _draw_latency(axes: Any, methods: Any) -> None:
    ratios = [method["mean_latency_ratio"] for method in reversed(methods)]
    for row, ratio in enumerate(ratios):
        axes.barh(row + 0.3, ratio, height=0.45, color=FAINT)
        axes.text(ratio, row + 0.3, f" {ratio:.3f}", va="center", fontsize=8.5)
    axes.set_xlim(0, 1.25 * max(ratios))
    axes.set_xlabel("mean latency over the full network's", fontsize=9)
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.tick_params(length=0, labelsize=9, colors=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)

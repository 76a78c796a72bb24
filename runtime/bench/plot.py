"""The picture of a benchmark: latency distributions, and where queries left. Drawn from the JSON object alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts import EARLY_COLOUR, FAINT, FINAL_HEAD, FINAL_HEAD_LABEL, FULL_COLOUR, INK, clean_axes, save_plot


def draw_result(result: Mapping[str, Any], path: Path) -> None:
    """Writes the picture of ``runtime.bench``'s JSON object as a PNG of 1800 x 760 pixels.

    Raises:
        PameError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.8), dpi=200, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    latencies, exits = figure.subplots(1, 2, width_ratios=(1.7, 1))
    draw_latencies(latencies, result)
    _draw_exits(exits, result)
    figure.suptitle(_title(result), x=0.012, ha="left", fontsize=11.5, fontweight="bold", color=INK)
    save_plot(figure, path)


def _title(result: Mapping[str, Any]) -> str:
    kept = result["metric_ratio"]
    precision = "" if kept is None else f", {kept:.1%} of the {_metric_name(result)} kept"
    if result["full"]["metric"] is None:
        precision = f", {result['agreement']:.1%} of the answers as before"
    speedup = result["speedup_mean"]
    return f"{result['model']}, batches of {result['batch_size']}: mean latency {speedup:.1f} times lower{precision}"


def _metric_name(result: Mapping[str, Any]) -> str:
    return str(result.get("metric_name", "metric"))


def draw_latencies(axes: Any, result: Mapping[str, Any]) -> None:
    """Draws both latency distributions of a result."""
    histogram = result["latency_histogram"]
    edges = histogram["edges_ms"]
    top = max(*histogram["full"], *histogram["early_exit"])
    for name, label, colour, height in (
        ("full", "whole network", FULL_COLOUR, 0.96),
        ("early_exit", "early exit", EARLY_COLOUR, 0.88),
    ):
        mean_ms, p99_ms = result[name]["mean_latency_ms"], result[name]["p99_ms"]
        axes.stairs(histogram[name], edges, fill=True, color=colour, alpha=0.75, linewidth=0)
        axes.plot([mean_ms, mean_ms], [0, top * 1.04], color=colour, linewidth=1.4, linestyle=(0, (4, 2)))
        axes.text(
            0.995, height, f"{label}: mean {mean_ms:.1f} ms, p99 {p99_ms:.1f} ms", transform=axes.transAxes,
            color=colour, fontsize=10, fontweight="bold", ha="right", va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, top * 1.3)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_xlabel("latency of a query, from the start of its batch (ms); dashed: mean", fontsize=9.5, color=INK)
    axes.set_ylabel("share of queries", fontsize=9.5, color=INK)
    clean_axes(axes)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_exits(axes: Any, result: Mapping[str, Any]) -> None:
    exits = result["per_exit"]
    places = range(len(exits))
    shares = [exit_["share"] for exit_ in exits]
    longest = max(shares)
    axes.barh(places, shares, color=[*[EARLY_COLOUR] * (len(exits) - 1), FULL_COLOUR], height=0.62, alpha=0.85)
    for place, exit_ in zip(places, exits, strict=True):
        label = label_exit(exit_, _metric_name(result))
        axes.text(exit_["share"] + 0.03 * longest, place, label, va="center", fontsize=9.5, color=INK)
    axes.set_yticks(places, [name_exit(exit_) for exit_ in exits])
    axes.set_xlim(0, longest * 2.3)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.set_title("where the queries leave", fontsize=9.5, color=INK, loc="left")
    clean_axes(axes)
    axes.spines["bottom"].set_visible(False)


def name_exit(exit_: Mapping[str, Any]) -> str:
    """Returns the name of an exit's cut, or that of the final head."""
    name: str = exit_["exit"]
    return FINAL_HEAD_LABEL if name == FINAL_HEAD else name


def label_exit(exit_: Mapping[str, Any], metric: str) -> str:
    """Returns the share that leaves at an exit and the metric there, or without labels how often it answers as the
    whole network does; the share alone where no query leaves."""
    share, agreement = f"{exit_['share']:.1%}", exit_.get("agreement")
    if share == "0.0%" or exit_["metric"] is agreement is None:
        return share
    if exit_["metric"] is None:
        return f"{share} ({agreement:.1%} as the whole)"
    return f"{share} ({metric} {exit_['metric']:.1%})"

"""Curves of a report: metric by depth, what a threshold does, and tolerance against latency."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from artifacts import EARLY_COLOUR, FAINT, INK
from planner.predict.objectives import OBJECTIVE_WORDS
from planner.report.data import Depth, ReportData, committed, depths, short_names, threshold_curves
from planner.report.drawing import (
    DASHED,
    DOTTED,
    GREY,
    ORANGE,
    SMALL,
    TEXT,
    label_axes,
    literal,
    new_figure,
    plain_axes,
    show_percent,
)

_COLUMNS = 4
_LINE = {"linewidth": 1.2, "zorder": 1}
_CHOSEN = {
    "linestyle": "none", "marker": "o", "markersize": 12, "markerfacecolor": "none", "markeredgecolor": EARLY_COLOUR,
    "markeredgewidth": 1.6,
}  # fmt: skip
_POINT = {"linestyle": "none", "marker": "o", "markersize": 6, "zorder": 3}
_STAR = {
    "linestyle": "none", "marker": "*", "markersize": 15, "color": ORANGE, "markeredgecolor": "white", "zorder": 4,
}  # fmt: skip


def draw_accuracy(data: ReportData) -> Any:
    """Draws metric and agreement of each candidate, if all samples left there."""
    found = depths(data)
    figure = new_figure(4.0)
    axes = figure.subplots()
    places = np.arange(len(found))
    metric = [depth.metric for depth in found]
    required, label = (
        data.plan.full_metric * (1 - data.plan.tolerance),
        f"required at tolerance {data.plan.tolerance:.3g}",
    )
    axes.axhline(metric[-1], color=GREY, linestyle=DASHED, label="full network", **_LINE)
    axes.axhline(required, color=GREY, linestyle=DOTTED, label=label, **_LINE)
    if data.plan.risk != "agreement":
        agreement, label = [depth.agreement for depth in found], "same answer as the full network"
        axes.plot(places, agreement, color=ORANGE, marker="s", markersize=4.5, linewidth=1.3, label=label)
    axes.plot(places, metric, color=EARLY_COLOUR, marker="o", markersize=5, linewidth=1.8, label=data.metric_word)
    chosen = [place for place, depth in zip(places, found, strict=True) if depth.chosen]
    axes.plot(chosen, [metric[place] for place in chosen], label="exits of the plan", **_CHOSEN)
    _mark_depths(axes, found, short_names(data.spec))
    label_axes(
        axes,
        y=f"{data.metric_word} if all left here",
        x="exit candidate, and when it answers (of the full network's time)",
    )
    show_percent(axes.yaxis)
    plain_axes(axes)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    figure.legend(loc="outside upper left", ncols=5, fontsize=SMALL, frameon=False, columnspacing=1.4)
    return figure


def _mark_depths(axes: Any, found: Sequence[Depth], names: dict[str, str]) -> None:
    """Writes name and share of time of every depth below the axis: upright, or slanted where there are many."""
    if len(found) > 9:
        ticks = [literal(f"{names[depth.name]} ({depth.share_of_time:.0%})") for depth in found]
        axes.set_xticks(np.arange(len(found)), ticks, rotation=60, ha="right")
    else:
        ticks = [literal(f"{names[depth.name]}\n{depth.share_of_time:.0%}") for depth in found]
        axes.set_xticks(np.arange(len(found)), ticks, rotation=0, ha="center")


def draw_thresholds(data: ReportData) -> Any:
    """Draws one panel per candidate: share and metric of the samples that leave, against the threshold."""
    curves, names = threshold_curves(data), data.trace.exits
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = new_figure(0.8 + 1.75 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    short = short_names(data.spec, 22)
    for index, name in enumerate(names):
        axes, chosen = panels.flat[index], name in curves.at
        (leaving,) = axes.plot(curves.thresholds, curves.leaving[index], color=EARLY_COLOUR, linewidth=1.8)
        (precision,) = axes.plot(curves.thresholds, curves.precision[index], color=ORANGE, linewidth=1.5)
        plain_axes(axes)
        axes.grid(color=FAINT, linewidth=0.6)
        weight = "bold" if chosen else None
        axes.set_title(literal(short[name]), fontsize=TEXT, color=INK, loc="left", fontweight=weight)
        if chosen:
            _mark_threshold(axes, curves.at[name])
        axes.xaxis.set_tick_params(labelbottom=index + columns >= len(names))
    panels.flat[0].set_ylim(0, 1.03)
    panels.flat[0].set_xlim(0, 1)
    panels.flat[0].set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    show_percent(panels.flat[0].yaxis)
    figure.supxlabel("threshold of the confidence (dashed: the plan's)", fontsize=TEXT, color=INK)
    labels = ["share of all samples that leave", f"{data.metric_word} of those that leave"]
    figure.legend([leaving, precision], labels, loc="outside upper left", ncols=2, fontsize=TEXT, frameon=False)
    return figure


def _mark_threshold(axes: Any, threshold: float) -> None:
    """Draws the plan's threshold, with its value on the side that has more room."""
    axes.axvline(threshold, color=INK, linewidth=1.0, linestyle=DASHED)
    aside, side = (0.03, "left") if threshold < 0.5 else (-0.03, "right")
    axes.text(threshold + aside, 0.05, f"{threshold:.3g}", fontsize=SMALL, color=INK, ha=side)


def draw_pareto(data: ReportData) -> Any:
    """Draws the metric given up against the objective's time: one point per tolerance, and the committed plan."""
    sweep, plan = data.sweep, committed(data)
    figure = new_figure(4.0)
    axes = figure.subplots()
    lost = np.array([1 - point.metric_ratio for point in sweep.points])
    spent_ms = np.array([sweep.time_ms(point) for point in sweep.points])
    best = np.array([point.efficient for point in sweep.points])
    order = np.lexsort((spent_ms[best], lost[best]))
    axes.step(lost[best][order], spent_ms[best][order], where="post", color=EARLY_COLOUR, linewidth=1.6, zorder=2)
    axes.plot(lost[best], spent_ms[best], color=EARLY_COLOUR, label="fastest plan found at a tolerance", **_POINT)
    if not best.all():
        hollow = {"markerfacecolor": "white", "markeredgecolor": EARLY_COLOUR, "label": "another point is better"}
        axes.plot(lost[~best], spent_ms[~best], **_POINT, **hollow)
    own_ms = plan.searched_ms(sweep.objective)
    axes.plot(1 - plan.metric / sweep.full_metric, own_ms, label="committed plan", **_STAR)
    label = f"tolerance of the plan, {data.plan.tolerance:.3g}"
    axes.axvline(data.plan.tolerance, color=GREY, linestyle=DASHED, label=label, linewidth=1.1, zorder=1)
    _limit_losses(axes, lost, data.plan.tolerance)
    _limit_times(axes, spent_ms if own_ms is None else np.array([*spent_ms, own_ms]))
    label_axes(
        axes,
        x=f"{data.metric_word} given up (share of the full network's)",
        y=f"expected {OBJECTIVE_WORDS[sweep.objective]} (ms)",
    )
    plain_axes(axes)
    axes.grid(color=FAINT, linewidth=0.6)
    _add_speedups(axes, sweep.full_ms)
    figure.legend(loc="outside upper left", ncols=4, fontsize=SMALL, frameon=False)
    return figure


def _limit_losses(axes: Any, lost: np.ndarray, tolerance: float) -> None:
    left, right = min(0.0, float(lost.min())), max(float(lost.max()), tolerance, 1e-4)
    if right > 0.2:
        axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlim(left - 0.03 * min(right, 0.1), right * (1.25 if right > 0.2 else 1.03))
    show_percent(axes.xaxis)


def _limit_times(axes: Any, spent_ms: np.ndarray) -> None:
    fastest, slowest = float(spent_ms.min()), float(spent_ms.max())
    room = max(0.06 * (slowest - fastest), 0.01 * slowest)
    axes.set_ylim(max(0.0, fastest - room), slowest + room)


def _add_speedups(axes: Any, full_ms: float) -> None:
    """Adds an axis on the right that shows the times as ratios to the full network's."""
    ratios = axes.secondary_yaxis("right")
    ratios.yaxis.set_major_formatter(lambda ms, _: f"{full_ms / ms:.3g}" if ms > 0 else "")
    ratios.set_ylabel("times as fast as the full network", fontsize=TEXT, color=INK, labelpad=8)
    ratios.tick_params(labelsize=SMALL, colors=INK)
    ratios.spines["right"].set_color(INK)

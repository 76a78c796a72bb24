"""Cut graph of a network: segments as boxes, cuts as dots, exit heads under candidates, those of the plan filled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from artifacts import EARLY_COLOUR, FAINT, FINAL_HEAD_GRAPH, FINAL_HEAD_LABEL, FULL_COLOUR, INK
from planner.predict.costs import FULL, segment_row
from planner.report.data import ReportData, short_names

GREY = FULL_COLOUR
_PER_ROW = 6
_FINAL = "#5b6577"
_ROW_IN = 1.6
_STEP = 1.1  # from one row to the next; a box is 0.38 high
_BOX, _GAP = 0.62, 0.38  # widths of a segment's box and of the way to the next one; together one cell


def time_shares(data: ReportData) -> list[float | None]:
    """Returns the share of the full network's time that each segment and last the final head takes, at the full batch.

    ``None`` where the matrix has no such row.
    """
    rows = [*(segment_row(index) for index in range(len(data.spec.segments))), FINAL_HEAD_GRAPH]
    if not data.spec.cuts or FULL not in data.itm.median_ms:
        return [1.0]
    times_ms = [data.itm.row_ms(row)[-1] if row in data.itm.median_ms else None for row in rows]
    total = float(np.sum([ms for ms in times_ms if ms is not None]))
    return [None if ms is None or not total else ms / total for ms in times_ms]


def draw_cut_graph(figure: Any, data: ReportData, *, literal: Callable[[str], str]) -> None:
    """Draws into an empty figure, and sets its height by the length of the network.

    Args:
        figure: takes one axes.
        data: the run.
        literal: escapes text so that matplotlib draws it as it is written.
    """
    shares = time_shares(data)
    rows = -(-len(shares) // _PER_ROW)
    columns = -(-len(shares) // rows)
    figure.set_figheight(_ROW_IN * rows + 0.1)
    axes = figure.subplots()
    axes.set_xlim(-0.42, max(columns, 5) + 0.1)
    axes.set_ylim(-_STEP * rows + 0.33, 0.37)
    axes.set_axis_off()
    axes.text(-0.17, 0, "batch", ha="right", va="center", fontsize=9.5, color=INK)
    cuts = [cut.name for cut in data.spec.cuts]
    short = short_names(data.spec)
    for index, share in enumerate(shares):
        row, column = divmod(index, columns)
        x, y = float(column), -_STEP * row
        last = index == len(shares) - 1
        title = FINAL_HEAD_LABEL if last and cuts else "full network" if last else f"segment {index + 1}"
        _draw_box(axes, x, y, title, share, is_final=last)
        _draw_arrow(axes, x - (_GAP if column else 0.14), x, y)
        if last:
            _draw_answer(axes, x, y, literal(_rest(data)))
            continue
        _draw_cut(axes, x + _BOX + _GAP / 2, y, cuts[index], literal(short[cuts[index]]), data)
        if column == columns - 1:
            _draw_arrow(axes, x + _BOX, x + 1.0, y)


def _draw_box(axes: Any, x: float, y: float, title: str, share: float | None, *, is_final: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (x, y - 0.19),
            _BOX,
            0.38,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=_FINAL if is_final else FAINT,
            edgecolor="none",
            zorder=2,
        )
    )
    time = "" if share is None else f"\n{share:.1%} of time"
    axes.text(
        x + _BOX / 2,
        y,
        f"{title}{time}",
        ha="center",
        va="center",
        fontsize=8,
        zorder=3,
        linespacing=1.3,
        color="white" if is_final else INK,
    )


def _draw_arrow(axes: Any, start: float, end: float, y: float) -> None:
    arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.1, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9}
    axes.annotate("", xy=(end, y), xytext=(start, y), arrowprops=arrow, zorder=1)


def _draw_cut(axes: Any, x: float, y: float, cut: str, label: str, data: ReportData) -> None:
    planned = next((exit_ for exit_ in data.plan.exits if exit_.cut == cut), None)
    candidate = cut in data.spec.heads
    colour = EARLY_COLOUR if planned else GREY
    axes.plot([x], [y], marker="o", markersize=6, color=colour, markeredgecolor="white", zorder=4)
    if not candidate:
        axes.text(x, y + 0.08, "no exit", ha="center", va="bottom", fontsize=7, color=INK, linespacing=1.2)
        return
    axes.plot([x, x], [y, y - 0.31], color=colour, linewidth=1.8 if planned else 1.1, zorder=1)
    box = {
        "boxstyle": "round,pad=0.35",
        "facecolor": EARLY_COLOUR if planned else "white",
        "edgecolor": colour,
        "linewidth": 1.1,
    }
    axes.text(
        x,
        y - 0.38,
        label,
        ha="center",
        va="center",
        fontsize=8,
        bbox=box,
        zorder=3,
        color="white" if planned else INK,
        fontweight="bold" if planned else None,
    )
    if planned:
        text = f"confidence ≥ {planned.threshold:.3g}\n{planned.leaving_share:.1%} leave here"
        axes.text(x, y - 0.51, text, ha="center", va="top", fontsize=8, color=INK, linespacing=1.3)


def _rest(data: ReportData) -> str:
    rest = max(0.0, 1 - sum(exit_.leaving_share for exit_ in data.plan.exits))
    return f"{rest:.1%} of all queries\nare answered here"


def _draw_answer(axes: Any, x: float, y: float, text: str) -> None:
    axes.text(x + _BOX / 2, y - 0.25, text, ha="center", va="top", fontsize=8, color=INK, linespacing=1.3)

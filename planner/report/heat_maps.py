"""Heat maps of a report: the batching pattern matrix and the inference time matrix."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from artifacts import FINAL_HEAD_GRAPH, FINAL_HEAD_LABEL, INK
from planner.predict.costs import FULL, SERVING, gather_row, head_row, segment_row
from planner.report.data import ReportData, matrix_groups, short_names
from planner.report.drawing import ORANGE, SMALL, TEXT, label_axes, literal, new_figure, plain_axes, show_integers

_HEAT = "Blues"
_MANY_ROWS = 45


def draw_bpm(data: ReportData) -> Any:
    """Draws the BPM as a heat map: candidate x survivors."""
    from matplotlib.colors import PowerNorm

    bpm = data.patterns
    figure = new_figure(1.5 + 0.34 * len(bpm.exits))
    axes = figure.subplots()
    highest = max(float(bpm.probability.max()), 1e-9)
    norm = PowerNorm(0.5, 0, highest)  # a linear scale would make every row pale but a certain one
    image = axes.imshow(bpm.probability, aspect="auto", cmap=_HEAT, norm=norm, interpolation="nearest")
    counts = np.arange(bpm.batch_size + 1)
    axes.plot(
        bpm.probability @ counts,
        range(len(bpm.exits)),
        linestyle="none",
        marker="D",
        markersize=5,
        color=ORANGE,
        markeredgecolor="white",
        markeredgewidth=0.8,
        label="mean",
    )
    names = short_names(data.spec)
    labels = [f"{names[name]} ≥ {at:.3g}" for name, at in zip(bpm.exits, bpm.thresholds, strict=True)]
    axes.set_yticks(range(len(bpm.exits)), [literal(label) for label in labels])
    axes.set_xlim(-0.5, bpm.batch_size + 0.5)
    show_integers(axes)
    label_axes(axes, x=f"rows of a batch of {bpm.batch_size} that go on past this exit")
    plain_axes(axes)
    _add_colorbar(figure, image, axes, "probability")
    axes.legend(fontsize=SMALL, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1)
    return figure


def draw_times(data: ReportData) -> Any:
    """Draws the ITM as heat maps: engine x batch size, separately for the network, the exit heads and the host."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, NullFormatter

    groups = {title: rows for title, rows in matrix_groups(data).items() if rows}
    count = sum(map(len, groups.values()))
    crowded = count > _MANY_ROWS
    values = {row: np.array(data.itm.row_ms(row)) for rows in groups.values() for row in rows}
    lowest_ms, highest_ms = _time_range(values.values())
    norm = LogNorm(lowest_ms, highest_ms)
    figure = new_figure(1.4 + (0.15 if crowded else 0.235) * count)
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=list(map(len, groups.values())))
    names = _row_labels(data)
    for axes, (title, rows) in zip(panels.flat, groups.items(), strict=True):
        table = np.stack([values[row] for row in rows])
        image = axes.imshow(np.maximum(table, lowest_ms), aspect="auto", cmap=_HEAT, norm=norm, interpolation="nearest")
        axes.set_yticks(range(len(rows)), [literal(names[row]) for row in rows])
        axes.set_xticks(range(len(data.itm.batch_sizes)), list(map(str, data.itm.batch_sizes)))
        axes.set_title(title, fontsize=TEXT, color=INK, loc="left")
        _bare_axes(axes, crowded=crowded)
        if not crowded:
            _write_cells(axes, table, norm)
    label_axes(panels.flat[-1], x="rows in the batch")
    bar = _add_colorbar(figure, image, panels.ravel().tolist(), "milliseconds")
    wide = highest_ms > 100 * lowest_ms
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return figure


def _time_range(rows: Collection[np.ndarray]) -> tuple[float, float]:
    """Returns the lowest time above 0 and the highest, in milliseconds."""
    lowest_ms = min((float(row[row > 0].min(initial=np.inf)) for row in rows), default=np.inf)
    lowest_ms = max(lowest_ms, 1e-4) if np.isfinite(lowest_ms) else 1.0
    return lowest_ms, max(lowest_ms, *(float(row.max()) for row in rows))


def _bare_axes(axes: Any, *, crowded: bool) -> None:
    plain_axes(axes)
    axes.tick_params(labelsize=8, length=0)
    axes.tick_params(axis="y", labelsize=6 if crowded else 8)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _add_colorbar(figure: Any, image: Any, axes: Any, label: str) -> Any:
    bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.04)
    bar.set_label(label, fontsize=TEXT, color=INK)
    bar.ax.tick_params(labelsize=SMALL, colors=INK)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bar.outline.set_visible(False)
    return bar


def _row_labels(data: ReportData) -> dict[str, str]:
    cuts = [cut.name for cut in data.spec.candidates]
    short = short_names(data.spec)
    return {
        **{segment_row(index): f"segment {index + 1}" for index in range(len(data.spec.segments))},
        FINAL_HEAD_GRAPH: FINAL_HEAD_LABEL,
        FULL: "full network",
        SERVING: "serving a batch",
        **{head_row(name): f"head at {short[name]}" for name in cuts},
        **{gather_row(name): f"gather after {short[name]}" for name in cuts},
    }


def _write_cells(axes: Any, table: np.ndarray, norm: Any) -> None:
    for (row, column), value in np.ndenumerate(table):
        text = f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
        dark = norm(max(value, norm.vmin)) > 0.6
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color="white" if dark else INK)

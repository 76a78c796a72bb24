"""Figures of a report, drawn with matplotlib from ``ReportData``; the captions say what they mean.

Two colours carry the meaning everywhere: blue for what leaves early or was chosen, orange for what it is compared with;
grey is the full network. They can be told apart with every kind of colour vision (Okabe and Ito 2008), and heat maps
grow darker in one hue.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from artifacts import (
    EARLY_COLOUR,
    FAINT,
    FINAL_HEAD_GRAPH,
    FINAL_HEAD_LABEL,
    FULL_COLOUR,
    INK,
    MissingExtraError,
    clean_axes,
)
from planner.predict.costs import FULL, SERVING, gather_row, head_row, segment_row
from planner.predict.objectives import OBJECTIVE_WORDS
from planner.report.cut_graph import draw_cut_graph
from planner.report.data import (
    ReportData,
    committed,
    depths,
    matrix_groups,
    short_names,
    survivor_chain,
    threshold_curves,
)
from runtime.bench import draw_latencies

GREY, ORANGE = FULL_COLOUR, "#d55e00"
DPI = 160
WIDTH_IN = 9.0
_COLUMNS = 4
_SMALL, _TEXT = 8.5, 9.5
_MANY_ROWS = 45
_HEAT = "Blues"


def check_matplotlib() -> None:
    """Raises ``MissingExtraError`` when matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error


def draw_figures(data: ReportData) -> dict[str, Any]:
    """Returns every figure that the data allows: name -> matplotlib ``Figure``, in the order of the report.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_matplotlib()
    return {name: draw(data) for name, (draw, wanted) in _FIGURES.items() if wanted(data)}


def encode_png(figure: Any) -> bytes:
    """Returns a figure as the bytes of a PNG; equal figures give equal bytes."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
    return stream.getvalue()


def literal(text: str) -> str:
    """Returns text escaped so that matplotlib draws it as it is written: a dollar sign starts no formula."""
    return text.replace("$", r"\$")


def _new_figure(height_in: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _label(axes: Any, *, x: str = "", y: str = "") -> None:
    axes.set_xlabel(x, fontsize=_TEXT, color=INK)
    axes.set_ylabel(y, fontsize=_TEXT, color=INK)


def _percent(axis: Any) -> None:
    axis.set_major_formatter(lambda share, _: f"{round(100 * share, 6):g}%")


def _plain_axes(axes: Any) -> None:
    clean_axes(axes)
    axes.tick_params(labelsize=_SMALL)
    axes.set_axisbelow(True)


def _draw_cut_graph(data: ReportData) -> Any:
    figure = _new_figure(1.0)
    draw_cut_graph(figure, data, literal=literal)
    return figure


def draw_accuracy(data: ReportData) -> Any:
    """Draws metric and agreement of each candidate, if all samples left there."""
    found = depths(data)
    figure = _new_figure(4.0)
    axes = figure.subplots()
    places = np.arange(len(found))
    metric = [depth.metric for depth in found]
    full, required = found[-1].metric, found[-1].metric * (1 - data.plan.tolerance)
    axes.axhline(full, color=GREY, linewidth=1.2, linestyle=(0, (4, 2)), label="full network", zorder=1)
    axes.axhline(
        required, color=GREY, linewidth=1.2, linestyle=(0, (1, 2)), zorder=1,
        label=f"required at tolerance {data.plan.tolerance:.3g}",
    )  # fmt: skip
    if data.plan.risk != "agreement":
        axes.plot(
            places, [depth.agreement for depth in found], color=ORANGE, marker="s", markersize=4.5, linewidth=1.3,
            label="same answer as the full network",
        )  # fmt: skip
    axes.plot(places, metric, color=EARLY_COLOUR, marker="o", markersize=5, linewidth=1.8, label=data.metric_word)
    chosen = [place for place, depth in zip(places, found, strict=True) if depth.chosen]
    axes.plot(
        chosen, [found[place].metric for place in chosen], linestyle="none", marker="o", markersize=12,
        markerfacecolor="none", markeredgecolor=EARLY_COLOUR, markeredgewidth=1.6, label="exits of the plan",
    )  # fmt: skip
    names = short_names(data.spec)
    crowded = len(found) > 9
    ticks = [
        literal(f"{names[depth.name]}{' (' if crowded else chr(10)}{depth.share_of_time:.0%}{')' if crowded else ''}")
        for depth in found
    ]
    axes.set_xticks(places, ticks, rotation=60 if crowded else 0, ha="right" if crowded else "center")
    _percent(axes.yaxis)
    _label(
        axes,
        y=f"{data.metric_word} if all left here",
        x="exit candidate, and when it answers (of the full network's time)",
    )
    _plain_axes(axes)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    figure.legend(loc="outside upper left", ncols=5, fontsize=_SMALL, frameon=False, columnspacing=1.4)
    return figure


def draw_thresholds(data: ReportData) -> Any:
    """Draws one panel per candidate: share and metric of the samples that leave, against the threshold."""
    curves, names = threshold_curves(data), data.trace.exits
    columns = min(_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = _new_figure(0.8 + 1.75 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    short = short_names(data.spec, 22)
    for index, name in enumerate(names):
        axes = panels.flat[index]
        (leaving,) = axes.plot(curves.thresholds, curves.leaving[index], color=EARLY_COLOUR, linewidth=1.8)
        (precision,) = axes.plot(curves.thresholds, curves.precision[index], color=ORANGE, linewidth=1.5)
        _plain_axes(axes)
        axes.grid(color=FAINT, linewidth=0.6)
        axes.set_title(
            literal(short[name]),
            fontsize=_TEXT,
            color=INK,
            loc="left",
            fontweight="bold" if name in curves.at else None,
        )
        if name in curves.at:
            at = curves.at[name]
            axes.axvline(at, color=INK, linewidth=1.0, linestyle=(0, (4, 2)))
            axes.text(
                at + (0.03 if at < 0.5 else -0.03), 0.05, f"{at:.3g}", fontsize=_SMALL, color=INK,
                ha="left" if at < 0.5 else "right",
            )  # fmt: skip
        axes.xaxis.set_tick_params(labelbottom=index + columns >= len(names))
    panels.flat[0].set_ylim(0, 1.03)
    panels.flat[0].set_xlim(0, 1)
    panels.flat[0].set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    _percent(panels.flat[0].yaxis)
    figure.supxlabel("threshold of the confidence (dashed: the plan's)", fontsize=_TEXT, color=INK)
    right = f"{data.metric_word} of those that leave"
    figure.legend(
        [leaving, precision], ["share of all samples that leave", right], loc="outside upper left", ncols=2,
        fontsize=_TEXT, frameon=False,
    )  # fmt: skip
    return figure


def draw_bpm(data: ReportData) -> Any:
    """Draws the BPM as a heat map: candidate x survivors."""
    from matplotlib.colors import PowerNorm

    bpm = data.patterns
    figure = _new_figure(1.5 + 0.34 * len(bpm.exits))
    axes = figure.subplots()
    norm = PowerNorm(
        0.5, 0, max(float(bpm.probability.max()), 1e-9)
    )  # linear, one certain row would make the others pale
    image = axes.imshow(bpm.probability, aspect="auto", cmap=_HEAT, norm=norm, interpolation="nearest")
    counts = np.arange(bpm.batch_size + 1)
    axes.plot(
        bpm.probability @ counts, range(len(bpm.exits)), linestyle="none", marker="D", markersize=5, color=ORANGE,
        markeredgecolor="white", markeredgewidth=0.8, label="mean",
    )  # fmt: skip
    names = short_names(data.spec)
    labels = [f"{names[name]} ≥ {at:.3g}" for name, at in zip(bpm.exits, bpm.thresholds, strict=True)]
    axes.set_yticks(range(len(bpm.exits)), [literal(label) for label in labels])
    axes.set_xlim(-0.5, bpm.batch_size + 0.5)
    _integer_ticks(axes)
    _label(axes, x=f"rows of a batch of {bpm.batch_size} that go on past this exit")
    _plain_axes(axes)
    _add_colorbar(figure, image, axes, "probability")
    axes.legend(fontsize=_SMALL, frameon=False, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.1)
    return figure


def _integer_ticks(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=True))


def _add_colorbar(figure: Any, image: Any, axes: Any, label: str) -> Any:
    bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.04)
    bar.set_label(label, fontsize=_TEXT, color=INK)
    bar.ax.tick_params(labelsize=_SMALL, colors=INK)
    bar.ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    bar.outline.set_visible(False)
    return bar


def draw_times(data: ReportData) -> Any:
    """Draws the ITM as heat maps: engine x batch size, separately for the network, the exit heads and the host."""
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator, NullFormatter

    groups = {title: rows for title, rows in matrix_groups(data).items() if rows}
    count = sum(map(len, groups.values()))
    crowded = count > _MANY_ROWS
    values = {row: np.array(data.itm.row_ms(row)) for rows in groups.values() for row in rows}
    lowest_ms = min((float(row[row > 0].min(initial=np.inf)) for row in values.values()), default=np.inf)
    lowest_ms = max(lowest_ms, 1e-4) if np.isfinite(lowest_ms) else 1.0
    highest_ms = max(lowest_ms, *(float(row.max()) for row in values.values()))
    norm = LogNorm(lowest_ms, highest_ms)
    figure = _new_figure(1.4 + (0.15 if crowded else 0.235) * count)
    panels = figure.subplots(len(groups), 1, sharex=True, squeeze=False, height_ratios=list(map(len, groups.values())))
    names = _row_labels(data)
    for axes, (title, rows) in zip(panels.flat, groups.items(), strict=True):
        table = np.stack([values[row] for row in rows])
        image = axes.imshow(np.maximum(table, lowest_ms), aspect="auto", cmap=_HEAT, norm=norm, interpolation="nearest")
        axes.set_yticks(range(len(rows)), [literal(names[row]) for row in rows])
        axes.set_xticks(range(len(data.itm.batch_sizes)), list(map(str, data.itm.batch_sizes)))
        axes.set_title(title, fontsize=_TEXT, color=INK, loc="left")
        _plain_axes(axes)
        axes.tick_params(labelsize=8, length=0)
        axes.tick_params(axis="y", labelsize=6 if crowded else 8)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if not crowded:
            _write_cells(axes, table, norm)
    _label(panels.flat[-1], x="rows in the batch")
    bar = _add_colorbar(figure, image, panels.ravel().tolist(), "milliseconds")
    wide = highest_ms > 100 * lowest_ms
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    return figure


def _row_labels(data: ReportData) -> dict[str, str]:
    cuts = [cut.name for cut in data.spec.candidates]
    short = short_names(data.spec)
    return {
        **{segment_row(index): f"segment {index + 1}" for index in range(len(data.spec.segments))},
        FINAL_HEAD_GRAPH: FINAL_HEAD_LABEL, FULL: "full network", SERVING: "serving a batch",
        **{head_row(name): f"head at {short[name]}" for name in cuts},
        **{gather_row(name): f"gather after {short[name]}" for name in cuts},
    }  # fmt: skip


def _write_cells(axes: Any, table: np.ndarray, norm: Any) -> None:
    for (row, column), value in np.ndenumerate(table):
        text = f"{value:.0f}" if value >= 100 else f"{value:#.3g}"
        dark = norm(max(value, norm.vmin)) > 0.6
        axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color="white" if dark else INK)


def draw_survivors(data: ReportData) -> Any:
    """Draws the rows that enter each stage, and the share that leaves at its end."""
    chain = survivor_chain(data)
    places = np.arange(len(chain.stages))
    figure = _new_figure(1.1 + 0.55 * len(places))
    axes = figure.subplots()
    colours = [*[EARLY_COLOUR] * (len(places) - 1), GREY]
    axes.barh(places, chain.expected, color=colours, height=0.6, alpha=0.85)
    spread = np.stack([chain.expected - chain.low, chain.high - chain.expected]).clip(0)
    axes.errorbar(chain.expected, places, xerr=spread, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3.5)
    width = data.plan.batch_size
    for place, (rows, high, share) in enumerate(zip(chain.expected, chain.high, chain.leaving, strict=True)):
        text = f"{rows:.1f} rows; {share:.1%} of all queries leave"
        axes.text(max(rows, high) + 0.015 * width, place, text, va="center", fontsize=_TEXT, color=INK)
    short = short_names(data.spec)
    names = [literal(f"stage {place + 1}, up to\n{short[name]}") for place, name in enumerate(chain.stages)]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    _integer_ticks(axes)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= width])
    axes.set_xlim(0, width * 1.5)
    axes.spines["bottom"].set_bounds(0, width)
    _label(axes, x=f"rows that enter the stage, of a batch of {width} (whiskers: 98 of 100 batches)")
    axes.xaxis.label.set_horizontalalignment("left")
    axes.xaxis.label.set_x(0.0)
    _plain_axes(axes)
    return figure


def draw_latency(data: ReportData) -> Any:
    """Draws the latency distributions of the full network and of the bundle, as measured by ``runtime.bench``."""
    figure = _new_figure(3.6)
    axes = figure.subplots()
    draw_latencies(axes, data.bench or {})
    axes.tick_params(labelsize=_SMALL)
    return figure


def draw_pareto(data: ReportData) -> Any:
    """Draws the metric given up against the objective's time: one point per tolerance, and the committed plan."""
    sweep, plan = data.sweep, committed(data)
    figure = _new_figure(4.0)
    axes = figure.subplots()
    lost = np.array([1 - point.metric_ratio for point in sweep.points])
    spent_ms = np.array([sweep.time_ms(point) for point in sweep.points])
    best = np.array([point.efficient for point in sweep.points])
    order = np.lexsort((spent_ms[best], lost[best]))
    axes.step(lost[best][order], spent_ms[best][order], where="post", color=EARLY_COLOUR, linewidth=1.6, zorder=2)
    axes.plot(
        lost[best], spent_ms[best], linestyle="none", marker="o", markersize=6, color=EARLY_COLOUR, zorder=3,
        label="fastest plan found at a tolerance",
    )  # fmt: skip
    if not best.all():
        axes.plot(
            lost[~best], spent_ms[~best], linestyle="none", marker="o", markersize=6, markerfacecolor="white",
            markeredgecolor=EARLY_COLOUR, label="another point is better", zorder=3,
        )  # fmt: skip
    star = (1 - plan.metric / sweep.full_metric, plan.searched_ms(sweep.objective))
    axes.plot(
        *star, linestyle="none", marker="*", markersize=15, color=ORANGE, markeredgecolor="white", zorder=4,
        label="committed plan",
    )  # fmt: skip
    axes.axvline(
        data.plan.tolerance, color=GREY, linewidth=1.1, linestyle=(0, (4, 2)), zorder=1,
        label=f"tolerance of the plan, {data.plan.tolerance:.3g}",
    )  # fmt: skip
    left, right = min(0.0, float(lost.min())), max(float(lost.max()), data.plan.tolerance, 1e-4)
    if right > 0.2:
        axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlim(left - 0.03 * min(right, 0.1), right * (1.25 if right > 0.2 else 1.03))
    fastest, slowest = min(*spent_ms, star[1]), max(*spent_ms, star[1])
    room = max(0.06 * (slowest - fastest), 0.01 * slowest)
    axes.set_ylim(max(0.0, fastest - room), slowest + room)
    _percent(axes.xaxis)
    y_words = f"expected {OBJECTIVE_WORDS[sweep.objective]} (ms)"
    _label(axes, x=f"{data.metric_word} given up (share of the full network's)", y=y_words)
    _plain_axes(axes)
    axes.grid(color=FAINT, linewidth=0.6)
    times = axes.secondary_yaxis("right")  # the same times, as a ratio
    times.yaxis.set_major_formatter(lambda ms, _: f"{sweep.full_ms / ms:.3g}" if ms > 0 else "")
    times.set_ylabel("times as fast as the full network", fontsize=_TEXT, color=INK, labelpad=8)
    times.tick_params(labelsize=_SMALL, colors=INK)
    times.spines["right"].set_color(INK)
    figure.legend(loc="outside upper left", ncols=4, fontsize=_SMALL, frameon=False)
    return figure


def _always(_: ReportData) -> bool:
    return True


def _has_candidates(data: ReportData) -> bool:
    return bool(data.trace.exits)


_FIGURES: Mapping[str, tuple[Callable[[ReportData], Any], Callable[[ReportData], bool]]] = {
    "cut_graph": (_draw_cut_graph, _always),
    "accuracy_by_depth": (draw_accuracy, _has_candidates),
    "threshold_curves": (draw_thresholds, _has_candidates),
    "batching_pattern": (draw_bpm, lambda data: bool(data.patterns.exits)),
    "inference_times": (draw_times, _always),
    "survivors": (draw_survivors, _always),
    "latency": (draw_latency, lambda data: data.bench is not None),
    "pareto": (draw_pareto, _always),
}

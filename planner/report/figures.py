"""Figures of a report, drawn with matplotlib from ``ReportData``; the captions say what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from artifacts import EARLY_COLOUR, INK
from planner.report.answers import draw_answers
from planner.report.curves import draw_accuracy, draw_pareto, draw_thresholds
from planner.report.cut_graph import draw_cut_graph
from planner.report.data import ReportData, short_names, survivor_chain
from planner.report.drawing import (
    GREY,
    SMALL,
    TEXT,
    check_matplotlib,
    label_axes,
    literal,
    new_figure,
    plain_axes,
    show_integers,
)
from planner.report.heat_maps import draw_bpm, draw_times
from runtime.bench import draw_latencies


def draw_figures(data: ReportData) -> dict[str, Any]:
    """Returns every figure that the data allows: name -> matplotlib ``Figure``, in the order of the report.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    check_matplotlib()
    return {name: draw(data) for name, (draw, wanted) in _FIGURES.items() if wanted(data)}


def _draw_cut_graph(data: ReportData) -> Any:
    figure = new_figure(1.0)
    draw_cut_graph(figure, data, literal=literal)
    return figure


def draw_survivors(data: ReportData) -> Any:
    """Draws the rows that enter each stage, and the share that leaves at its end."""
    chain = survivor_chain(data)
    places = np.arange(len(chain.stages))
    figure = new_figure(1.1 + 0.55 * len(places))
    axes = figure.subplots()
    colours = [*[EARLY_COLOUR] * (len(places) - 1), GREY]
    axes.barh(places, chain.expected, color=colours, height=0.6, alpha=0.85)
    spread = np.stack([chain.expected - chain.low, chain.high - chain.expected]).clip(0)
    axes.errorbar(chain.expected, places, xerr=spread, fmt="none", ecolor=INK, elinewidth=1.2, capsize=3.5)
    width = data.plan.batch_size
    for place, (rows, high, share) in enumerate(zip(chain.expected, chain.high, chain.leaving, strict=True)):
        text = f"{rows:.1f} rows; {share:.1%} of all queries leave"
        axes.text(max(rows, high) + 0.015 * width, place, text, va="center", fontsize=TEXT, color=INK)
    short = short_names(data.spec)
    names = [literal(f"stage {place + 1}, up to\n{short[name]}") for place, name in enumerate(chain.stages)]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    show_integers(axes)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= width])
    axes.set_xlim(0, width * 1.5)
    axes.spines["bottom"].set_bounds(0, width)
    label_axes(axes, x=f"rows that enter the stage, of a batch of {width} (whiskers: 98 of 100 batches)")
    axes.xaxis.label.set_horizontalalignment("left")
    axes.xaxis.label.set_x(0.0)
    plain_axes(axes)
    return figure


def draw_latency(data: ReportData) -> Any:
    """Draws the latency distributions of the full network and of the bundle, as measured by ``runtime.bench``."""
    figure = new_figure(3.6)
    axes = figure.subplots()
    draw_latencies(axes, data.bench or {})
    axes.tick_params(labelsize=SMALL)
    return figure


def _draw_examples(data: ReportData) -> Any:
    if data.examples is None:
        raise TypeError("a report without examples has no picture of them")
    return draw_answers(data.examples)


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
    "answers": (_draw_examples, lambda data: data.examples is not None),
    "pareto": (draw_pareto, _always),
}

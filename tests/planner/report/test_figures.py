"""The figures of a report: the data that they show, their axes and their labels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from planner.predict.replay import evaluate_exits
from planner.report.captions import caption_of
from planner.report.data import survivor_chain, threshold_curves
from tests.planner.report.pages import draw, render
from tests.planner.report_worlds import make_bench, make_report

pytest.importorskip("matplotlib", reason="draws figures: pip install 'pame[report]'")


def test_accuracy_figure() -> None:
    data = make_report()
    (axes,) = draw(data)["accuracy_by_depth"].axes
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    np.testing.assert_allclose(lines["accuracy"], data.trace.metric.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(lines["same answer as the full network"], data.trace.agreement.mean(axis=1))
    assert lines["required at tolerance 0.05"][0] == pytest.approx(0.95 * data.trace.full_metric)
    assert len(lines["exits of the plan"]) == len(data.plan.exits) > 0
    assert [label.get_text().split("\n")[0] for label in axes.get_xticklabels()] == [*data.trace.exits, "final head"]


def test_threshold_figure() -> None:
    data = make_report()
    panels = [axes for axes in draw(data)["threshold_curves"].axes if axes.get_visible()]
    assert len(panels) == len(data.trace.exits)
    curves = threshold_curves(data)
    for row, axes in enumerate(panels):
        leaving, precision = axes.get_lines()[:2]
        for threshold in (0.0, 0.3, 0.75):
            at = int(np.flatnonzero(np.isclose(curves.thresholds, threshold))[0])
            leaves = data.trace.confidence[row] >= np.float32(threshold)
            assert leaving.get_ydata()[at] == pytest.approx(leaves.mean())
            assert precision.get_ydata()[at] == pytest.approx(data.trace.metric[row][leaves].mean())
        assert axes.get_xlim() == (0, 1)
        assert np.all(np.diff(leaving.get_ydata()) <= 0)
    marked = [axes.get_title(loc="left") for axes in panels if len(axes.get_lines()) == 3]
    assert marked == list(data.chosen.cuts)


def test_pattern_figure() -> None:
    data = make_report()
    axes = draw(data)["batching_pattern"].axes[0]
    np.testing.assert_allclose(axes.get_images()[0].get_array(), data.patterns.probability)
    assert axes.get_xlim() == (-0.5, data.plan.batch_size + 0.5)
    assert len(axes.get_yticklabels()) == len(data.patterns.exits)


def test_time_figure_shows_every_row_of_the_matrix() -> None:
    data = make_report()
    figure = draw(data)["inference_times"]
    heat = [axes for axes in figure.axes if axes.get_images()]
    shown = np.concatenate([axes.get_images()[0].get_array() for axes in heat])
    assert shown.shape == (len(data.itm.median_ms), len(data.itm.batch_sizes))
    np.testing.assert_allclose(sorted(shown.ravel()), sorted(np.ravel(list(data.itm.median_ms.values()))))
    assert [label.get_text() for label in heat[-1].get_xticklabels()] == [str(size) for size in data.itm.batch_sizes]
    assert heat[0].get_yticklabels()[-1].get_text() == "full network"


def test_survivor_figure() -> None:
    data = make_report()
    (axes,) = draw(data)["survivors"].axes
    outcome = evaluate_exits(data.trace, data.chosen)
    widths = [bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(widths, 8 * np.array(outcome.survival))
    chain = survivor_chain(data)
    for stage, probability in enumerate(chain.probability):
        assert probability[: chain.low[stage]].sum() < 0.01 + 1e-9
        assert probability[: chain.high[stage] + 1].sum() >= 0.99 - 1e-9


def test_latency_figure() -> None:
    (axes,) = draw(replace(make_report(), bench=make_bench()))["latency"].axes
    assert "ms" in axes.get_xlabel()
    assert axes.get_xlim() == (0, 15)
    assert "mean 4.0 ms" in " ".join(text.get_text() for text in axes.texts)


def test_pareto_figure() -> None:
    data = make_report()
    axes = draw(data)["pareto"].axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    best = [point for point in data.sweep.points if point.efficient]
    drawn = lines["fastest plan found at a tolerance"]
    np.testing.assert_allclose(sorted(drawn.get_ydata()), sorted(point.mean_ms for point in best))
    np.testing.assert_allclose(sorted(drawn.get_xdata()), sorted(1 - point.metric_ratio for point in best))
    assert lines["committed plan"].get_ydata() == [data.considered[0].searched_mean_ms]
    low, high = axes.get_ylim()
    assert low <= min(point.mean_ms for point in data.sweep.points) <= max(point.mean_ms for point in best) <= high


def test_pareto_figure_and_words_go_by_the_objective() -> None:
    """A sweep by the time of a whole batch, which is above the mean latency everywhere."""
    data = make_report()
    by_batch = [replace(point, efficient=point.exits == data.sweep.points[-1].exits) for point in data.sweep.points]
    searched = replace(data.considered[0], searched_batch_ms=data.sweep.points[-1].batch_ms)
    sweep = replace(data.sweep, objective="batch", points=tuple(by_batch))
    data = replace(data, sweep=sweep, considered=[searched, data.considered[1]])
    axes = draw(data)["pareto"].axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    drawn = [lines[name].get_ydata() for name in ("fastest plan found at a tolerance", "another point is better")]
    np.testing.assert_allclose(sorted(np.concatenate(drawn)), sorted(point.batch_ms for point in by_batch))
    assert lines["committed plan"].get_ydata() == [by_batch[-1].batch_ms]
    assert axes.get_ylabel() == "expected time of a whole batch (ms)"
    assert "(by the time of a whole batch)" in caption_of("pareto", data)
    assert "smaller time of a whole batch" in render(data)
    assert draw(make_report())["pareto"].axes[0].get_ylabel() == "expected mean latency (ms)"


def test_the_cut_graph_names_every_exit_and_marks_those_of_the_plan() -> None:
    data = make_report(exits=9)
    figure = draw(data)["cut_graph"]
    texts = {text.get_text(): text for text in figure.axes[0].texts}
    for cut in data.trace.exits:
        assert (texts[cut].get_fontweight() == "bold") == (cut in data.chosen.cuts)
    assert any("are answered here" in text for text in texts)


def test_figures_show_names_as_they_are_written() -> None:
    data = make_report(cuts=("a$b$", "c$d", "e", "f"))
    for figure in draw(data).values():
        figure.canvas.draw()
    assert r"a\$b\$" in {text.get_text() for text in draw(data)["cut_graph"].axes[0].texts}

"""The report: one page without a network, figures with the right axes, captions that follow the data, its command."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import Certificate, RunFolder, digest_of, new_artifact, open_model, write_model_spec
from planner.commands.plan import main
from planner.predict.replay import evaluate_exits
from planner.report.captions import caption_of, faster, summarise
from planner.report.data import (
    depths,
    headline,
    quantile_of,
    short_names,
    survivor_chain,
    threshold_curves,
)
from planner.report.page import render_report, render_table
from tests.planner.report_worlds import NASTY, bundle_digest, make_bench, make_report, write_run

pytest.importorskip("matplotlib", reason="draws figures: pip install 'pame[report]'")
SECTIONS = (
    "plan", "cut_graph", "accuracy_by_depth", "threshold_curves", "batching_pattern", "inference_times", "survivors",
    "latency", "pareto", "certificate", "environment", "commands",
)  # fmt: skip
FIGURES = SECTIONS[1:9]


class Page(HTMLParser):
    """What stands in a page: tags with attributes, and text; complains about tags that are not closed."""

    VOID = ("meta", "img")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def ids(self) -> list[str | None]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]

    def images(self) -> list[bytes]:
        sources = [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]
        return [base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True) for source in sources]


def draw(data: Any) -> dict[str, Any]:
    from planner.report.figures import draw_figures

    return draw_figures(data)


def render(data: Any) -> str:
    from planner.report.figures import encode_png

    return render_report(data, {name: encode_png(figure) for name, figure in draw(data).items()})


def test_the_page_is_whole_and_needs_no_network() -> None:
    page = render(replace(make_report(), bench=make_bench()))
    found = Page(page)
    assert found.ids() == list(SECTIONS)
    images = found.images()
    assert len(images) == len(FIGURES)
    assert all(image.startswith(b"\x89PNG") and len(image) > 5_000 for image in images)
    assert not re.search(r"https?:|//\w|@import|url\(", re.sub(r"base64,[^\"]*", "", page))
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe", "object"})
    assert {value for _, attributes in found.tags for name, value in attributes.items() if name == "href"} == {
        f"#{name}" for name in SECTIONS
    }


def test_names_are_escaped_everywhere() -> None:
    data = make_report(cuts=(NASTY, f"{NASTY}2", "plain", "last"), name=NASTY)
    page = render(replace(data, digests={NASTY: NASTY}, commands=(NASTY,), bench_note=NASTY))
    assert "<script>" not in page
    text = "".join(Page(page).text)
    assert text.count(NASTY) > 6


def test_without_a_measurement_the_page_says_how_to_get_one() -> None:
    data = make_report()
    found = Page(render(data))
    assert found.ids() == list(SECTIONS)
    assert len(found.images()) == len(FIGURES) - 1
    assert data.bench_note in "".join(found.text)
    assert headline(data).source == "planner"
    assert headline(data).speedup == pytest.approx(
        data.considered[1].measured_mean_ms / data.considered[0].measured_mean_ms
    )


def test_no_certificate_is_the_papers_way_and_a_certificate_is_stated() -> None:
    data, pictures = make_report(), dict.fromkeys(FIGURES, b"")

    def read(plan: Any) -> str:
        return "".join(Page(render_report(replace(data, plan=plan), pictures)).text)

    assert "None: the paper's way" in read(data.plan)
    told = Certificate(
        risk="metric", bound=0.05, delta=0.1, finite_sample=True, method="betting", p_value=0.04, observed=0.01,
        samples=200, tuning_samples=100, position=1, seed=0, tuning_digest="a", certification_digest="b",
    )  # fmt: skip
    certified = read(replace(data.plan, certificate=told))
    assert "Except with a probability of 0.1" in certified
    assert "loses at most 0.05 of the full network's accuracy" in certified
    assert "no guarantee" not in certified
    for word in ("finite sample", "betting", "200"):
        assert word in certified
    empirical = read(replace(data.plan, certificate=replace(told, finite_sample=False)))
    assert "no guarantee at a finite number" in empirical


@pytest.mark.parametrize("exits", [0, 1, 12])
def test_networks_of_every_length(exits: int) -> None:
    data = make_report(exits=exits)
    found = Page(render(data))
    assert found.ids() == list(SECTIONS)
    assert len(found.images()) == len(FIGURES) - 1 - (0 if exits else 3)


def test_a_plan_without_exits_is_told_as_such() -> None:
    data = make_report(planned=False)
    assert "found no exits" in summarise(data)
    text = "".join(Page(render(data)).text)
    assert "every query is answered by the final head" in text
    assert "committed plan" in text


def test_accuracy_figure() -> None:
    data = make_report()
    (axes,) = draw(data)["accuracy_by_depth"].axes
    lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    np.testing.assert_allclose(lines["accuracy"], data.trace.metric.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(lines["same answer as the full network"], data.trace.agreement.mean(axis=1))
    assert lines["what tolerance 0.05 asks for"][0] == pytest.approx(0.95 * data.trace.full_metric)
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
    best = [one for one in data.sweep.points if one.efficient]
    drawn = lines["fastest plan found at a tolerance"]
    np.testing.assert_allclose(sorted(drawn.get_ydata()), sorted(one.mean_ms for one in best))
    np.testing.assert_allclose(sorted(drawn.get_xdata()), sorted(1 - one.metric_ratio for one in best))
    assert lines["committed plan"].get_ydata() == [data.considered[0].searched_mean_ms]
    low, high = axes.get_ylim()
    assert low <= min(one.mean_ms for one in data.sweep.points) <= max(one.mean_ms for one in best) <= high


def test_pareto_figure_and_words_go_by_the_objective() -> None:
    """A sweep by the time of a whole batch, which is above the mean latency everywhere."""
    data = make_report()
    by_batch = [replace(one, efficient=one.exits == data.sweep.points[-1].exits) for one in data.sweep.points]
    searched = replace(data.considered[0], searched_batch_ms=data.sweep.points[-1].batch_ms)
    sweep = replace(data.sweep, objective="batch", points=tuple(by_batch))
    data = replace(data, sweep=sweep, considered=[searched, data.considered[1]])
    axes = draw(data)["pareto"].axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    drawn = [lines[name].get_ydata() for name in ("fastest plan found at a tolerance", "another point is better")]
    np.testing.assert_allclose(sorted(np.concatenate(drawn)), sorted(one.batch_ms for one in by_batch))
    assert lines["committed plan"].get_ydata() == [by_batch[-1].batch_ms]
    assert axes.get_ylabel() == "expected time of a whole batch (ms)"
    assert "(by the time of a whole batch)" in caption_of("pareto", data)
    assert "smaller time of a whole batch" in render(data)
    assert draw(make_report())["pareto"].axes[0].get_ylabel() == "expected mean latency (ms)"


def test_the_cut_graph_names_every_exit_and_marks_the_plans() -> None:
    data = make_report(exits=9)
    figure = draw(data)["cut_graph"]
    texts = {text.get_text(): text for text in figure.axes[0].texts}
    for cut in data.trace.exits:
        assert (texts[cut].get_fontweight() == "bold") == (cut in data.chosen.cuts)
    assert any("are answered here" in text for text in texts)


def test_figures_take_names_as_they_stand() -> None:
    data = make_report(cuts=("a$b$", "c$d", "e", "f"))
    for figure in draw(data).values():
        figure.canvas.draw()
    assert r"a\$b\$" in {text.get_text() for text in draw(data)["cut_graph"].axes[0].texts}


def test_captions_follow_the_data() -> None:
    data = make_report()
    first = data.plan.exits[0]
    assert f"{first.leaving_share:.1%} of the queries leave at {first.cut}" in caption_of("cut_graph", data)
    assert f"the accuracy would be {data.trace.metric[0].mean():.1%}" in caption_of("accuracy_by_depth", data)
    assert "98 have" in caption_of("survivors", data)
    found = depths(data)
    perfect = replace(data, trace=replace(data.trace, metric=np.ones_like(data.trace.metric)))
    assert f"{found[0].name} is the first exit that alone keeps" in caption_of("accuracy_by_depth", perfect)
    wrong = np.zeros_like(data.trace.metric)
    wrong[-1] = 1
    hopeless = replace(data, trace=replace(data.trace, metric=wrong))
    assert "No exit alone keeps" in caption_of("accuracy_by_depth", hopeless)
    slower = replace(data.considered[0], searched_mean_ms=2 * data.considered[0].searched_mean_ms)
    behind = replace(data, considered=[slower, data.considered[1]])
    assert "the least expected time within its tolerance" in caption_of("pareto", data)
    assert "measured end to end" in caption_of("pareto", behind)
    assert faster(0.5) == "2.00 times as slow"


def test_tables_align_numbers_and_escape() -> None:
    table = render_table(("a<", "b"), [("x&y", "1.0")], caption="<c>")
    assert "<td>x&amp;y</td>" in table
    assert '<td class="n">1.0</td>' in table
    assert "<caption>&lt;c&gt;</caption>" in table


def test_short_names_differ_and_keep_what_tells_them_apart() -> None:
    long = tuple(f"/layer{index}/block/Relu_output_0" for index in range(12))
    assert list(short_names(make_report(exits=11, cuts=long).spec).values())[:2] == ["layer0", "layer1"]
    alike = tuple(f"{letter}{'x' * 40}" for letter in "abcd")
    short = list(short_names(make_report(cuts=alike).spec).values())
    assert len(set(short)) == 5
    assert max(map(len, short)) <= 14


def test_quantiles_of_a_distribution() -> None:
    reached = np.array([[0.005, 0.5, 0.995, 1.0], [1.0, 1.0, 1.0, 1.0]])
    assert quantile_of(reached, 0.01).tolist() == [1, 0]
    assert quantile_of(reached, 0.99).tolist() == [2, 0]


def test_the_training_that_the_model_holds_is_among_the_commands(tmp_path: Path) -> None:
    from planner.commands.report import find_training
    from planner.report.commands import training_arguments

    run, parameters = RunFolder(root=tmp_path), {"mode": "frozen", "epochs": 4, "seed": 1, "weight_decay": 0.01}
    for folder, told in ((run.training / "result", {"mode": "joint"}), (run.training / "weights", parameters)):
        with new_artifact(folder, kind="training", parameters=told):
            pass
    with new_artifact(run.model, kind="model", inputs={"training": digest_of(parameters)}) as folder:
        write_model_spec(folder, make_report().spec)
    record = find_training(run, open_model(run.model, remedy=""))
    assert training_arguments(record) == ["--train", "frozen", "--epochs", "4", "--seed", "1"]
    assert training_arguments(None) == []


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return write_run(tmp_path / "runs" / "small", make_report())


def report(run: RunFolder, *arguments: str) -> int:
    return main(["report", "--run", str(run.root), *arguments])


def test_the_command(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.root / "bench.json").write_text(json.dumps(make_bench(bundle_digest(run))))
    target = tmp_path / "result.json"
    assert report(run, "--json", str(target)) == 0
    found = json.loads(target.read_text())
    assert (found["report"], found["bench"]) == (str(run.root / "report.html"), True)
    assert [Path(path).stem for path in found["figures"]] == list(FIGURES)
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in found["figures"])
    page = Page((run.root / "report.html").read_text())
    assert page.ids() == list(SECTIONS)
    text = "".join(page.text)
    assert "another one" in text  # the benchmark ran on another machine than the timing, and the page says so
    assert f"python -m planner --run {run.root} --data 'my data' --tolerance 0.05" in text
    assert "--batch-size 8" in text
    assert "--tail-share 0.0" in text
    assert "--batch-size 8 --rounds 2 --samples 200 --json" in text
    assert "python -m export small.onnx --segments --every 1 --head pooled" in text
    before = (run.root / "report.html").read_bytes()
    assert report(run) == 0  # the sweep is reused, and the page is the same to the byte
    assert (run.root / "report.html").read_bytes() == before
    assert not list(run.root.rglob(".*"))


def test_another_place(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert report(run, "--output", str(page)) == 0
    assert page.is_file()
    assert len(list((tmp_path / "page_figures").glob("*.png"))) == len(FIGURES) - 1
    assert f"python -m runtime.bench --run {run.root} --json {run.root / 'bench.json'}" in capsys.readouterr().err
    assert not (run.root / "report.html").exists()


def test_the_sweep_leaves_plan_and_bundle_alone(run: RunFolder) -> None:
    kept = {path: path.read_bytes() for name in ("plan", "bundle", "itm") for path in (run.root / name).rglob("*.*")}
    assert report(run) == 0
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--output", "page.pdf"), 2, "name it page.html"),
        (("--output", "nowhere/page.html"), 2, "there is no folder nowhere"),
        (("--bench", "nowhere.json"), 2, "there is no such file. Measure with: python -m runtime.bench"),
    ],
)
def test_usage_errors(
    arguments: tuple[str, ...], code: int, message: str, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(run, *arguments) == code
    assert message in capsys.readouterr().err
    assert not (run.root / "report.html").exists()


def test_no_run(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--run", str(tmp_path / "none")]) == 1
    assert "there is no run at" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 2
    assert "there is no run here yet" in capsys.readouterr().err


def test_no_plan_yet(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.rmtree(run.plan)
    assert report(run) == 1
    assert f"Make it with: python -m planner --run {run.root} --tolerance 0.01" in capsys.readouterr().err


def test_a_plan_of_other_measurements_is_stale(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    content = (run.itm / "itm.json").read_bytes()
    with new_artifact(run.itm, kind="itm", inputs={"model": "another"}) as folder:
        (folder / "itm.json").write_bytes(content)
    assert report(run) == 1
    assert "was made from another itm than the run holds now" in capsys.readouterr().err


def test_a_benchmark_of_another_bundle(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = run.root / "bench.json"
    bench.write_text(json.dumps(make_bench("other")))
    assert report(run, "--bench", str(bench)) == 1
    assert "another bundle" in capsys.readouterr().err
    assert report(run) == 0
    assert "another bundle than the run holds now" in "".join(Page((run.root / "report.html").read_text()).text)
    bench.write_text(json.dumps({"samples": 3, "full": 4}))
    assert report(run) == 1
    assert "is no result of runtime.bench: it lacks batch_size" in capsys.readouterr().err
    bench.write_text("no json")
    assert report(run) == 1
    assert "is not JSON" in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report(run) == 1
    assert "pip install 'pame[report]'" in capsys.readouterr().err
    assert not (run.root / "report.html").exists()


def test_help_needs_no_matplotlib(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["report", "--help"])
    assert "--output" in capsys.readouterr().out

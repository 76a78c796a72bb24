"""The page of a report: whole, without a network, escaped, and right about what it has no data for."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from artifacts import Certificate
from planner.report.captions import summarise
from planner.report.data import headline
from planner.report.page import render_report, render_table
from tests.planner.report.pages import FIGURES, SECTIONS, Page, render
from tests.planner.report_worlds import NASTY, make_bench, make_report

pytest.importorskip("matplotlib", reason="draws figures: pip install 'pame[report]'")


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
    certificate = Certificate(
        risk="metric",
        bound=0.05,
        delta=0.1,
        finite_sample=True,
        method="betting",
        p_value=0.04,
        observed=0.01,
        samples=200,
        tuning_samples=100,
        position=1,
        seed=0,
        tuning_digest="a",
        certification_digest="b",
    )
    certified = read(replace(data.plan, certificate=certificate))
    assert "Except with a probability of 0.1" in certified
    assert "loses at most 0.05 of the full network's accuracy" in certified
    assert "not a guarantee" not in certified
    for word in ("finite sample", "betting", "200"):
        assert word in certified
    empirical = read(replace(data.plan, certificate=replace(certificate, finite_sample=False)))
    assert "this is not a guarantee at a finite number" in empirical


@pytest.mark.parametrize("exits", [0, 1, 12])
def test_networks_of_every_length(exits: int) -> None:
    data = make_report(exits=exits)
    found = Page(render(data))
    assert found.ids() == list(SECTIONS)
    assert len(found.images()) == len(FIGURES) - 1 - (0 if exits else 3)


def test_a_plan_without_exits_is_described_as_such() -> None:
    data = make_report(planned=False)
    assert "found no exits" in summarise(data)
    text = "".join(Page(render(data)).text)
    assert "every query is answered by the final head" in text
    assert "committed plan" in text


def test_tables_align_numbers_and_escape() -> None:
    table = render_table(("a<", "b"), [("x&y", "1.0")], caption="<c>")
    assert "<td>x&amp;y</td>" in table
    assert '<td class="n">1.0</td>' in table
    assert "<caption>&lt;c&gt;</caption>" in table

"""Pages of reports for tests: rendering, and a parser that shows what is in a page."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from typing import Any

from planner.report.data import ReportData
from planner.report.page import render_report

SECTIONS = (
    "plan",
    "cut_graph",
    "accuracy_by_depth",
    "threshold_curves",
    "batching_pattern",
    "inference_times",
    "survivors",
    "latency",
    "pareto",
    "certificate",
    "environment",
    "commands",
)
FIGURES = SECTIONS[1:9]


class Page(HTMLParser):
    """The parts of a page: tags with attributes, and text; an error where a tag is not closed."""

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


def draw(data: ReportData) -> dict[str, Any]:
    """Draws the figures of a report."""
    from planner.report.figures import draw_figures

    return draw_figures(data)


def render(data: ReportData) -> str:
    """Renders the page of a report with its figures."""
    from planner.report.drawing import encode_png

    return render_report(data, {name: encode_png(figure) for name, figure in draw(data).items()})

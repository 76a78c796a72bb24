"""The status page: what it shows, and that names cannot become markup."""

from __future__ import annotations

import json
import logging
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from engines import HostDevice
from runtime import AsyncRuntime
from runtime.serve.logs import JsonFormatter
from runtime.serve.options import Security, ServeOptions
from tests.runtime.serve.servers import ask, fake_options, options_for, serving

pytest.importorskip("uvicorn", reason="serves: pip install 'pame[serve]'")


class Page(HTMLParser):
    """The text of a page, its bars, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.bars: list[float] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "rect":
            self.bars.append(float(dict(attrs)["width"] or 0))
        if tag not in ("meta", "rect", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "path"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def test_the_page_shows_where_rows_leave(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,), masked=False)
    (x,) = net.batch(np.float32([[0.9, 0]] * 3 + [[0.1, 0]]))
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": x.shape, "data": x.tolist()}]}).encode()
    with serving(fake_options(), nets={"fake": net}) as server:
        assert ask(server, "POST", "/v2/models/fake/infer", body).status == 200
        done = ask(server, "GET", "/")
    assert done.headers["content-type"].startswith("text/html")
    page = Page(done.body.decode())
    assert page.open == []
    early, late = page.bars
    assert early == pytest.approx(3 * late)
    for shown in ("fake", "ready", "75.0%", "25.0%", "1 (4 rows)", "cut_0", "final head"):
        assert shown in page.text


def test_names_are_escaped_and_a_token_is_asked_for(fake_net: Any) -> None:
    from dataclasses import replace

    net = fake_net(thresholds=(0.5,), masked=False)
    exits = tuple(replace(planned, cut="<script>") for planned in net.spec().plan.exits)
    spec = replace(net.spec(), name="<b>", plan=replace(net.spec().plan, exits=exits))
    host = AsyncRuntime.over(spec, net.engine_sets(), HostDevice())
    with serving(fake_options(), hosts={"fake": host}) as server:
        text = ask(server, "GET", "/").body.decode()
        assert "<script>" not in text
        assert "&lt;script&gt;" in text
        assert Page(text).open == []
    token = "a-token-of-32-characters-or-so.."  # noqa: S105
    options = ServeOptions(**options_for(fake=fake_options().bundles[0].folder), security=Security(token=token))
    with serving(options, nets={"fake": net}) as server:
        assert ask(server, "GET", "/").status == 401


def test_logs_as_json() -> None:
    try:
        raise ValueError("broken\nline")
    except ValueError as error:
        record = logging.LogRecord(
            "pame.serve", logging.ERROR, "f", 1, "model %s", ("x\ny",), (type(error), error, None)
        )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    found = json.loads(line)
    assert (found["level"], found["logger"], found["message"]) == ("error", "pame.serve", "model x\ny")
    assert "broken" in found["exception"]

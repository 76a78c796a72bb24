"""The status page in Chromium: what a person sees of models, exits, load and an alarm, and a console without errors."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines import HostDevice
from runtime import AsyncRuntime, HostOptions
from runtime.serve.server import ModelServer
from tests.runtime.hosting.test_watched_hosts import drive
from tests.runtime.monitor.test_response import QUICK, drifted_net
from tests.runtime.serve.servers import ask, fake_options, serving

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium"),
]


def look_at(url: str, folder: Path) -> tuple[str, str]:
    """Returns the document as the browser has it, and what it logged to its console."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        f"--user-data-dir={folder}", "--virtual-time-budget=1500", "--dump-dom", url,
    ]  # fmt: skip
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def ask_once(server: ModelServer, net: Any) -> None:
    x, mask = net.batch(np.zeros((1, 3)))
    inputs = [
        {"name": "x", "datatype": "FP32", "shape": x.shape, "data": x.tolist()},
        {"name": "mask", "datatype": "BOOL", "shape": mask.shape, "data": mask.tolist()},
    ]
    assert ask(server, "POST", "/v2/models/fake/infer", json.dumps({"inputs": inputs}).encode()).status == 200


@pytest.mark.parametrize("drifts", [False, True])
def test_a_person_sees_models_exits_load_and_alarms(fake_net: Any, tmp_path: Path, *, drifts: bool) -> None:
    net = drifted_net(fake_net)
    options = HostOptions(drift=QUICK, max_waiting_rows=200)
    host = AsyncRuntime.over(net.spec(), net.engine_sets(), HostDevice(), options)
    with serving(fake_options(), hosts={"fake": host}) as server:
        ask_once(server, net)
        if drifts:
            loop = server.loop  # type: ignore[attr-defined]
            asyncio.run_coroutine_threadsafe(drive(host, net, batches=30, seed=0), loop).result(120)
        page, console = look_at(f"http://{server.addresses['http']}/", tmp_path)
    assert console == ""
    text = re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", page))
    for shown in ("pame ready", "fake ready", "batches up to", "requests answered 1 (1 rows)", "rows offered"):
        assert shown in text, shown
    shares = [float(share) for share in re.findall(r"([\d.]+)%", text)]
    assert len(shares) == len(net.thresholds) + 1
    assert sum(shares) == pytest.approx(100, abs=0.2)
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([\d.]+)"', page)]
    assert [width > 0 for width in widths] == [share > 0 for share in shares]
    assert "rows waiting, per stage 0 0 0" in text
    if drifts:
        alarm = re.search(r'drift</th><td><span class="bad">([^<]+)', page)
        assert alarm is not None
        assert "drift" in alarm[1].lower()
    else:
        assert "drift no alarm" in text

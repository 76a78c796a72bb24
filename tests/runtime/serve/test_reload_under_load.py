"""Reloads and the end of a server under load: a small run of ``benchmarks/serving_reload.py``, which has figures."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from artifacts import EngineError, RefusedError, UnreachableError
from benchmarks.serving_reload import WAYS, Settings, find_faults, how_it_ended, measure_end, measure_reloads, open_host

pytest.importorskip("tritonclient.http", reason="asks the server: pip install 'tritonclient[http]'")
pytest.importorskip("tritonclient.grpc", reason="asks the server: pip install 'pame[serve]'")

RATE = 40.0  # far below what any machine can do: what is tested is how requests end, not how fast


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_reload_loses_no_request_and_the_end_breaks_none_off(toy_run: Any, way: str) -> None:
    settings = Settings(reloads=1, ends=1, seconds=0.5, gap_s=0.5, delay_s=0.5, threads=1)

    async def run() -> tuple[dict[str, Any], dict[str, Any]]:
        async with open_host(way, toy_run.bundle, settings) as host:
            return await measure_reloads(host, RATE, settings), await measure_end(host, RATE, settings.seconds, seed=1)

    reloads, end = asyncio.run(run())
    assert find_faults(reloads, [end]) == []
    assert (reloads["reloads"], reloads["failed_within"], reloads["failed_beside"]) == (1, 0, 0)
    assert min(reloads["requests_before"], reloads["requests_within"]) > 0
    assert end["outcomes"]["answered"] > 0
    assert end["outcomes"]["refused" if way == "process" else "nothing listens"] > 0


def test_what_counts_as_a_fault() -> None:
    assert how_it_ended(RefusedError("this host drains and takes no more", reason="draining")) == "refused"
    assert how_it_ended(UnreachableError("nothing answers", connected=False)) == "nothing listens"
    assert how_it_ended(UnreachableError("the connection broke", connected=True)) == "fault"
    assert how_it_ended(EngineError("a request failed")) == "fault"
    assert how_it_ended(RefusedError("Stream removed", reason="unavailable")) == "fault"
    lost = {"faults": ["y"], "failed_within": 1, "failed_beside": 0}
    assert find_faults(lost, [{"faults": ["x"], "code": 1}]) == [
        "beside or in a reload: y", "1 requests failed in reloads", "at the end: x", "the server ended with code 1",
    ]  # fmt: skip

"""The search of goodput over hosts of fake engines with known times, and LoadGen over the same."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import UsageError, find_task
from runtime.hosting.options import read_costs
from runtime.loadtest.client import HostTarget
from runtime.loadtest.contenders import STAGES, HostContender
from runtime.loadtest.goodput import (
    LoadConfig,
    QuerySet,
    begin_search,
    describe_search,
    search_goodput,
)
from runtime.loadtest.mlperf import OFFLINE, SERVER, Scenario, read_summary, run_scenario
from runtime.loadtest.search import Search
from tests.runtime.hosting.host_worlds import host_over, serve

RUN_S = 0.004


def paced_net(fake_net: Any, stage_engines: Any) -> Any:
    """Two stages of 4 ms a run, whatever its rows."""
    engines = [stage_engines(median_ms={1: RUN_S * 1e3, 8: RUN_S * 1e3})] * 2
    return fake_net(thresholds=(0.5,), engines=engines, hook=lambda: time.sleep(RUN_S))


def make_queries(net: Any, count: int) -> tuple[QuerySet, tuple[np.ndarray, ...]]:
    confidence = np.zeros((count, 2), np.float32)
    confidence[::2, 0] = 1
    arrays = net.batch(confidence)
    with type(net)(thresholds=(2.0,)).open() as whole:
        full = whole.run(arrays).outputs
    exits = np.where(confidence[:, 0] >= 0.5, 0, 1)
    queries = QuerySet(
        count=count, task=find_task("classification"), full=[full], targets=full.argmax(axis=1), exits=exits
    )
    return queries, arrays


def test_the_goodput_is_found_and_the_answers_are_judged(fake_net: Any, stage_engines: Any) -> None:
    net = paced_net(fake_net, stage_engines)
    queries, arrays = make_queries(net, 32)
    config, bound_ms = LoadConfig(seconds=0.3, repeats=3, steps=4), 1000.0

    async def run() -> Search:
        async with host_over(net, policy="chain", slo_ms=bound_ms, max_waiting_rows=64) as host:
            costs = read_costs(net.spec(), [engines.covers for engines in net.engine_sets()])
            contender = HostContender(policy="chain", target=HostTarget(host, arrays), costs=costs, runs=STAGES)
            search = begin_search(contender, queries, config, slo_ms=bound_ms)
            await search_goodput([search], queries, config, bound_s=bound_ms / 1e3)
            return search

    search = serve(run())
    found = describe_search(search, queries)
    most = 8 / (2 * RUN_S)  # full batches through both stages, nothing in between
    assert 0 < found["goodput_per_s"] <= 1.3 * most
    assert found["p99_ms"] <= bound_ms
    assert 2 <= found["streams"] <= 14
    assert len(found["streams_p99_ms"]) >= 3
    assert found["streams_in_time"][len(found["streams_in_time"]) // 2] >= 0.99
    assert found["exit_fractions"] == pytest.approx([0.5, 0.5], abs=0.15)
    assert 0 < found["metric"] <= 1
    assert found["metric"] == found["agreement"], "the targets are the full network's answers"
    assert found["simulated_per_s"] > 0


@pytest.mark.parametrize("options", [{"seconds": 0}, {"seconds": float("nan")}, {"steps": 0}, {"repeats": 0}])
def test_settings_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        LoadConfig(**options)


@pytest.mark.parametrize("name", [SERVER, OFFLINE])
def test_loadgen_measures_a_host(fake_net: Any, stage_engines: Any, tmp_path: Path, name: str) -> None:
    pytest.importorskip("mlperf_loadgen", reason="runs LoadGen: pip install 'pame[loadtest]'")
    net = paced_net(fake_net, stage_engines)
    queries, arrays = make_queries(net, 32)

    async def run() -> dict[str, Any]:
        async with host_over(net, policy="chain") as host:
            scenario = Scenario(
                name=name, rate_per_s=100.0, bound_ms=500.0, seconds=0.5, samples=queries.count, at_once=16
            )
            return await run_scenario(HostTarget(host, arrays), scenario, tmp_path)

    found = serve(run())
    assert found["failed"] == 0
    rate = found["completed_per_s"] if name == SERVER else found["samples_per_s"]
    assert 10 < rate < 1.3 * 8 / (2 * RUN_S)


def test_a_summary_of_loadgen_is_read() -> None:
    text = "Result is : INVALID\n99.00 percentile latency (ns)   : 12345\nCompleted samples per second    : 99.5\n"
    assert read_summary(text) == {"result": "INVALID", "p99_ns": 12345.0, "completed_per_s": 99.5}

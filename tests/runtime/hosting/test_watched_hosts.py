"""A host's rows that are seen at every exit, and its answer to drift, over fakes whose confidences are their input."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import UsageError
from runtime import AsyncRuntime, DriftConfig, HostOptions, Result, read_shadow_log
from tests.runtime.hosting.host_worlds import assert_equal, host_over, requests_of, serve, until
from tests.runtime.monitor.test_response import QUICK, drifted_net


@pytest.mark.parametrize("policy", ["chain", "pooled", "auto"])
def test_shadows_change_no_answer_and_count_what_the_final_head_says(fake_net: Any, policy: str) -> None:
    sizes = [1 + number % 5 for number in range(60)]
    net = fake_net(thresholds=(0.8, 0.6, 0.4))
    batches = requests_of(net, sizes)
    with fake_net(thresholds=net.thresholds).open(shadow_fraction=1.0) as plain:
        expected = [plain.run(batch) for batch in batches]
        wanted = plain.stats()

    async def run() -> tuple[list[Result], Any, Any]:
        async with host_over(net, policy=policy, max_waiting_rows=500, slo_ms=1000, shadow_fraction=1.0) as host:
            found = await asyncio.gather(*(host.infer(batch) for batch in batches))
            await until(lambda: host._current()._requests == {})
            return found, host.stats(), host.snapshot()

    found, stats, snapshot = serve(run())
    for result, answer in zip(found, expected, strict=True):
        assert_equal(result, answer)
    assert stats.queries == sum(sizes), "shadows are no queries"
    assert snapshot.shadowed == sum(sizes)
    assert snapshot.shadows_missed == 0
    for mine, his in zip(stats.exits, wanted.exits, strict=True):
        assert (mine.count, mine.shadowed, mine.agreements) == (his.count, his.shadowed, his.agreements)


def test_a_full_queue_costs_shadows_and_no_request(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,), max_batch_size=4)

    async def run() -> Any:
        async with host_over(net, max_waiting_rows=4, shadow_fraction=1.0) as host:
            await host.infer(net.batch(np.zeros((4, 2))))
            return host.snapshot()

    snapshot = serve(run())
    assert snapshot.shadowed + snapshot.shadows_missed == 4
    assert snapshot.shadows_missed > 0


def test_the_shadows_of_a_cancelled_request_go_with_it(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,), max_batch_size=4)
    requests = requests_of(net, [3] * 40)

    async def run() -> None:
        async with host_over(net, shadow_fraction=1.0, max_waiting_rows=1000) as host:
            tasks = [asyncio.create_task(host.infer(batch)) for batch in requests]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert sum(isinstance(result, Result) for result in found) >= 20
            generation = host._current()
            await until(lambda: generation._requests == {})
            assert len(generation._sights) == 0
            assert generation._worker._watched == set()

    serve(run())


async def drive(host: AsyncRuntime, net: Any, *, batches: int, seed: int) -> np.ndarray:
    """Sends requests of a stream that has drifted; returns where the rows of the last ones left."""
    left = np.zeros(0)
    for number in range(batches):
        confidence = np.sqrt(np.random.default_rng(seed + number).random((50, 3), np.float32))
        mask = np.tile(np.array([False, True]), (50, 1))
        mask[confidence[:, 0] > 0.8, 1] = False
        x, masks = net.batch(confidence, mask=mask)
        requests = [(x[row : row + 5], masks[row : row + 5]) for row in range(0, 50, 5)]
        left = np.concatenate([found.exit_index for found in await asyncio.gather(*map(host.infer, requests))])
        host.stats()
    return left


def test_a_host_tightens_and_goes_on_and_logs_what_it_saw(fake_net: Any, tmp_path: Path) -> None:
    net = drifted_net(fake_net)
    options = {"on_drift": "tighten", "drift": QUICK, "shadow_fraction": 0.1, "shadow_seed": 1, "log_inputs": True}

    async def run() -> None:
        async with host_over(net, **options, shadow_log=tmp_path, max_waiting_rows=200) as host:
            left = await drive(host, net, batches=30, seed=0)
            stats = host.stats()
            assert stats.alarm is not None
            assert stats.response is not None
            assert stats.response.mode == "observing"
            assert set(left.tolist()) == {2}
            left = await drive(host, net, batches=40, seed=1000)
            stats = host.stats()
            assert stats.response is not None
            assert stats.response.mode == "tightened"
            assert stats.response.alarms == 1
            assert stats.response.disagreement is not None
            assert stats.response.disagreement < 0.01
            assert set(left.tolist()) > {2}, "rows leave early again"
            costs = host._current()._worker._scheduler._costs
            assert 0 < costs.staying[0] < 1

    serve(run())
    logged = read_shadow_log(tmp_path, model_digest="m")
    assert logged.trace.sample_count >= 2000
    assert logged.inputs is not None
    np.testing.assert_array_equal(logged.trace.confidence.T, np.clip(logged.inputs["x"][:, 1:], 0, 1))
    classes = np.asarray(logged.trace.predictions)
    np.testing.assert_array_equal(logged.trace.agreement, classes == classes[-1])


def test_full_answers_by_the_whole_network_until_another_bundle_comes(fake_net: Any) -> None:
    net = drifted_net(fake_net)

    async def run() -> None:
        async with host_over(net, on_drift="full", drift=QUICK, max_waiting_rows=200) as host:
            left = await drive(host, net, batches=60, seed=0)
            assert set(left.tolist()) == {2}
            response = host.stats().response
            assert response is not None
            assert response.mode == "full"
            assert host._current()._worker._scheduler._costs.staying == [1.0, 1.0, 0.0]

    serve(run())


def test_nothing_is_watched_where_no_row_leaves() -> None:
    with pytest.raises(UsageError, match="policy 'full' lets no row leave"):
        HostOptions(policy="full", shadow_fraction=0.1)
    with pytest.raises(UsageError, match="policy 'full' lets no row leave"):
        HostOptions(policy="full", on_drift="tighten")
    assert HostOptions(policy="full", drift=DriftConfig()).drift is not None

"""``AsyncRuntime`` over fake engines: answers equal ``Runtime.run`` row by row, however requests share runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from artifacts import EngineError, RefusedError, UsageError
from runtime import AsyncRuntime, HostOptions, Result
from runtime.hosting.generation import make_poster
from tests.runtime.hosting.host_worlds import Gate, assert_equal, host_over, requests_of, serve, until

POLICIES = ("full", "chain", "pooled", "pooled:5", "auto")


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fixed", [False, True])
def test_every_row_is_answered_as_by_a_batch_of_its_own(
    fake_net: Any, stage_engines: Any, policy: str, fixed: bool
) -> None:
    engines = [stage_engines(median_ms={1: 1.0, 4: 1.5, 8: 2.0}, fixed=fixed)] * 4
    net = fake_net(thresholds=(0.8, 0.6, 0.4), engines=engines)
    sizes = [1 + number % 5 for number in range(60)] + [20]
    batches = requests_of(net, sizes)
    thresholds = (2.0, 2.0, 2.0) if policy == "full" else net.thresholds
    with fake_net(thresholds=thresholds, engines=engines).open() as plain:
        expected = [plain.run(batch) for batch in batches]

    async def run() -> list[Result]:
        async with host_over(net, policy=policy, max_waiting_rows=500, slo_ms=1000) as host:
            tasks = []
            for number, batch in enumerate(batches):
                tasks.append(asyncio.create_task(host.infer(batch, priority=number % 4)))
                if number % 3 == 0:
                    await asyncio.sleep(0)
            found = await asyncio.gather(*tasks)
            snapshot = host.snapshot()
            assert snapshot.ready
            assert snapshot.scheduling.done["answered"] == len(sizes)
            assert host.stats().queries == sum(sizes)
        return found

    for found, wanted in zip(serve(run()), expected, strict=True):
        assert_equal(found, wanted)
        assert (found.latency_ms > 0).all()


def test_a_request_may_be_larger_than_any_batch_and_share_runs_with_others(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.8,), max_batch_size=4)
    large, small = requests_of(net, [11, 1])

    async def run() -> list[Result]:
        async with host_over(net, policy="pooled") as host:
            return await asyncio.gather(host.infer(large), host.infer(small))

    found = serve(run())
    assert [len(result.exit_index) for result in found] == [11, 1]
    with fake_net(thresholds=(0.8,), max_batch_size=4).open() as plain:
        for result, batch in zip(found, (large, small), strict=True):
            assert_equal(result, plain.run(batch))


def test_a_stream_hands_out_rows_as_they_leave(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5, 0.5))
    confidence = np.float32([[0.9, 0.0, 0.0], [0.0, 0.9, 0.0], [0.0, 0.0, 0.0], [0.9, 0.0, 0.0]])
    batch = net.batch(confidence)

    async def run() -> list[tuple[list[int], np.ndarray]]:
        async with host_over(net) as host:
            return [(rows.tolist(), outputs) async for rows, outputs in host.stream(batch)]

    parts = serve(run())
    assert [rows for rows, _ in parts] == [[0, 3], [1], [2]]
    with fake_net(thresholds=(0.5, 0.5)).open() as plain:
        expected = plain.run(batch).outputs
    for rows, outputs in parts:
        np.testing.assert_array_equal(outputs, expected[rows])


def test_another_bundle_takes_over_and_the_old_one_finishes_its_requests(fake_net: Any) -> None:
    gate = Gate()
    old, new = fake_net(thresholds=(0.5,), hook=gate), fake_net(thresholds=(0.1,))
    batch = old.batch(np.float32([[0.3, 0.3]]))

    async def run() -> list[Any]:
        async with host_over(old) as host:
            gate.armed = True
            task = asyncio.create_task(host.infer(batch))
            await until(gate.entered.is_set)
            other = host_over(new)._open_parts
            reload = asyncio.create_task(host._replace(other))
            await until(lambda: host.snapshot().reloads == 1)
            by_new = await host.infer(batch)
            assert not task.done()
            gate.open()
            by_old = await task
            await reload
            assert host.ready
            with pytest.raises(EngineError, match="closed"):
                old.fakes[0].bind({})
            return [by_old, by_new]

    by_old, by_new = serve(run())
    assert by_old.exit_index.tolist() == [1]
    assert by_new.exit_index.tolist() == [0]


def test_every_engine_runs_once_before_the_host_is_ready(fake_net: Any, stage_engines: Any) -> None:
    engines = [stage_engines(median_ms={1: 1.0, 4: 1.5, 8: 2.0}, fixed=True)] * 2
    net = fake_net(thresholds=(0.5,), engines=engines)

    async def run() -> None:
        host = host_over(net)
        assert not host.ready
        assert net.fakes == [] or not any(fake.batches for fake in net.fakes)
        async with host:
            assert host.ready
            for fake in net.fakes:
                assert set(fake.batches) == {1, 4, 8}

    serve(run())


def test_a_caller_may_change_its_array_at_once(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    batch = net.batch(np.float32([[0.9, 0], [0, 0]]))
    with fake_net(thresholds=(0.5,)).open() as plain:
        expected = plain.run(batch)

    async def run() -> Result:
        async with host_over(net) as host:
            task = asyncio.create_task(host.infer(batch))
            await asyncio.sleep(0)
            batch[0][:] = 7
            return await task

    assert_equal(serve(run()), expected)


def test_a_host_is_used_while_it_is_open(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    batch = net.batch(np.float32([[0.9, 0]]))

    async def run() -> None:
        host = host_over(net)
        with pytest.raises(UsageError, match="not open yet"):
            await host.infer(batch)
        async with host:
            await host.infer(batch)
        await host.close()
        with pytest.raises(RefusedError, match="closed"):
            await host.infer(batch)
        with pytest.raises(UsageError, match="entered once"):
            await host.__aenter__()

    serve(run())
    assert threading.active_count() == 1 or not any(
        thread.name == "pame-engine" and thread.is_alive() for thread in threading.enumerate()
    )


@pytest.mark.parametrize(
    "wrong",
    [{"policy": "fast"}, {"policy": "pooled:-1"}, {"slo_ms": 0}, {"max_waiting_rows": 0}, {"max_engine_faults": 0},
     {"drain_timeout_s": -1}, {"hang_factor": float("nan")}],
)  # fmt: skip
def test_options_that_cannot_be_are_usage_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        HostOptions(**wrong)
    with pytest.raises(UsageError, match="threads=0"):
        AsyncRuntime.load("anywhere", threads=0)


def test_at_most_one_wake_up_per_stage_run(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    batches = requests_of(net, [1] * 8)
    calls = 0

    async def run() -> int:
        nonlocal calls
        async with host_over(net) as host:
            loop = asyncio.get_running_loop()
            wake: Callable[..., Any] = loop.call_soon_threadsafe

            def counted(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += threading.current_thread().name == "pame-engine"
                return wake(*arguments, **options)

            loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
            answers: list[Awaitable[Result]] = [host.infer(batch) for batch in batches]
            await asyncio.gather(*answers)
            return host.snapshot().scheduling.runs

    assert serve(run()) >= calls > 0


def test_reports_that_wait_come_with_one_wake_up_and_none_is_lost_behind_one_that_fails() -> None:
    taken: list[int] = []

    def deliver(report: Any) -> None:
        taken.append(report)
        if report == 1:
            raise ValueError("now and then")

    async def run() -> list[int]:
        loop = asyncio.get_running_loop()
        failed: list[Any] = []
        loop.set_exception_handler(lambda _, context: failed.append(context["exception"]))
        post = make_poster(loop, deliver)
        thread = threading.Thread(target=lambda: [post(number) for number in range(4)])  # type: ignore[arg-type]
        thread.start()
        thread.join()  # before the loop looks
        await until(lambda: len(taken) == 4)
        post(4)  # type: ignore[arg-type]
        await until(lambda: len(taken) == 5)
        assert len(failed) == 1
        return taken

    assert serve(run()) == [0, 1, 2, 3, 4]

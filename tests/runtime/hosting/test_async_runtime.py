"""``AsyncRuntime`` over fake engines: answers equal ``Runtime.run`` row by row, and one request's end is its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest

from artifacts import DeadlineError, EngineError, InputError, RefusedError, UsageError
from engines import HostDevice
from runtime import AsyncRuntime, HostOptions, Result

POLICIES = ("full", "chain", "pooled", "pooled:5", "auto")
T = TypeVar("T")


def serve(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def host_over(net: Any, **options: Any) -> AsyncRuntime:
    return AsyncRuntime.over(net.spec(), net.engine_sets(), HostDevice(), HostOptions(**options))


def requests_of(net: Any, sizes: Sequence[int], seed: int = 1) -> list[tuple[np.ndarray, ...]]:
    """Returns the inputs of some requests, cut from one batch of unlike rows."""
    random = np.random.default_rng(seed)
    count = sum(sizes)
    confidence = random.choice(np.float32([0.1, 0.5, 0.9]), (count, net.depth))
    whole = net.batch(confidence, mask=random.random((count, 2)) < 0.5)
    stops = np.cumsum(sizes)
    return [tuple(array[stop - size : stop] for array in whole) for size, stop in zip(sizes, stops, strict=True)]


def assert_equal(found: Result, expected: Result) -> None:
    np.testing.assert_array_equal(found.outputs, expected.outputs)
    np.testing.assert_array_equal(found.exit_index, expected.exit_index)
    np.testing.assert_array_equal(found.confidence, expected.confidence)


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


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


class Gate:
    """A hook of fake engines that holds every run until it is opened, once armed."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.armed = False
        self._open = threading.Event()

    def __call__(self) -> None:
        if self.armed:
            self.entered.set()
            assert self._open.wait(30)

    def open(self) -> None:
        self.armed = False
        self._open.set()


def test_a_cancelled_request_leaves_its_neighbours_alone(fake_net: Any) -> None:
    gate = Gate()
    net = fake_net(thresholds=(0.5,), hook=gate)
    batches = requests_of(net, [2, 2, 2])

    async def run() -> tuple[list[Any], int]:
        async with host_over(net) as host:
            gate.armed = True
            tasks = [asyncio.create_task(host.infer(batch)) for batch in batches]
            await until(gate.entered.is_set)
            tasks[0].cancel()  # some of these run by now, some wait
            tasks[1].cancel()
            await until(lambda: host.snapshot().scheduling.open_tickets == 1)
            gate.open()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            again = await host.infer(batches[0])
            return [*found, again], host.snapshot().scheduling.open_tickets

    found, left = serve(run())
    assert isinstance(found[0], asyncio.CancelledError)
    assert isinstance(found[1], asyncio.CancelledError)
    assert left == 0
    with fake_net(thresholds=(0.5,)).open() as plain:
        assert_equal(found[2], plain.run(batches[2]))
        assert_equal(found[3], plain.run(batches[0]))


def test_a_stream_that_is_closed_half_way_is_cancelled(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5, 0.5))
    batch = net.batch(np.float32([[0.9, 0, 0], [0, 0, 0]]))

    async def run() -> int:
        async with host_over(net) as host:
            stream = host.stream(batch)
            await anext(stream)
            await stream.aclose()
            return host.snapshot().scheduling.open_tickets

    assert serve(run()) == 0


def test_a_deadline_passes_while_an_engine_runs(fake_net: Any) -> None:
    gate = Gate()
    net = fake_net(thresholds=(0.5,), hook=gate)
    running, waiting, patient = requests_of(net, [8, 1, 1])

    async def run() -> tuple[list[Any], float]:
        async with host_over(net) as host:
            gate.armed = True
            tasks = [asyncio.create_task(host.infer(running, timeout_ms=60))]
            await until(gate.entered.is_set)
            started = time.monotonic()
            tasks += [
                asyncio.create_task(host.infer(waiting, timeout_ms=60)), asyncio.create_task(host.infer(patient)),
            ]  # fmt: skip
            late = await asyncio.gather(*tasks[:2], return_exceptions=True)
            took = time.monotonic() - started
            gate.open()
            return [*late, await tasks[2]], took

    found, took = serve(run())
    assert isinstance(found[0], DeadlineError)
    assert isinstance(found[1], DeadlineError)
    assert isinstance(found[2], Result)
    assert took < 5  # not when the run ends


def test_a_full_queue_refuses_and_says_when_to_come_again(fake_net: Any) -> None:
    gate = Gate()
    net = fake_net(thresholds=(0.5,), hook=gate)
    first, second, third, huge = requests_of(net, [8, 8, 1, 9])

    async def run() -> list[Any]:
        async with host_over(net, max_waiting_rows=8) as host:
            gate.armed = True
            tasks = [asyncio.create_task(host.infer(first))]
            await until(gate.entered.is_set)
            tasks.append(asyncio.create_task(host.infer(second)))
            await asyncio.sleep(0)
            refused = await asyncio.gather(host.infer(third), host.infer(huge), return_exceptions=True)
            gate.open()
            await asyncio.gather(*tasks)
            return refused

    full, never = serve(run())
    assert isinstance(full, RefusedError)
    assert full.reason == "queue_full"
    assert full.retry_after_s is not None
    assert full.retry_after_s > 0
    assert isinstance(never, InputError)
    assert "max_waiting_rows" in str(never)


def test_an_engine_fault_hits_the_rows_of_its_run_alone(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,), faults={1: EngineError("out of memory")})  # run 0 is the warm-up
    confident, other = net.batch(np.float32([[0.9, 0], [0.9, 0]])), net.batch(np.float32([[0, 0]]))

    async def run() -> list[Any]:
        async with host_over(net, policy="pooled") as host:
            found = await asyncio.gather(host.infer(confident), host.infer(other), return_exceptions=True)
            faults = host.snapshot().engine_faults
            return [*found, await host.infer(other), faults, host.snapshot().engine_faults]

    net.engines = None
    net.max_batch_size = 1  # so that a stage has one engine run, and a run one row
    confident = tuple(array[:1] for array in confident)
    answered, failed, again, faults, later = serve(run())
    assert isinstance(answered, Result)
    assert isinstance(failed, EngineError)
    assert "out of memory" in str(failed)
    assert isinstance(again, Result)
    assert (faults, later) == (1, 0)


def test_a_host_is_not_ready_after_several_faults_in_a_row(fake_net: Any) -> None:
    broken = {run: ValueError("broken") for run in range(1, 4)}
    net = fake_net(thresholds=(), max_batch_size=1, faults=broken)
    batch = net.batch(np.float32([[0.5]]))

    async def run() -> list[bool]:
        states = []
        async with host_over(net, max_engine_faults=3) as host:
            for _ in range(3):
                states.append(host.ready)
                with pytest.raises(EngineError, match="ValueError: broken"):
                    await host.infer(batch)
            states.append(host.ready)
            await host.infer(batch)
            states.append(host.ready)
        return states

    assert serve(run()) == [True, True, True, False, True]


def test_a_hanging_engine_is_given_up(fake_net: Any) -> None:
    gate = Gate()
    net = fake_net(thresholds=(0.5,), hook=gate)
    batch = net.batch(np.float32([[0.9, 0]]))

    async def run() -> list[Any]:
        host = host_over(net, hang_grace_s=0.1, hang_factor=1.0)
        async with host:
            gate.armed = True
            found = await asyncio.gather(host.infer(batch), return_exceptions=True)
            found += await asyncio.gather(host.infer(batch), return_exceptions=True)
            assert not host.ready
            assert host.snapshot().stuck is not None
        return found

    running, refused = serve(run())
    gate.open()
    assert isinstance(running, EngineError)
    assert isinstance(refused, RefusedError)
    assert refused.reason == "stuck"


def test_draining_refuses_new_requests_and_finishes_the_others(fake_net: Any) -> None:
    gate = Gate()
    net = fake_net(thresholds=(0.5,), hook=gate)
    first, second = requests_of(net, [8, 3])

    async def run() -> list[Any]:
        async with host_over(net) as host:
            gate.armed = True
            tasks = [asyncio.create_task(host.infer(batch)) for batch in (first, second)]
            await until(gate.entered.is_set)
            draining = asyncio.create_task(host.drain(20))
            await asyncio.sleep(0.01)
            assert not host.ready
            refused = await asyncio.gather(host.infer(first), return_exceptions=True)
            gate.open()
            return [await draining, *await asyncio.gather(*tasks), *refused]

    abandoned, answered, other, refused = serve(run())
    assert abandoned == 0
    assert (len(answered.exit_index), len(other.exit_index)) == (8, 3)
    assert isinstance(refused, RefusedError)
    assert refused.reason == "draining"


def test_what_is_not_done_when_the_time_is_up_fails(fake_net: Any) -> None:
    gate = Gate()
    net = fake_net(thresholds=(0.5,), hook=gate)
    (batch,) = requests_of(net, [3])

    async def run() -> tuple[int, list[Any]]:
        host = host_over(net)
        await host.__aenter__()
        gate.armed = True
        task = asyncio.create_task(host.infer(batch))
        await until(gate.entered.is_set)
        abandoned = await host.drain(0.05)
        found = await asyncio.gather(task, return_exceptions=True)
        gate.open()
        await host.close()
        return abandoned, found

    abandoned, (failed,) = serve(run())
    assert abandoned == 1
    assert isinstance(failed, EngineError)


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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"timeout_ms": 0}, "timeout_ms=0"), ({"timeout_ms": float("nan")}, "timeout_ms=nan"),
        ({"priority": 9}, "priority 9"), ({"priority": -1}, "priority -1"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_are_refused_before_the_queue(
    fake_net: Any, wrong: dict[str, Any], message: str
) -> None:
    net = fake_net(thresholds=(0.5,))
    batch = net.batch(np.float32([[0.9, 0]]))

    async def run() -> int:
        async with host_over(net) as host:
            with pytest.raises(InputError, match=message):
                await host.infer(batch, **wrong)
            with pytest.raises(InputError, match="NaN"):
                await host.infer((batch[0] * np.float32("nan"), batch[1]))
            with pytest.raises(InputError, match="NaN"):
                async for _ in host.stream((batch[0] * np.float32("nan"), batch[1])):
                    pass
            return host.snapshot().scheduling.admitted

    assert serve(run()) == 0


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


def test_one_wake_up_per_stage_run(fake_net: Any) -> None:
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

    assert serve(run()) == calls > 0

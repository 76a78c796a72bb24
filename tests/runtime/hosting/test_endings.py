"""The ways in which a request ends: late, cancelled, refused, failed with its run; its neighbours notice nothing."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from artifacts import DeadlineError, EngineError, InputError, RefusedError
from runtime import Result
from tests.runtime.hosting.host_worlds import Gate, assert_equal, host_over, requests_of, serve, until


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

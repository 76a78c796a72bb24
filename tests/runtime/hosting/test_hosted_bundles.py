"""``AsyncRuntime`` on a real bundle over ONNX Runtime: opening, answers, reload, damage, and a stretch of rough use."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from artifacts import CorruptArtifactError, DeadlineError, EngineError, MissingArtifactError, RefusedError
from engines import HostDevice
from runtime import AsyncRuntime, HostOptions, Runtime


@pytest.mark.parametrize("policy", ["full", "chain", "pooled", "auto"])
def test_a_bundle_answers_as_it_does_in_batches(toy_run: Any, policy: str) -> None:
    queries = toy_run.inputs[:60]
    with Runtime.load(toy_run.bundle, threads=1) as runtime:
        expected = runtime.run(queries)

    async def run() -> list[Any]:
        async with AsyncRuntime.load(toy_run.bundle, policy=policy, threads=1, max_waiting_rows=100) as host:
            assert host.ready
            assert host.spec.name == "toy"
            return await asyncio.gather(*(host.infer(queries[row : row + 1]) for row in range(60)))

    found = asyncio.run(run())
    exits = np.concatenate([result.exit_index for result in found])
    outputs = np.concatenate([result.outputs for result in found])
    if policy == "full":
        assert (exits == 1).all()
        for row in range(60):
            np.testing.assert_allclose(
                outputs[row], toy_run.answer_by_numpy(queries[row : row + 1], 1)[0][0], rtol=1e-4, atol=1e-5
            )
    else:
        np.testing.assert_array_equal(exits, expected.exit_index)
        np.testing.assert_allclose(outputs, expected.outputs, rtol=1e-4, atol=1e-5)
    assert all(0 < result.engine_ms <= result.latency_ms.max() * 1.5 for result in found)


def test_nothing_is_opened_before_the_host_is_entered(tmp_path: Path) -> None:
    host = AsyncRuntime.load(tmp_path / "none")

    async def run() -> None:
        async with host:
            pass

    with pytest.raises(MissingArtifactError):
        asyncio.run(run())


def test_a_damaged_bundle_does_not_take_over(toy_run: Any, tmp_path: Path) -> None:
    good, bad = (Path(shutil.copytree(toy_run.bundle, tmp_path / name)) for name in ("good", "bad"))
    victim = bad / "bundle.json"
    victim.write_bytes(victim.read_bytes()[:-1])
    query = toy_run.inputs[:3]

    async def run() -> list[Any]:
        async with AsyncRuntime.load(toy_run.bundle, threads=1) as host:
            before = await host.infer(query)
            with pytest.raises(CorruptArtifactError):
                await host.reload(bad)
            assert host.ready
            with pytest.raises(MissingArtifactError):
                await host.reload(tmp_path / "none")
            still = await host.infer(query)
            await host.reload(good)
            assert host.snapshot().reloads == 1
            return [before, still, await host.infer(query)]

    before, still, after = asyncio.run(run())
    np.testing.assert_array_equal(before.outputs, still.outputs)
    np.testing.assert_array_equal(before.outputs, after.outputs)


async def rough_use(net: Any, requests: int, seed: int) -> Counter[str]:
    """Sends requests as fast as they are admitted; some are cancelled, some late, some runs fail, bundles are swapped.

    Every answer is compared with the reference, row by row.
    """
    random, outcomes = Random(seed), Counter[str]()
    options = HostOptions(policy="auto", max_waiting_rows=40, stats=False, max_engine_faults=1000)
    host = AsyncRuntime.over(net.spec(), net.engine_sets(), HostDevice(), options)
    confidence = np.float32([[random.choice((0.1, 0.9)) for _ in range(net.depth)] for _ in range(64)])
    x, mask = net.batch(confidence)
    expected = [net.answer_row(x[row], mask[row]) for row in range(64)]

    async def client() -> None:
        rows = [random.randrange(64) for _ in range(random.randint(1, 3))]
        timeout_ms = 0.2 if random.random() < 0.02 else None
        task = asyncio.create_task(host.infer((x[rows], mask[rows]), timeout_ms=timeout_ms))
        if random.random() < 0.05:
            await asyncio.sleep(random.random() * 0.001)
            task.cancel()
        try:
            result = await task
        except (asyncio.CancelledError, DeadlineError, EngineError, RefusedError) as error:
            outcomes[type(error).__name__] += 1
            return
        outcomes["answered"] += 1
        for place, row in enumerate(rows):
            stage, sure, answer = expected[row]
            assert result.exit_index[place] == stage
            assert result.confidence[place] == sure
            assert (result.outputs[place] == answer).all()

    async with host:
        running: set[asyncio.Task[None]] = set()
        for number in range(requests):
            running.add(asyncio.create_task(client()))
            if len(running) >= 25:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            if number % (requests // 4) == requests // 8:
                await host._replace(AsyncRuntime.over(net.spec(), net.engine_sets(), HostDevice())._open_parts)
        await asyncio.gather(*running)
        assert host.snapshot().scheduling.open_tickets == 0
        assert host.snapshot().reloads == 4
    assert outcomes.total() == requests
    return outcomes


def test_rough_use_loses_no_request_and_mixes_no_answers(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.8, 0.6), faults={run: EngineError("now and then") for run in range(50, 5000, 97)})
    outcomes = asyncio.run(asyncio.wait_for(rough_use(net, 600, 1), 120))
    assert outcomes["answered"] > 100, outcomes  # on a busy machine many are refused
    assert outcomes["CancelledError"] > 0


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_rough_use_for_long(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.8, 0.6), faults={run: EngineError("now and then") for run in range(50, 10**6, 997)})
    outcomes = asyncio.run(rough_use(net, 200_000, 2))
    assert min(outcomes[name] for name in ("answered", "CancelledError", "DeadlineError", "EngineError")) > 0

"""Rough use over the wire: cancels, deadlines, engine faults, reloads; none is lost, and no answers are mixed."""

from __future__ import annotations

import asyncio
import importlib
from collections import Counter
from random import Random
from typing import Any

import numpy as np
import pytest

from artifacts import EngineError
from benchmarks.serving_soak import WAYS, run_soak
from engines import HostDevice
from runtime import AsyncRuntime
from runtime.serve.server import ModelServer
from tests.runtime.serve.servers import fake_options, serving, wait_for

pytest.importorskip("tritonclient.http", reason="asks the server: pip install 'tritonclient[http]'")
pytest.importorskip("tritonclient.grpc", reason="asks the server: pip install 'pame[serve]'")
from tritonclient.utils import InferenceServerException

ROWS = 64


async def rough_use(server: ModelServer, net: Any, protocol: str, requests: int) -> Counter[str]:
    """Sends requests, 25 at a time; returns how many ended how. Every answer is compared row by row."""
    library = importlib.import_module(f"tritonclient.{protocol}.aio")
    random, outcomes = Random(7), Counter[str]()
    confidence = np.float32([[random.choice((0.1, 0.9)) for _ in range(net.depth)] for _ in range(ROWS)])
    (x,) = net.batch(confidence)
    expected = [net.answer_row(x[row], np.zeros(2, np.bool_)) for row in range(ROWS)]

    async def ask(client: Any) -> None:
        rows = [random.randrange(ROWS) for _ in range(random.randint(1, 3))]
        stated = library.InferInput("x", [len(rows), x.shape[1]], "FP32")
        stated.set_data_from_numpy(x[rows])
        timeout = 200 if random.random() < 0.02 else 60_000_000
        task = asyncio.ensure_future(client.infer("fake", [stated], timeout=timeout))
        if random.random() < 0.05:
            await asyncio.sleep(random.random() * 0.005)
            task.cancel()
        try:
            found = await task
        except asyncio.CancelledError:
            outcomes["cancelled"] += 1
            return
        except InferenceServerException as error:
            outcomes["refused"] += 1
            if not any(
                known in str(error) for known in ("deadline", "failed with its run", "queue is full", "CANCELLED")
            ):
                raise
            return
        outcomes["answered"] += 1
        for place, row in enumerate(rows):
            stage, sure, answer = expected[row]
            assert found.as_numpy("exit_index")[place] == stage
            assert found.as_numpy("confidence")[place] == sure
            assert (found.as_numpy("logits")[place] == answer).all()

    async with library.InferenceServerClient(str(server.addresses[protocol])) as client:
        running: set[asyncio.Task[None]] = set()
        for number in range(requests):
            running.add(asyncio.create_task(ask(client)))
            if len(running) >= 25:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            if number % (requests // 4) == requests // 8:
                swap_bundles(server, net)
        await asyncio.gather(*running)
    return outcomes


def swap_bundles(server: ModelServer, net: Any) -> None:
    host = server.service.models["fake"].host
    again = AsyncRuntime.over(net.spec(), net.engine_sets(), HostDevice())
    loop: asyncio.AbstractEventLoop = server.loop  # type: ignore[attr-defined]
    asyncio.run_coroutine_threadsafe(host._replace(again._open_parts), loop)


def use(fake_net: Any, protocol: str, requests: int, faults: range) -> None:
    net = fake_net(thresholds=(0.8,), masked=False, faults={run: EngineError("now and then") for run in faults})
    options = fake_options(max_engine_faults=1000, max_waiting_rows=60)
    with serving(options, nets={"fake": net}) as server:
        outcomes = asyncio.run(rough_use(server, net, protocol, requests))
        model = server.service.models["fake"]
        wait_for(lambda: model.host.snapshot().scheduling.open_tickets == 0)
        wait_for(lambda: server.service.budget.taken == 0)
        wait_for(lambda: model.host.snapshot().reloads == 4)
        assert outcomes.total() == requests
        assert outcomes["answered"] > 0.8 * requests
        assert outcomes["cancelled"] > 0
        assert outcomes["answered"] <= model.statistics.success.count <= outcomes["answered"] + outcomes["cancelled"]


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_rough_use_loses_no_request_and_mixes_no_answers(fake_net: Any, protocol: str) -> None:
    use(fake_net, protocol, 240, range(40, 2000, 97))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("way", WAYS)
def test_rough_use_for_long(way: str) -> None:
    """``python -m benchmarks.serving_soak`` is the same with any number of requests."""
    found = run_soak(way, 10_000, reloads=10)
    assert found["faults"] == found["unexpected"] == []
    assert found["outcomes"]["answered"] > 0.9 * 10_000
    assert min(found["outcomes"][ended] for ended in ("cancelled", "late")) > 0
    assert found["memory"]["growth_percent"] < 5

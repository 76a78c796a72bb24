"""Cost of a request of one row at the server besides its engines: processor time over HTTP (binary), gRPC, in process.

    python -m benchmarks.serving_cost --json serving_cost.json

The server runs in this process over fake engines of no cost to speak of; a client in another process keeps some
requests of ``tritonclient`` in flight. The three cases take turns in rounds. The figure of a round is the processor
time of this process, all its threads, over the requests of the round; that of a case is the lowest of its rounds, since
whatever else the machine does only adds to it, and the median beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import environment_fingerprint
from benchmarks.runtime_overhead import WIDTH, Case, make_net
from engines import HostDevice
from runtime import AsyncRuntime
from runtime.serve.models import ServedModel
from runtime.serve.options import Address, BundleSource, ServeOptions
from runtime.serve.server import ModelServer, run_in_loop
from runtime.serve.service import InferenceService

NAME, ANY = "net", Address("127.0.0.1", 0)
ROW = np.zeros((1, WIDTH), np.float32)


def ask(protocol: str, address: str, in_flight: int, orders: Connection) -> None:
    """The client: sends as many requests as it is told to, and says when they are answered."""
    library = importlib.import_module(f"tritonclient.{protocol}.aio")

    async def send(client: Any, count: int) -> None:
        row = library.InferInput("x", list(ROW.shape), "FP32")
        row.set_data_from_numpy(ROW)
        for _ in range(count):
            await client.infer(NAME, [row])

    async def run() -> None:
        async with library.InferenceServerClient(address) as client:
            while count := orders.recv():
                await asyncio.gather(*(send(client, count // in_flight) for _ in range(in_flight)))
                orders.send(count)

    asyncio.run(run())


class Server:
    """A server of fakes in a thread of its own."""

    def __init__(self) -> None:
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: run_in_loop(self._serve()))
        self._thread.start()
        self._up.wait()

    async def _serve(self) -> None:
        options = ServeOptions(
            bundles=(BundleSource(NAME, Path("none")),), http=ANY, grpc=ANY, metrics=None, drain_delay_s=0.0
        )
        service = InferenceService(options)
        spec, sets = make_net(Case(stages=2, batch_size=1, warm=True))
        self.host = AsyncRuntime.over(spec, sets, HostDevice())
        service.models[NAME] = ServedModel(NAME, Path("none"), options, self.host)
        self.loop, self.server = asyncio.get_running_loop(), ModelServer(service)
        await self.server.run(self._up.set)

    def ask_in_process(self, count: int, in_flight: int) -> None:
        """Answers as many requests without a protocol."""

        async def send() -> None:
            for _ in range(count // in_flight):
                await self.host.infer(ROW)

        async def run() -> None:
            await asyncio.gather(*(send() for _ in range(in_flight)))

        asyncio.run_coroutine_threadsafe(run(), self.loop).result()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.server.stop)
        self._thread.join()


def measure(rounds: int, requests: int, in_flight: int) -> dict[str, list[float]]:
    """Returns the processor milliseconds per request of every round, for each case."""
    spawning = multiprocessing.get_context("spawn")
    server = Server()
    cases: dict[str, Callable[[int], Any]] = {"in process": lambda count: server.ask_in_process(count, in_flight)}
    clients = []
    try:
        for protocol in ("http", "grpc"):
            here, there = spawning.Pipe()
            address = str(server.server.addresses[protocol])
            client = spawning.Process(target=ask, args=(protocol, address, in_flight, there), daemon=True)
            client.start()
            clients.append((client, here))
            cases[protocol] = lambda count, here=here: (here.send(count), here.recv())  # type: ignore[misc]
        for send in cases.values():
            send(requests // 4)
        found: dict[str, list[float]] = {name: [] for name in cases}
        for turn in range(rounds):
            for name in list(cases)[:: 1 if turn % 2 else -1]:
                started = time.process_time()
                cases[name](requests)
                found[name].append((time.process_time() - started) / requests * 1e3)
    finally:
        for client, here in clients:
            here.send(0)
            client.join()
        server.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")
    parser.add_argument("--requests", type=int, default=2000, help="of a round (default: %(default)s)")
    parser.add_argument("--in-flight", type=int, default=16, help="requests at the same time (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    found = measure(arguments.rounds, arguments.requests, arguments.in_flight)
    result = {
        name: {"lowest_ms": min(values), "median_ms": statistics.median(values)} for name, values in found.items()
    }
    for name, figures in result.items():
        print(f"{name:12} lowest {figures['lowest_ms']:.3f} ms, median {figures['median_ms']:.3f} ms of processor time")
    if arguments.json is not None:
        asked = {name: getattr(arguments, name) for name in ("requests", "rounds", "in_flight")}
        whole = {**asked, "cases": result, "environment": dict(environment_fingerprint())}
        arguments.json.write_text(json.dumps(whole, indent=2) + "\n")


if __name__ == "__main__":
    main()

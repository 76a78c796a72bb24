"""Servers in a thread of their own, for clients that block."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from engines import HostDevice
from runtime import AsyncRuntime, HostOptions
from runtime.serve.models import ServedModel
from runtime.serve.options import Address, BundleSource, ServeOptions
from runtime.serve.server import ModelServer, run_in_loop
from runtime.serve.service import InferenceService

ANY = Address("127.0.0.1", 0)


def options_for(**bundles: Path) -> dict[str, Any]:
    """Returns options for bundles at free ports."""
    sources = tuple(BundleSource(name, folder) for name, folder in bundles.items())
    return {"bundles": sources, "http": ANY, "grpc": ANY, "metrics": ANY, "drain_delay_s": 0.0, "threads": 1}


@contextmanager
def serving(
    options: ServeOptions, *, nets: dict[str, Any] | None = None, hosts: dict[str, AsyncRuntime] | None = None
) -> Iterator[ModelServer]:
    """Runs a server until the block ends; its errors are raised there.

    Args:
        options: of the server.
        nets: name -> fakes to serve under it instead of the bundle.
        hosts: the same with hosts.
    """
    made: list[ModelServer] = []
    failed: list[BaseException] = []
    up = threading.Event()

    async def run() -> None:
        service = InferenceService(options)
        own = dict(hosts or {})
        for name, net in (nets or {}).items():
            own[name] = AsyncRuntime.over(net.spec(), net.engine_sets(), HostDevice(), options.host)
        for name, host in own.items():
            service.models[name] = ServedModel(name, Path("none"), options, host)
        made.append(ModelServer(service))
        made[0].loop = asyncio.get_running_loop()  # type: ignore[attr-defined]
        await made[0].run(up.set)

    def work() -> None:
        try:
            run_in_loop(run())
        except BaseException as error:  # noqa: BLE001 - raised again in the test's own thread
            failed.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=work)
    thread.start()
    assert up.wait(60)
    if failed:
        thread.join()
        raise failed[0]
    try:
        yield made[0]
    finally:
        call_there(made[0], made[0].stop)
        thread.join(60)
        assert not thread.is_alive()
    if failed:
        raise failed[0]


def call_there(server: ModelServer, call: Callable[[], Any]) -> None:
    """Calls something in the server's own thread, unless that has ended."""
    try:
        server.loop.call_soon_threadsafe(call)  # type: ignore[attr-defined]
    except RuntimeError:
        return


def fake_options(**host: Any) -> ServeOptions:
    """Returns options of a server of fakes, which are to be passed to ``serving``."""
    chosen = options_for(fake=Path("none"))
    return ServeOptions(**{**chosen, "host": HostOptions(**host)})


@dataclass(frozen=True)
class Reply:
    """An answer of HTTP; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    server: ModelServer, verb: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None,
    *, at: str = "http",
) -> Reply:  # fmt: skip
    """Sends a plain request over a connection of its own."""
    address = server.addresses[at]
    connection = HTTPConnection(address.host, address.port, timeout=30)
    try:
        connection.request(verb, path, body, headers or {})
        found = connection.getresponse()
        return Reply(found.status, {name.lower(): value for name, value in found.getheaders()}, found.read())
    finally:
        connection.close()


def wait_for(condition: Callable[[], bool]) -> None:
    """Waits until something is so."""
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)

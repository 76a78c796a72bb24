"""``run_server``: a server from its first socket to its last answer: start, readiness, watch, drain, end.

Sockets are open, and liveness is answered, before the bundles are; the server is ready when all of them are. At SIGTERM
it is not ready any more, but goes on answering for the drain delay, so that whoever distributes requests can look
elsewhere; then it refuses, finishes what it has admitted, and ends. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from artifacts import EngineError
from artifacts.console import say
from runtime.serve.metrics import make_metrics_app
from runtime.serve.models import READY
from runtime.serve.options import Address, Security, ServeOptions
from runtime.serve.service import InferenceService
from runtime.serve.transports.grpc_listener import GrpcListener
from runtime.serve.transports.http_app import make_app
from runtime.serve.transports.http_listener import HttpListener, address_of, bind

T = TypeVar("T")
_HEALTH_S = 0.25
_LAST_ANSWERS_S = 5.0
_log = logging.getLogger("pame.serve")


class Listener(Protocol):
    """One way in."""

    async def start(self) -> None:
        """Listens."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Ends, after the requests under way."""
        ...


class ModelServer:
    """A server.

    Attributes:
        service: its models.
        addresses: ``http``, ``grpc``, ``metrics`` -> where it listens.
    """

    def __init__(self, service: InferenceService) -> None:
        """Binds the sockets.

        Raises:
            PameError: an address is taken.
            MissingExtraError: a package is not installed.
        """
        self.service = service
        self.addresses: dict[str, Address] = {}
        self._listeners: list[Listener] = []
        self._stop = asyncio.Event()
        self._stuck: str | None = None
        self._delay_s = service.options.drain_delay_s
        self._sockets: list[socket.socket] = []
        try:
            self._add_listeners(service.options)
        except BaseException:
            for bound in self._sockets:
                bound.close()
            raise

    def _add_listeners(self, options: ServeOptions) -> None:
        service = self.service
        if options.http is not None:
            self._add_http("http", make_app(service), options.http, options.security)
        if options.grpc is not None:
            listener = GrpcListener(service, options.grpc)
            self._listeners.append(listener)
            self.addresses["grpc"] = listener.address
        if options.metrics is not None:
            self._add_http("metrics", make_metrics_app(service), options.metrics, Security())

    def _add_http(self, name: str, app: Any, address: Address, security: Security) -> None:
        bound = bind(address)
        self._sockets.append(bound)
        self._listeners.append(HttpListener(app, bound, self.service.options.limits, security))
        self.addresses[name] = address_of(bound)

    async def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serves until it is told to stop.

        Args:
            ready: called when all models answer.

        Raises:
            As ``Runtime.load``: a bundle cannot be opened.
            EngineError: an engine hangs. Nothing but another process helps.
        """
        for listener in self._listeners:
            await listener.start()
        watching: list[asyncio.Task[None]] = []
        try:
            if await self._open():
                ready()
                watching = [asyncio.create_task(task) for task in (self._watch_engines(), self._watch_folders())]
                await self._stop.wait()
                await self._drain()
        finally:
            self.service.draining = True
            for task in watching:
                task.cancel()
            await asyncio.gather(*(listener.stop(_LAST_ANSWERS_S) for listener in self._listeners))
            await self.service.close()
        if self._stuck is not None:
            raise EngineError(f"{self._stuck}. Start the server again")

    def stop(self, *, at_once: bool = False) -> None:
        """Begins to end: not ready any more. ``at_once``: without the drain delay."""
        self.service.draining = True
        if at_once:
            self._delay_s = 0.0
        self._stop.set()

    async def _open(self) -> bool:
        """Opens the models; returns whether it was not told to stop meanwhile."""
        opening = asyncio.create_task(self.service.open())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait((opening, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await opening  # in another thread, which is not to be left with half a bundle
        return not self._stop.is_set()

    async def _drain(self) -> None:
        _log.info("not ready any more; answering for another %g s", self._delay_s)
        await asyncio.sleep(self._delay_s)
        lost = await self.service.drain(self.service.options.drain_timeout_s)
        if lost:
            _log.error("%d requests under way were not finished in time", lost)

    async def _watch_engines(self) -> None:
        while (why := self._find_stuck()) is None:
            await asyncio.sleep(_HEALTH_S)
        _log.error("%s; the server ends", why)
        self._stuck = why
        self.stop()

    async def _watch_folders(self) -> None:
        seconds = self.service.options.watch_s
        while seconds is not None:
            await asyncio.sleep(seconds)
            await self.service.reload_changed()

    def _find_stuck(self) -> str | None:
        for model in self.service.models.values():
            if model.state == READY and (why := model.host.snapshot().stuck) is not None:
                return f"model '{model.name}' has lost its device: {why}"
        return None


def run_server(options: ServeOptions) -> dict[str, Any]:
    """Serves until a signal comes; returns what was served, as plain data.

    Raises:
        PameError: it cannot start, or an engine hangs.
    """
    return run_in_loop(_serve(options))


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Runs a server in an event loop of its own: uvloop's where there is one, which takes less time per request."""
    try:
        import uvloop
    except ModuleNotFoundError:  # on Windows there is none
        _log.info("the event loop is asyncio's; uvloop's is faster: pip install 'pame[serve]'")
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def _serve(options: ServeOptions) -> dict[str, Any]:
    server = ModelServer(InferenceService(options))
    with _signals(server):
        await server.run(lambda: _say_where(server))
    return {
        "addresses": {name: str(address) for name, address in server.addresses.items()},
        "models": {
            model.name: {
                "requests": {f"{protocol} {code}": n for (protocol, code), n in sorted(counted.requests.items())},
                "rows": counted.rows,
                "exits": dict(counted.exits),
            }
            for model in server.service.models.values()
            for counted in (model.statistics,)
        },
    }


@contextlib.contextmanager
def _signals(server: ModelServer) -> Any:
    """Lets the first SIGTERM or SIGINT stop the server gently, and the second one end the process."""
    loop = asyncio.get_running_loop()
    told: list[int] = []

    def stop(number: int) -> None:
        told.append(number)
        if len(told) > 1:
            say("stopped at once; requests under way are lost")
            os._exit(128 + number)
        server.stop(at_once=number == signal.SIGINT)

    handled: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)
    for number in handled:
        loop.add_signal_handler(number, stop, number)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


def _say_where(server: ModelServer) -> None:
    where = ", ".join(f"{name} {address}" for name, address in server.addresses.items())
    say(f"serving {', '.join(server.service.models) or 'no model yet'} at {where}")
    exposed = [address for address in server.addresses.values() if not _is_local(address)]
    if exposed and server.service.options.security.token is None:
        _log.warning("anybody who reaches %s can use it: there is no --token-file", exposed[0])


def _is_local(address: Address) -> bool:
    return address.host in ("127.0.0.1", "::1", "localhost")

"""Listening: sockets, and uvicorn behind them, with limits on heads and connections; signals stay the server's own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from artifacts import MissingExtraError, PameError
from runtime.serve.options import Address, Limits, Security

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_BACKLOG = 2048
_LINGER_S = 0.5  # for which idle connections are open at the end, for requests that are on their way
_KEEP_ALIVE_S = 75  # longer than what clients and proxies keep idle connections, so that they close first
_log = logging.getLogger("pame.serve")


def bind(address: Address) -> socket.socket:
    """Returns a socket that listens: one that is only bound does not keep others from the same address.

    Raises:
        PameError: the address is taken, or not of this machine.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, place = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(place)
            bound.listen(_BACKLOG)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise PameError(f"cannot listen at {address}: {error.strerror or error}; choose another HOST:PORT") from error
    return bound


def accept_waiting(bound: socket.socket) -> list[socket.socket]:
    """Returns the connections that the kernel has made at a listening socket and that nobody has accepted."""
    found: list[socket.socket] = []
    with contextlib.suppress(OSError):  # no more of them
        while len(found) < _BACKLOG:
            connection, _ = bound.accept()
            connection.settimeout(0)
            found.append(connection)
    return found


def address_of(bound: socket.socket) -> Address:
    """Returns the address of a socket, with the port that it was given."""
    host, port = bound.getsockname()[:2]
    return Address(host, port)


class HttpListener:
    """An ASGI application behind a socket.

    Args:
        app: the application.
        bound: the socket.
        limits: of heads and connections.
        security: TLS.

    Raises:
        MissingExtraError: uvicorn is not installed.
        PameError: certificate or key cannot be read.
    """

    def __init__(self, app: Any, bound: socket.socket, limits: Limits, security: Security) -> None:
        try:
            import uvicorn
        except ModuleNotFoundError as error:
            raise MissingExtraError("uvicorn", "serve") from error

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                """Ends, after it has taken in the connections that wait at its sockets, which would be reset."""
                waiting = [connection for bound in sockets or [] for connection in accept_waiting(bound)]
                for server in self.servers:
                    server.close()
                for bound in sockets or []:
                    bound.close()
                loop, config = asyncio.get_running_loop(), self.config
                protocol: Any = config.http_protocol_class
                make = partial(protocol, config=config, server_state=self.server_state, app_state=self.lifespan.state)
                for connection in waiting:
                    with contextlib.suppress(OSError):  # its client has gone
                        await loop.connect_accepted_socket(make, connection, ssl=config.ssl)
                await super().shutdown(sockets)

        config = uvicorn.Config(
            app, http=_limited_protocol(limits), ws="none", lifespan="off", log_config=None, access_log=False,
            proxy_headers=False,  # nobody asks who the client is
            server_header=False, date_header=False, backlog=_BACKLOG, timeout_keep_alive=_KEEP_ALIVE_S, loop="none",
            ssl_certfile=security.certificate, ssl_keyfile=security.key,
        )  # fmt: skip
        try:
            config.load()
        except OSError as error:
            raise PameError(f"TLS is not possible with {security.certificate}, {security.key}: {error}") from error
        self._server = Server(config)
        self._socket = bound
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listens."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            await asyncio.sleep(0.005)
            if self._task.done():
                self._task.result()
                raise PameError(f"the server at {address_of(self._socket)} did not start")

    async def stop(self, grace_s: float) -> None:
        """Closes the socket, finishes the requests under way for so long, and ends their connections."""
        if self._task is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True
        await self._task


def _limited_protocol(limits: Limits) -> type[HttpToolsProtocol]:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class LimitedProtocol(HttpToolsProtocol):
        """uvicorn's protocol, with limits on the head of a request, its time and the number of connections."""

        _in_head = True
        _head_bytes = 0
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.connections:
                _log.warning("a connection is refused: there are %d already (--max-connections)", limits.connections)
                transport.close()
            self._expect_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            self._expect_head()
            super().on_message_begin()

        def data_received(self, data: bytes) -> None:
            if self._in_head:
                self._head_bytes += len(data)
            super().data_received(data)
            if self._in_head and self._head_bytes > limits.header_kb * 1024 and not self.transport.is_closing():
                self.send_400_response("The head of the request is too large.")

        def on_headers_complete(self) -> None:
            self._in_head, self._head_bytes = False, 0
            self._stop_waiting()
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_head = True
            super().on_message_complete()

        def _expect_head(self) -> None:
            if self._late is None:
                self._late = self.loop.call_later(limits.read_timeout_s, self._give_up)

        def _stop_waiting(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _give_up(self) -> None:
            """Ends a connection whose client has sent nothing, or a part of a head."""
            if self._head_bytes > 0 and not self.transport.is_closing():
                self._refuse("408 Request Timeout", f"the head did not arrive within {limits.read_timeout_s:g} s")
            self.transport.close()

        def send_400_response(self, msg: str) -> None:
            """Refuses what is no HTTP, with an object as all errors are."""
            self._refuse("400 Bad Request", msg)

        def _refuse(self, status: str, why: str) -> None:
            content = json.dumps({"error": why}).encode()
            head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
            self.transport.close()

        def shutdown(self) -> None:
            """Ends the connection after the request under way, or after one that may be on its way here."""
            if self.cycle is None or self.cycle.response_complete:
                self.loop.call_later(_LINGER_S, super().shutdown)
            else:
                super().shutdown()

    return LimitedProtocol

"""``Replica``: one process of an application: the models, behind the HTTP application and the gRPC calls of a server.

Ray Serve calls a method by the name of the RPC. Nothing here may hold a message class at import: Ray pickles what a
deployment can reach, and descriptors cannot be pickled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from artifacts import EngineError
from runtime.ray_app.servicer import name_messages
from runtime.serve.models import READY
from runtime.serve.options import ServeOptions
from runtime.serve.service import InferenceService
from runtime.serve.transports.grpc_service import GrpcService
from runtime.serve.transports.http_app import make_app

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class AbortedError(Exception):
    """A call over gRPC has ended with a code, which its context holds."""


class Replica:
    """What Ray Serve makes of a deployment in each of its processes."""

    async def __init__(self, options: ServeOptions) -> None:  # type: ignore[misc]  # Ray awaits it
        """Opens and warms up the models; Ray sends requests when that is done.

        Raises:
            As ``Runtime.load``: a bundle cannot be opened. Ray starts the replica again, and says why it failed.
        """
        import grpc

        self._service = InferenceService(options)
        self._calls = GrpcService(self._service, name_messages(), grpc.StatusCode)
        await self._service.open()

    def __serve_build_asgi_app__(self) -> Callable[[Message, Receive, Send], Awaitable[None]]:
        """Returns the HTTP application of a server, which closes the models when Ray ends the replica."""
        app = make_app(self._service)

        async def answer(scope: Message, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await self._live(receive, send)
            else:
                await app(scope, receive, send)

        return answer

    async def check_health(self) -> None:
        """Says whether the engines answer; where one hangs, Ray starts another replica in its place.

        Raises:
            EngineError: a model has lost its device.
        """
        for model in self._service.models.values():
            if model.state == READY and (why := model.host.snapshot().stuck) is not None:
                raise EngineError(f"model '{model.name}' has lost its device: {why}")

    async def _live(self, receive: Receive, send: Send) -> None:
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
        self._service.draining = True
        await self._service.close()
        await send({"type": "lifespan.shutdown.complete"})

    # the calls of gRPC

    async def ServerLive(self, request: Any, grpc_context: Any) -> Any:
        return await self._calls.ServerLive(request, _Context(grpc_context))

    async def ServerReady(self, request: Any, grpc_context: Any) -> Any:
        return await self._calls.ServerReady(request, _Context(grpc_context))

    async def ServerMetadata(self, request: Any, grpc_context: Any) -> Any:
        return await self._calls.ServerMetadata(request, _Context(grpc_context))

    async def ModelReady(self, request: Any, grpc_context: Any) -> Any:
        return await self._calls.ModelReady(request, _Context(grpc_context))

    async def ModelMetadata(self, request: Any, grpc_context: Any) -> Any:
        return await self._calls.ModelMetadata(request, _Context(grpc_context))

    async def ModelConfig(self, request: Any, grpc_context: Any) -> Any:
        return await self._calls.ModelConfig(request, _Context(grpc_context))

    async def ModelStatistics(self, request: Any, grpc_context: Any) -> Any:
        return await self._calls.ModelStatistics(request, _Context(grpc_context))

    async def RepositoryIndex(self, request: Any, grpc_context: Any) -> Any:
        return await self._calls.RepositoryIndex(request, _Context(grpc_context))

    async def ModelInfer(self, request: Any, grpc_context: Any) -> Any:
        return await self._calls.ModelInfer(request, _Context(grpc_context))

    async def ModelStreamInfer(self, request_stream: Any, grpc_context: Any) -> AsyncIterator[Any]:
        async for reply in self._calls.ModelStreamInfer(request_stream, _Context(grpc_context)):
            yield reply


class _Context:
    """Ray's context of a call, as the service uses that of gRPC."""

    def __init__(self, context: Any) -> None:
        self._context = context

    def time_remaining(self) -> float | None:
        """Not told by Ray, which cancels the call when its client gives up."""
        return None

    def invocation_metadata(self) -> Any:
        return self._context.invocation_metadata()

    async def abort(self, code: Any, details: str, trailing: tuple[tuple[str, str], ...] = ()) -> None:
        self._context.set_code(code)
        self._context.set_details(details)
        if trailing:
            self._context.set_trailing_metadata([*trailing])
        raise AbortedError(details)

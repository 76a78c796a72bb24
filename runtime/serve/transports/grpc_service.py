"""The gRPC side of the protocol: ``GRPCInferenceService`` and ``grpc.health.v1`` over an ``InferenceService``.

The messages are those that ``tritonclient`` ships: a process may register the package ``inference`` only once, so a
host that embeds both a server and a client would fail with a second set.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from time import perf_counter
from typing import Any, NoReturn

from artifacts import InputError, PameError, RefusedError
from runtime.oip.calls import flag_parameter
from runtime.oip.failures import CANCELLED, describe_failure
from runtime.oip.grpc_codec import read_call, read_parameters, write_answer
from runtime.serve.models import FINAL, Arrival
from runtime.serve.service import InferenceService

STREAM_ROWS = "stream_rows"
_REPLIES_LIMIT = 64  # calls of a stream that are under way, and replies that its client has not taken


class GrpcService:
    """The calls of the protocol, by their names there.

    Args:
        service: the models.
        messages: ``tritonclient.grpc.service_pb2``.
        codes: ``grpc.StatusCode``.
    """

    def __init__(self, service: InferenceService, messages: Any, codes: Any) -> None:
        self._service = service
        self._messages = messages
        self._codes = codes
        token = service.options.security.token
        self._token = None if token is None else f"Bearer {token}".encode()

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        started, name = perf_counter(), request.model_name
        try:
            self._check_token(context)
            call = read_call(request, self._service.shared_memory.read)
            arrival = Arrival("grpc", started, context.time_remaining(), self._carrier(context))
            answer = await self._service.infer(name, request.model_version, call, arrival)
            return write_answer(answer, self._messages)
        except PameError as error:
            failure = self._service.fail(name, "grpc", error, started)
            await self._abort(context, failure.code, error)
        except asyncio.CancelledError:  # the client has gone, or its deadline has passed
            self._service.count_failure(name, "grpc", CANCELLED, started)
            raise

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        await self._guard(context, lambda: None)
        replies: asyncio.Queue[Any] = asyncio.Queue()
        reading = asyncio.create_task(self._read_stream(requests, self._carrier(context), replies))
        try:
            while (reply := await replies.get()) is not None:
                yield reply
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def _carrier(self, context: Any) -> Mapping[str, str] | None:
        """Returns the metadata of a call where it is traced."""
        if self._service.tracing is None:
            return None
        return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}

    async def _read_stream(
        self, requests: AsyncIterator[Any], carrier: Mapping[str, str] | None, replies: asyncio.Queue[Any]
    ) -> None:
        """Answers the calls of a stream as they come; their replies come as they are ready."""
        tasks: set[asyncio.Task[None]] = set()
        try:
            async for request in requests:
                while len(tasks) + replies.qsize() >= _REPLIES_LIMIT:
                    await (asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED) if tasks else asyncio.sleep(0.001))
                task = asyncio.create_task(self._answer_in_stream(request, carrier, replies))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            replies.put_nowait(None)

    async def _answer_in_stream(
        self, request: Any, carrier: Mapping[str, str] | None, replies: asyncio.Queue[Any]
    ) -> None:
        started, name, messages = perf_counter(), request.model_name, self._messages
        try:
            call = read_call(request, self._service.shared_memory.read)
            arrival = Arrival("grpc", started, None, carrier)
            if flag_parameter(call.parameters, STREAM_ROWS):
                with self._service.trace(name, arrival) as traced:
                    model = self._service.find(name, request.model_version)
                    async for answer in model.stream(call, traced):
                        response = write_answer(answer, messages)
                        replies.put_nowait(messages.ModelStreamInferResponse(infer_response=response))
                return
            answer = await self._service.infer(name, request.model_version, call, arrival)
            answer.parameters = {FINAL: True}
            replies.put_nowait(messages.ModelStreamInferResponse(infer_response=write_answer(answer, messages)))
        except PameError as error:
            self._service.fail(name, "grpc", error, started)
            empty = messages.ModelInferResponse(model_name=name, id=request.id)
            empty.parameters[FINAL].bool_param = True
            replies.put_nowait(messages.ModelStreamInferResponse(error_message=str(error), infer_response=empty))
        except asyncio.CancelledError:
            self._service.count_failure(name, "grpc", CANCELLED, started)
            raise

    async def ServerLive(self, _request: Any, _context: Any) -> Any:
        return self._messages.ServerLiveResponse(live=True)

    async def ServerReady(self, _request: Any, _context: Any) -> Any:
        return self._messages.ServerReadyResponse(ready=self._service.ready)

    async def ModelReady(self, request: Any, _context: Any) -> Any:
        return self._messages.ModelReadyResponse(ready=self._service.model_ready(request.name, request.version))

    async def ServerMetadata(self, _request: Any, context: Any) -> Any:
        return await self._answer(context, "ServerMetadataResponse", self._service.server_metadata)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        return await self._answer(
            context, "ModelMetadataResponse", lambda: self._service.find(request.name, request.version).metadata()
        )

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        return await self._answer(
            context,
            "ModelConfigResponse",
            lambda: {"config": self._service.find(request.name, request.version).config()},
        )

    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        return await self._answer(
            context, "ModelStatisticsResponse", lambda: self._service.statistics(request.name, request.version)
        )

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        return await self._answer(
            context, "RepositoryIndexResponse", lambda: {"models": self._service.index(ready_only=request.ready)}
        )

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        await self._change(request, context, self._service.load)
        return self._messages.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        await self._change(request, context, self._service.unload)
        return self._messages.RepositoryModelUnloadResponse()

    async def SystemSharedMemoryStatus(self, request: Any, context: Any) -> Any:
        regions = await self._guard(context, lambda: self._service.shared_memory.status(request.name))
        response = self._messages.SystemSharedMemoryStatusResponse()
        for region in regions:
            response.regions[region["name"]].MergeFrom(response.RegionStatus(**region))
        return response

    async def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        where = (request.name, request.key, request.offset, request.byte_size)
        await self._guard(context, lambda: self._service.shared_memory.register(*where))
        return self._messages.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        await self._guard(context, lambda: self._service.shared_memory.unregister(request.name))
        return self._messages.SystemSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryStatus(self, _request: Any, context: Any) -> Any:
        await self._guard(context, lambda: None)
        return self._messages.CudaSharedMemoryStatusResponse()

    async def CudaSharedMemoryUnregister(self, _request: Any, context: Any) -> Any:
        await self._guard(context, lambda: None)  # clients begin with this; there is none, so none is left
        return self._messages.CudaSharedMemoryUnregisterResponse()

    async def CudaSharedMemoryRegister(self, _request: Any, context: Any) -> Any:
        await self._refuse(context, "memory of a GPU is not shared here; send the tensors")

    async def TraceSetting(self, _request: Any, context: Any) -> Any:
        await self._refuse(context, "this server keeps no traces")

    async def LogSettings(self, _request: Any, context: Any) -> Any:
        await self._refuse(context, "what this server logs is set where it is started")

    async def _change(self, request: Any, context: Any, change: Callable[[str], Awaitable[None]]) -> None:
        try:
            self._check_token(context)
            if read_parameters(request.parameters).keys() - {"unload_dependents"}:
                raise InputError("a model is loaded as its bundle is; this server takes no parameters for it")
            await change(request.model_name)
        except PameError as error:
            await self._abort(context, describe_failure(error).code, error)

    async def _answer(self, context: Any, kind: str, find: Callable[[], Mapping[str, Any]]) -> Any:
        from google.protobuf.json_format import ParseDict

        return ParseDict(await self._guard(context, find), getattr(self._messages, kind)())

    async def _guard(self, context: Any, find: Callable[[], Any]) -> Any:
        try:
            self._check_token(context)
            return find()
        except PameError as error:
            await self._abort(context, describe_failure(error).code, error)

    async def _refuse(self, context: Any, why: str) -> None:
        await self._guard(context, lambda: None)
        await self._abort(context, "UNIMPLEMENTED", RefusedError(why, reason="unsupported"))

    async def _abort(self, context: Any, code: str, error: PameError) -> NoReturn:
        trailing: tuple[tuple[str, str], ...] = ()
        if isinstance(error, RefusedError) and error.retry_after_s is not None:
            trailing = (("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1e3))),)
        await context.abort(getattr(self._codes, code), str(error), trailing)
        raise AssertionError("abort raises")

    def _check_token(self, context: Any) -> None:
        if self._token is None:
            return
        stated = dict(context.invocation_metadata() or ()).get("authorization", "")
        if not hmac.compare_digest(str(stated).encode(), self._token):
            raise RefusedError("expected the metadata authorization: Bearer TOKEN", reason="unauthorised")


class GrpcHealth:
    """``grpc.health.v1.Health``: of the server (the empty name, or the protocol's) and of each model by its name."""

    _WATCH_S = 0.5

    def __init__(self, service: InferenceService, messages: Any, codes: Any) -> None:
        self._service = service
        self._messages = messages
        self._codes = codes

    async def Check(self, request: Any, context: Any) -> Any:
        status = self._status(request.service)
        if status == self._messages.HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(self._codes.NOT_FOUND, f"there is no model '{request.service[:200]}'")
        return self._messages.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, _context: Any) -> AsyncIterator[Any]:
        last = None
        while True:
            status = self._status(request.service)
            if status != last:
                yield self._messages.HealthCheckResponse(status=status)
            last = status
            await asyncio.sleep(self._WATCH_S)

    def _status(self, name: str) -> Any:
        kinds = self._messages.HealthCheckResponse
        if name in ("", "inference.GRPCInferenceService"):
            ready = self._service.ready
        elif name in self._service.models:
            ready = self._service.model_ready(name)
        else:
            return kinds.SERVICE_UNKNOWN
        return kinds.SERVING if ready else kinds.NOT_SERVING

"""The HTTP side of the protocol, as an ASGI application (Starlette) over an ``InferenceService``.

A body is read up to its limit, and is given up with its request when the client hangs up. Every error is an object
``{"error": ...}``, as clients expect it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from artifacts import InputError, MissingExtraError, PameError, RefusedError
from runtime.oip.calls import whole_parameter
from runtime.oip.compression import choose_encoding, compress, decompress
from runtime.oip.failures import CANCELLED, INTERNAL, Failure, describe_failure
from runtime.oip.http_codec import HEADER_LENGTH, format_answer, parse_call, parse_object
from runtime.serve.models import Arrival, ServedModel
from runtime.serve.service import ByteBudget, InferenceService
from runtime.serve.status_page import render_status

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send

    Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]

T = TypeVar("T")
_JSON = "application/json"
_BINARY = "application/octet-stream"
_COMPRESSED_FROM = 1024  # bytes: below, it costs more than it saves
_INFER = re.compile("/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")
_SMALL_BODY = 1 << 20  # bytes of the body of a call that is no inference
_log = logging.getLogger("pame.serve")


class ClientGoneError(Exception):
    """The client hung up before its answer was there."""


def make_app(service: InferenceService) -> ASGIApp:
    """Returns the application.

    Raises:
        MissingExtraError: Starlette or orjson is not installed.
    """
    try:
        import orjson  # noqa: F401 - by the codec, later
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route
    except ModuleNotFoundError as error:
        raise MissingExtraError("starlette", "serve") from error
    handlers = _Handlers(service)
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    routes = [
        *(Route(f"{path}/infer", handlers.infer, methods=["POST"]) for path in (model, version)),
        Route("/v2/health/live", handlers.live),
        Route("/v2/health/ready", handlers.ready),
        Route("/", handlers.status_page),
        Route("/v2", handlers.server_metadata),
        Route("/v2/models/stats", handlers.all_statistics),
        *(
            Route(f"{path}{ending}", endpoint)
            for path in (model, version)
            for ending, endpoint in (
                ("", handlers.metadata),
                ("/ready", handlers.model_ready),
                ("/config", handlers.config),
                ("/stats", handlers.statistics),
            )
        ),
        *(
            Route(f"/v2/systemsharedmemory{region}{ending}", endpoint, methods=methods)
            for region in ("", "/region/{region}")
            for ending, endpoint, methods in (
                ("/status", handlers.memory_status, ["GET"]),
                ("/register", handlers.register_memory, ["POST"]),
                ("/unregister", handlers.unregister_memory, ["POST"]),
            )
            if region or ending != "/register"
        ),
        Route("/v2/repository/index", handlers.index, methods=["POST"]),
        Route("/v2/repository/models/{model}/load", handlers.load, methods=["POST"]),
        Route("/v2/repository/models/{model}/unload", handlers.unload, methods=["POST"]),
    ]

    async def refuse(_request: Request, error: Exception) -> Response:
        known = error if isinstance(error, HTTPException) else HTTPException(INTERNAL.status)
        return _error(known.detail, known.status_code, known.headers)

    async def fail(_request: Request, error: Exception) -> Response:
        return _error(f"internal error: {type(error).__name__}", INTERNAL.status)

    app = Starlette(routes=routes, exception_handlers={HTTPException: refuse, Exception: fail})
    app.router.redirect_slashes = False  # to an address of the client's choice, and its body would be sent twice
    return _infer_first(handlers.infer, app)


def _infer_first(infer: Endpoint, app: Starlette) -> ASGIApp:
    """Returns the application with a way of its own for inference, past Starlette's middlewares and routes, which cost
    more processor time than all that is done to a small request here.
    """
    from starlette.requests import Request

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        direct = scope["type"] == "http" and scope["method"] == "POST" and not scope.get("root_path")
        found = _INFER.fullmatch(scope["path"]) if direct else None
        if found is None:
            await app(scope, receive, send)
            return
        scope["path_params"] = {name: value for name, value in found.groupdict().items() if value is not None}
        try:
            response = await infer(Request(scope, receive))
        except Exception as error:
            await _error(f"internal error: {type(error).__name__}", INTERNAL.status)(scope, receive, send)
            raise
        await response(scope, receive, send)

    return answer


class _Handlers:
    """The calls of the protocol."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._limits = service.options.limits
        token = service.options.security.token
        self._token = None if token is None else f"Bearer {token}".encode()

    async def infer(self, request: Request) -> Response:
        started, service, body = perf_counter(), self._service, b""
        name, version = request.path_params["model"], request.path_params.get("version", "")
        try:
            self._check_token(request)
            service.find(name, version)
            body = await self._read_body(request, self._limits.body)
            stated = request.headers.get(HEADER_LENGTH)
            call = parse_call(body, stated, json_limit=self._limits.json, regions=service.shared_memory.read)
            arrival = Arrival("http", started, carrier=None if service.tracing is None else request.headers)
            answer = await _unless_gone(request, service.infer(name, version, call, arrival))
            parts, head_length = format_answer(answer)
        except PameError as error:
            return self._failed(error, service.fail(name, "http", error, started))
        except ClientGoneError:
            service.count_failure(name, "http", CANCELLED, started)
            return self._reply(b"", status=CANCELLED.status)
        finally:
            service.budget.give_back(len(body))
        headers = {} if head_length is None else {HEADER_LENGTH: str(head_length)}
        encoding = choose_encoding(request.headers.get("accept-encoding"))
        if encoding is not None and sum(map(len, parts)) >= _COMPRESSED_FROM:
            headers["content-encoding"] = encoding
            content = compress(parts, encoding)
        else:
            content = b"".join(parts)
        return self._reply(content, headers=headers, kind=_JSON if head_length is None else _BINARY)

    async def live(self, _request: Request) -> Response:
        return self._reply_json({"live": True})

    async def ready(self, _request: Request) -> Response:
        ready = self._service.ready
        return self._reply_json({"ready": ready}, status=200 if ready else 503)

    async def status_page(self, request: Request) -> Response:
        try:
            self._check_token(request)
        except PameError as error:
            return self._failed(error, describe_failure(error))
        headers = {
            "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
            "cache-control": "no-store",
        }
        return self._reply(render_status(self._service).encode(), headers=headers, kind="text/html; charset=utf-8")

    async def model_ready(self, request: Request) -> Response:
        name, version = request.path_params["model"], request.path_params.get("version", "")
        if self._service.model_ready(name, version):
            return self._reply_json({"name": name, "ready": True})
        return self._reply_json({"error": "Model version not ready"}, status=400)

    async def server_metadata(self, request: Request) -> Response:
        return self._answer(request, self._service.server_metadata)

    async def metadata(self, request: Request) -> Response:
        return self._answer(request, lambda: self._find(request).metadata())

    async def config(self, request: Request) -> Response:
        return self._answer(request, lambda: self._find(request).config())

    async def statistics(self, request: Request) -> Response:
        name, version = request.path_params["model"], request.path_params.get("version", "")
        return self._answer(request, lambda: self._service.statistics(name, version))

    async def all_statistics(self, request: Request) -> Response:
        return self._answer(request, self._service.statistics)

    async def index(self, request: Request) -> Response:
        try:
            self._check_token(request)
            stated = await self._object(request)
            return self._reply_json(self._service.index(ready_only=stated.get("ready") is True))
        except PameError as error:
            return self._failed(error, describe_failure(error))

    async def load(self, request: Request) -> Response:
        return await self._change(request, self._service.load)

    async def unload(self, request: Request) -> Response:
        return await self._change(request, self._service.unload)

    async def _change(self, request: Request, change: Callable[[str], Awaitable[None]]) -> Response:
        try:
            self._check_token(request)
            if (await self._object(request)).get("parameters"):
                raise InputError("a model is loaded as its bundle is; this server takes no parameters for it")
            await change(request.path_params["model"])
        except PameError as error:
            return self._failed(error, describe_failure(error))
        return self._reply(b"")

    async def memory_status(self, request: Request) -> Response:
        name = request.path_params.get("region", "")
        return self._answer(request, lambda: self._service.shared_memory.status(name))

    async def register_memory(self, request: Request) -> Response:
        try:
            self._check_token(request)
            stated = await self._object(request)
            key = stated.get("key")
            if not isinstance(key, str):
                raise InputError("expected the key of the shared memory, a string")
            offset, size = whole_parameter(stated, "offset"), whole_parameter(stated, "byte_size")
            self._service.shared_memory.register(request.path_params["region"], key, offset, size)
        except PameError as error:
            return self._failed(error, describe_failure(error))
        return self._reply(b"")

    async def unregister_memory(self, request: Request) -> Response:
        try:
            self._check_token(request)
            self._service.shared_memory.unregister(request.path_params.get("region", ""))
        except PameError as error:
            return self._failed(error, describe_failure(error))
        return self._reply(b"")

    def _find(self, request: Request) -> ServedModel:
        return self._service.find(request.path_params["model"], request.path_params.get("version", ""))

    def _answer(self, request: Request, find: Callable[[], object]) -> Response:
        try:
            self._check_token(request)
            return self._reply_json(find())
        except PameError as error:
            return self._failed(error, describe_failure(error))

    def _check_token(self, request: Request) -> None:
        if self._token is None:
            return
        stated = request.headers.get("authorization", "").encode("latin-1", "replace")
        if not hmac.compare_digest(stated, self._token):
            raise RefusedError("expected the header Authorization: Bearer TOKEN", reason="unauthorised")

    async def _object(self, request: Request) -> Mapping[str, Any]:
        body = await self._read_body(request, _SMALL_BODY)
        self._service.budget.give_back(len(body))
        return parse_object(body) if body.strip() else {}

    async def _read_body(self, request: Request, limit: int) -> bytes:
        """Returns a body, decompressed. It counts against the budget until its caller gives its bytes back."""
        stated = request.headers.get("content-length", "")
        if stated.isdigit() and int(stated[:20]) > limit:
            raise _too_large(limit)
        held = _Held(self._service.budget)
        try:
            async with asyncio.timeout(self._limits.read_timeout_s):
                body = await _receive_body(request, limit, held)
            if encoding := ", ".join(request.headers.getlist("content-encoding")):
                body = decompress(body, encoding, limit)
                held.change_to(len(body))
            return body
        except TimeoutError as error:
            held.change_to(0)
            seconds = self._limits.read_timeout_s
            raise RefusedError(f"the body did not arrive within {seconds:g} s", reason="slow") from error
        except BaseException:
            held.change_to(0)
            raise

    def _failed(self, error: PameError, failure: Failure) -> Response:
        headers = {}
        if isinstance(error, RefusedError) and error.retry_after_s is not None:
            headers["retry-after"] = str(max(1, round(error.retry_after_s)))
        if failure.status == 401:
            headers["www-authenticate"] = "Bearer"
        return self._reply_json({"error": str(error)}, status=failure.status, headers=headers)

    def _reply_json(self, value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
        import orjson

        return self._reply(orjson.dumps(value), status=status, headers=headers, kind=_JSON)

    def _reply(
        self, content: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None, kind: str | None = None
    ) -> Response:
        from starlette.responses import Response

        sent = dict(headers or {})
        if self._service.draining:
            sent["connection"] = "close"  # so that clients are elsewhere before the listener closes
        return Response(content, status_code=status, headers=sent, media_type=kind)


def _error(message: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"error": message}, status_code=status, headers=headers)


class _Held:
    """Bytes that a body holds of the budget."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.count = 0

    def change_to(self, count: int) -> None:
        """Takes what is more now, or gives back what is less; ``RefusedError`` where there is not as much."""
        if count > self.count:
            self._budget.take(count - self.count)
        else:
            self._budget.give_back(self.count - count)
        self.count = count


async def _receive_body(request: Request, limit: int, held: _Held) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        if held.count + len(part) > limit:
            raise _too_large(limit)
        held.change_to(held.count + len(part))
        if not message.get("more_body", False):
            return b"".join([*parts, part]) if parts else part
        parts.append(part)


def _too_large(limit: int) -> RefusedError:
    return RefusedError(f"the body has more than {limit} bytes; raise --max-body-mb", reason="too_large")


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Awaits ``work``, and cancels it when the client hangs up.

    Raises:
        ClientGoneError: it did.
    """
    task, gone = asyncio.current_task(), False

    def hang_up(_: object) -> None:
        nonlocal gone
        gone = True
        if task is not None:
            task.cancel()

    listening = asyncio.ensure_future(request.receive())  # after a body there is only the end of the connection
    listening.add_done_callback(hang_up)
    try:
        return await work
    except asyncio.CancelledError:
        if not gone or task is None or task.uncancel() > 0:
            raise
        raise ClientGoneError from None
    finally:
        listening.remove_done_callback(hang_up)
        listening.cancel()

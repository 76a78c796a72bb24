"""A model of a server that runs somewhere, asked by ``tritonclient`` over HTTP or gRPC: PAME's, Triton's, any other."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np

from artifacts import Answers, MissingExtraError, PameError, RefusedError, UnreachableError, UsageError
from runtime.loadtest.client import SlowRuns
from runtime.oip.datatypes import BYTES, NUMPY_NAMES
from runtime.oip.failures import error_told_by

T = TypeVar("T")
_ADDED = (("pame_exit_index", "pame_confidence"), ("exit_index", "confidence"))  # to the network's outputs, by bundles
_SCHEMES = {"http": ("http", False), "https": ("http", True), "grpc": ("grpc", False), "grpcs": ("grpc", True)}
_PATIENCE_S = 10.0  # for what is asked before the load
_CONNECTIONS = 4096
_NOTHING_THERE = ("failed to connect", "errors resolving", "DNS resolution")  # gRPC tells by words alone
_LOST = ("Socket closed", "reset by peer", "recvmsg", "GOAWAY", "Broken pipe", "Cancelling all calls")


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """Where a server is.

    Attributes:
        text: as it was given.
        protocol: ``http`` or ``grpc``.
        secure: by TLS.
        place: host and port, and a prefix of paths for HTTP.
    """

    text: str
    protocol: str
    secure: bool
    place: str


def parse_url(text: str) -> ServerUrl:
    """Returns the server that ``--url`` names; ``UsageError`` where it names none."""
    expected = "expected http://HOST:PORT, https://, grpc:// or grpcs://"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"--url {text}: {error}; {expected}") from error
    if parts.scheme not in _SCHEMES or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise UsageError(f"--url {text}: {expected}")
    protocol, secure = _SCHEMES[parts.scheme]
    if port is None:
        raise UsageError(f"--url {text}: it has no port; {expected}")
    if protocol == "grpc" and parts.path.strip("/"):
        raise UsageError(f"--url {text}: gRPC has no paths; {expected}")
    return ServerUrl(text, protocol, secure, parts.netloc + parts.path.rstrip("/"))


@dataclass(frozen=True, slots=True)
class RemoteTensor:
    """A tensor of a remote model: its name, the protocol's datatype, and the shape of a row, -1 for open axes."""

    name: str
    datatype: str
    row_shape: tuple[int, ...]

    def check(self, array: np.ndarray) -> None:
        """Raises ``UsageError`` where an array (N, ...) holds no rows of this tensor."""
        expected = NUMPY_NAMES.get(self.datatype)
        same = len(array.shape) == 1 + len(self.row_shape) and all(
            wanted in (-1, found) for wanted, found in zip(self.row_shape, array.shape[1:], strict=True)
        )
        if not same or (array.dtype.name != expected and not (self.datatype == BYTES and array.dtype == object)):
            raise UsageError(
                f"input '{self.name}' of the served model takes rows of {self.datatype} {list(self.row_shape)}; the "
                f"data has {array.dtype.name} {list(array.shape[1:])}. Name data, or a run, that fits this model"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteModel:
    """What a server says of a model.

    Attributes:
        name: of the model.
        platform: what runs it there.
        inputs: all of them.
        outputs: the network's own, without what a bundle adds.
        exit_index: the output that says where a row left; ``None``: there is none.
    """

    name: str
    platform: str
    inputs: tuple[RemoteTensor, ...]
    outputs: tuple[RemoteTensor, ...]
    exit_index: str | None

    def with_outputs(self, names: Sequence[str]) -> RemoteModel:
        """Returns the model with these outputs alone, all where none is named; ``UsageError`` where it lacks one."""
        found = {tensor.name: tensor for tensor in self.outputs}
        if missing := [name for name in names if name not in found]:
            raise UsageError(
                f"model '{self.name}' has no output '{missing[0]}', which the run has; it has {', '.join(found)}. "
                "Name the model's own run with --run DIR"
            )
        return replace(self, outputs=tuple(found[name] for name in names)) if names else self


def read_metadata(metadata: Mapping[str, Any]) -> RemoteModel:
    """Returns the model that metadata of the protocol describes.

    Raises:
        PameError: it takes no rows: the first axis of a tensor is none of rows.
    """
    name = str(metadata["name"])
    outputs = [_read_tensor(name, stated) for stated in metadata["outputs"]]
    names = [tensor.name for tensor in outputs]
    added = next((pair for pair in _ADDED if set(pair) <= set(names)), ())
    return RemoteModel(
        name=name, platform=str(metadata.get("platform", "")),
        inputs=tuple(_read_tensor(name, stated) for stated in metadata["inputs"]),
        outputs=tuple(tensor for tensor in outputs if tensor.name not in added),
        exit_index=added[0] if added else None,
    )  # fmt: skip


def _read_tensor(model: str, stated: Mapping[str, Any]) -> RemoteTensor:
    shape = [int(size) for size in stated["shape"]]
    if not shape or shape[0] not in (-1, 1):
        raise PameError(
            f"model '{model}' takes no rows: tensor '{stated['name']}' has the shape {shape}, and its first axis is "
            "not -1. The load test sends one row a request"
        )
    return RemoteTensor(str(stated["name"]), str(stated["datatype"]), tuple(shape[1:]))


class WireServer:
    """A server over the network, for as long as the stack is open that it was opened on.

    Attributes:
        url: where it is.
    """

    def __init__(self, url: ServerUrl, client: Any, library: Any, headers: Mapping[str, str]) -> None:
        self.url = url
        self._client = client
        self._library = library
        self._headers = dict(headers)

    @classmethod
    async def open(cls, stack: AsyncExitStack, url: ServerUrl, *, token: str | None = None) -> WireServer:
        """Connects, and closes the connections with the stack.

        Raises:
            MissingExtraError: tritonclient is not installed for this protocol.
            UnreachableError: nothing answers there, or nothing that speaks the protocol.
        """
        try:
            library = importlib.import_module(f"tritonclient.{url.protocol}.aio")
        except ModuleNotFoundError as error:
            raise MissingExtraError(f"tritonclient[{url.protocol}]", "loadtest") from error
        limits = {"conn_limit": _CONNECTIONS} if url.protocol == "http" else {}
        client = library.InferenceServerClient(url.place, ssl=url.secure, **limits)
        await stack.enter_async_context(client)
        found = cls(url, client, library, {} if token is None else {"authorization": f"Bearer {token}"})
        if not await found._ask(client.is_server_live(headers=found._headers)):
            raise UnreachableError(f"no server of the Open Inference Protocol is live at {url.text}", connected=True)
        return found

    async def find_model(self, name: str | None) -> RemoteModel:
        """Returns a model that is ready.

        Args:
            name: of the model; ``None``: the only one.

        Raises:
            RefusedError: there is no such model, or it is not ready.
            UsageError: there are several, and none is named.
            UnreachableError: the server does not answer.
        """
        if name is None:
            names = await self._names()
            if len(names) != 1:
                raise UsageError(f"{self.url.text} serves {_listed(names)}: name one with --model NAME")
            name = names[0]
        options: dict[str, Any] = {} if self.url.protocol == "http" else {"as_json": True}
        if not await self._ask(self._client.is_model_ready(name, headers=self._headers)):
            names = await self._names()
            if name in names:
                raise RefusedError(f"model '{name}' at {self.url.text} is not ready; wait for it", reason="loading")
            raise RefusedError(
                f"there is no model '{name}' at {self.url.text}; it serves {_listed(names)}", reason="not_found"
            )
        metadata = await self._ask(self._client.get_model_metadata(name, headers=self._headers, **options))
        return read_metadata(metadata)

    def load(self, model: RemoteModel, queries: Mapping[str, np.ndarray]) -> WireTarget:
        """Returns a model as what a load test loads.

        Args:
            model: from ``find_model``.
            queries: input -> (N, ...) rows.

        Raises:
            UsageError: the rows do not fit the model.
        """
        if set(queries) != {tensor.name for tensor in model.inputs}:
            wanted = ", ".join(tensor.name for tensor in model.inputs)
            raise UsageError(f"the model takes {wanted}; the data has {', '.join(sorted(queries)) or 'nothing'}")
        for tensor in model.inputs:
            tensor.check(queries[tensor.name])
        prepared = []
        for row in range(len(next(iter(queries.values())))):
            inputs = []
            for tensor in model.inputs:
                values = queries[tensor.name][row : row + 1]
                stated = self._library.InferInput(tensor.name, list(values.shape), tensor.datatype)
                stated.set_data_from_numpy(values)
                inputs.append(stated)
            prepared.append(inputs)
        return WireTarget(self, model, prepared)

    async def infer(self, model: RemoteModel, inputs: Sequence[Any]) -> Any:
        """Returns the client's result of a request; raises as a ``Target``."""
        try:
            return await self._client.infer(model.name, inputs, headers=self._headers)
        except Exception as error:
            raise self._translate(error) from error

    async def reload(self, model: str) -> None:
        """Lets the server load a model again; raises as a ``Target``, also where that is not allowed."""
        try:
            await self._client.load_model(model, headers=self._headers)
        except Exception as error:
            raise self._translate(error) from error

    async def _names(self) -> list[str]:
        options: dict[str, Any] = {} if self.url.protocol == "http" else {"as_json": True}
        found = await self._ask(self._client.get_model_repository_index(headers=self._headers, **options))
        return sorted(entry["name"] for entry in (found if isinstance(found, list) else found.get("models", [])))

    async def _ask(self, call: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await call
        except TimeoutError as error:
            message = f"{self.url.text} does not answer within {_PATIENCE_S:g} s"
            raise UnreachableError(message, connected=True) from error
        except Exception as error:
            raise self._translate(error) from error

    def _translate(self, error: Exception) -> Exception:
        """Returns an error of ours for one of the client; others as they are."""
        from tritonclient.utils import InferenceServerException

        if isinstance(error, InferenceServerException):
            code, message = str(error.status()).rpartition(".")[2], error.message()
            if code == "UNAVAILABLE" and any(words in message for words in _NOTHING_THERE):
                return UnreachableError(f"nothing answers at {self.url.text}: {message}", connected=False)
            if code == "UNAVAILABLE" and any(words in message for words in _LOST):
                return UnreachableError(f"the connection to {self.url.text} broke: {message}", connected=True)
            return error_told_by(code, message)
        if self.url.protocol == "http":
            import aiohttp

            if isinstance(error, aiohttp.ClientConnectorError):
                return UnreachableError(f"nothing answers at {self.url.text}: {error.os_error}", connected=False)
            if isinstance(error, (aiohttp.ClientError, OSError)):
                said = str(error) or type(error).__name__
                return UnreachableError(f"the connection to {self.url.text} broke: {said}", connected=True)
        if isinstance(error, (ValueError, LookupError, TypeError, AttributeError)):  # of who reads the answer
            message = (
                f"what {self.url.text} answers is not of the Open Inference Protocol: {type(error).__name__}: {error}"
            )
            return UnreachableError(message, connected=True)
        return error


class WireTarget:
    """A remote model under load: a ``Target``, whose engine runs are not known."""

    def __init__(self, server: WireServer, model: RemoteModel, queries: Sequence[Sequence[Any]]) -> None:
        self._server = server
        self._model = model
        self._queries = queries

    async def answer(self, query: int) -> tuple[Answers, int]:
        """Returns the answers to a query, and where it left: 0 where the server does not say."""
        found = await self._server.infer(self._model, self._queries[query])
        answers = [found.as_numpy(tensor.name) for tensor in self._model.outputs]
        exit_name = self._model.exit_index
        return answers, 0 if exit_name is None else int(found.as_numpy(exit_name).reshape(-1)[0])

    def slow_runs(self) -> SlowRuns:
        """Returns none."""
        return SlowRuns()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "no model"

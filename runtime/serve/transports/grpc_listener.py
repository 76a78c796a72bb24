"""``GrpcListener``: the gRPC services behind an address, with limits and TLS."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from artifacts import MissingExtraError, PameError
from runtime.serve.options import Address, Security
from runtime.serve.service import InferenceService
from runtime.serve.transports.grpc_service import GrpcHealth, GrpcService

_REFUSING_S = 2.0
_LOOK_S = 0.1
_log = logging.getLogger("pame.serve")


class _ByName:
    """Registers services at a server whose methods are then found by their names.

    ``grpc.aio`` keeps a task for every method that is registered by itself, and waits for all of them anew with every
    call: with the 22 of ours that is a fifth of what a call costs.
    """

    def __init__(self, server: Any) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, _service: str, _handlers: Any) -> None:
        """Leaves it at the generic handlers, which have the same methods."""


class GrpcListener:
    """The gRPC services of a server; made and used in its event loop.

    Attributes:
        address: where they are, with the port that was given.

    Raises:
        MissingExtraError: grpc or tritonclient is not installed.
        PameError: the address is taken, or certificate and key cannot be read.
    """

    def __init__(self, service: InferenceService, address: Address) -> None:
        try:
            import grpc
            from grpc import aio
            from grpc_health.v1 import health_pb2, health_pb2_grpc
            from tritonclient.grpc import service_pb2, service_pb2_grpc
        except ModuleNotFoundError as error:
            raise MissingExtraError("tritonclient[grpc]", "serve") from error
        self._service = service
        limits = service.options.limits
        self._server = aio.server(
            options=(
                ("grpc.max_receive_message_length", limits.body),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", int(limits.header_kb * 1024)),
                ("grpc.so_reuseport", 0),
            ),
            maximum_concurrent_rpcs=limits.connections,
        )
        methods = _ByName(self._server)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            GrpcService(service, service_pb2, grpc.StatusCode), methods
        )
        health_pb2_grpc.add_HealthServicer_to_server(GrpcHealth(service, health_pb2, grpc.StatusCode), methods)
        self.address = Address(address.host, self._add_port(address, service.options.security, grpc))

    def _add_port(self, address: Address, security: Security, grpc: Any) -> int:
        try:
            if security.certificate is None or security.key is None:
                port: int = self._server.add_insecure_port(str(address))
            else:
                pair = (security.key.read_bytes(), security.certificate.read_bytes())
                port = self._server.add_secure_port(str(address), grpc.ssl_server_credentials([pair]))
        except OSError as error:
            raise PameError(f"TLS is not possible with {security.certificate}, {security.key}: {error}") from error
        except RuntimeError as error:
            raise PameError(f"cannot listen at {address}: {error}; choose another HOST:PORT") from error
        return port

    async def start(self) -> None:
        """Listens."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Refuses calls in words while more of them come, for a while; then takes none, and finishes those under way.

        gRPC itself cancels what waits in its queue, or reaches it, when it stops.
        """
        loop, seen = asyncio.get_running_loop(), -1
        until = loop.time() + _REFUSING_S
        while (now := self._service.ended_requests) != seen and loop.time() < until:
            seen = now
            await asyncio.sleep(_LOOK_S)
        await self._server.stop(grace_s)

"""``add_servicer``: the protocol's gRPC service, as the processes of Ray Serve register it.

Ray passes the messages of a call between proxy and replica by pickle, which finds a class by the module that it names;
those of ``tritonclient`` name ``grpc_service_pb2``, a module that is only there under another name. Ray's proxies
import this module, and so do the replicas.
"""

from __future__ import annotations

import sys
from typing import Any

from artifacts import MissingExtraError


def name_messages() -> Any:
    """Lets pickle find the messages; returns their module, ``tritonclient.grpc.service_pb2``.

    Raises:
        MissingExtraError: tritonclient or grpc is not installed.
    """
    try:
        from tritonclient.grpc import model_config_pb2, service_pb2
    except ModuleNotFoundError as error:
        raise MissingExtraError("tritonclient[grpc]", "serve") from error
    sys.modules.setdefault("grpc_service_pb2", service_pb2)
    sys.modules.setdefault("model_config_pb2", model_config_pb2)
    return service_pb2


def add_servicer(servicer: object, server: object) -> None:
    """Registers the service's calls at a server."""
    name_messages()
    from tritonclient.grpc.service_pb2_grpc import add_GRPCInferenceServiceServicer_to_server

    add_GRPCInferenceServiceServicer_to_server(servicer, server)

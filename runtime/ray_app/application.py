"""``build``: bundles as an application of Ray Serve; how many replicas answer, and how much may wait for them.

A replica is a process with a host of its own: its scheduler shares stages among the requests that it has, so Ray's own
batching is not used, and a replica is given many requests at once. What Ray keeps back beyond that waits without being
seen by a scheduler; so the limits here are in requests, and those of the host in rows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artifacts import MissingExtraError, UsageError
from runtime.hosting.options import HostOptions
from runtime.serve.options import BundleSource, Limits, Security, ServeOptions, check_name, parse_bundle

_SERVICER = "runtime.ray_app.servicer.add_servicer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """How an application grows, and what Ray holds back.

    Attributes:
        replicas: how many there are; with ``max_replicas``, at least.
        max_replicas: as many as the load demands up to this; ``None``: always ``replicas``.
        target_ongoing_requests: of a replica; Ray adds replicas above it. ``None``: half of ``max_ongoing_requests``.
        max_ongoing_requests: that a replica is given at once; eight of its largest batches, for requests of one row,
            let its scheduler choose.
        max_queued_requests: that wait at each of Ray's proxies while all replicas have as many; more are refused: 503,
            gRPC's RESOURCE_EXHAUSTED.
        cpus, gpus: that a replica reserves.
        shutdown_s: for how long a replica that goes finishes what it has.

    Raises:
        UsageError: a number is out of range.
    """

    replicas: int = 1
    max_replicas: int | None = None
    target_ongoing_requests: float | None = None
    max_ongoing_requests: int = 256
    max_queued_requests: int = 1024
    cpus: float = 1.0
    gpus: float = 0.0
    shutdown_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("replicas", "max_ongoing_requests", "max_queued_requests"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: expected a number from 1")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise UsageError(f"max_replicas={self.max_replicas} is less than replicas={self.replicas}")
        target = self.target_ongoing_requests
        if target is not None and not 0 < target <= self.max_ongoing_requests:
            raise UsageError(f"target_ongoing_requests={target}: expected up to {self.max_ongoing_requests}")
        for name in ("cpus", "gpus", "shutdown_s"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise UsageError(f"{name}={value}: expected a number from 0")

    def options(self) -> dict[str, Any]:
        """Returns the options of a deployment, as Ray Serve names them."""
        found: dict[str, Any] = {
            "max_ongoing_requests": self.max_ongoing_requests,
            "max_queued_requests": self.max_queued_requests,
            "graceful_shutdown_timeout_s": self.shutdown_s,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
        }
        if self.max_replicas is None:
            return {**found, "num_replicas": self.replicas}
        found["autoscaling_config"] = {
            "min_replicas": self.replicas,
            "initial_replicas": self.replicas,
            "max_replicas": self.max_replicas,
            "target_ongoing_requests": self.target_ongoing_requests or self.max_ongoing_requests / 2,
        }
        return found


def build(
    bundles: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    *,
    scaling: Scaling | None = None,
    host: HostOptions | None = None,
    threads: int | None = None,
    limits: Limits | None = None,
    security: Security | None = None,
) -> Any:
    """Returns an application for ``serve.run``: the calls of ``runtime.serve``, answered by replicas.

    Args:
        bundles: a folder, or name of the model -> folder; as every node that runs a replica sees it.
        scaling: replicas and queues.
        host: options of every host.
        threads: per engine; ``None``: as planned.
        limits: of what clients may send.
        security: token and signature. TLS is Ray's; models are not loaded, and memory is not shared, by calls that
            reach one replica of several.

    Raises:
        MissingExtraError: Ray Serve is not installed.
        UsageError: an option is out of range, or not possible here.
    """
    security = security or Security()
    if security.load_folder is not None or security.shared_memory:
        raise UsageError(
            "a call that loads a model or registers memory reaches one replica of several: leave load_folder and "
            "shared_memory out; to serve other bundles, run another application"
        )
    if security.certificate is not None:
        raise UsageError("TLS of Ray Serve is set where Ray is started: leave certificate and key out")
    options = ServeOptions(
        bundles=_sources_of(bundles), metrics=None, host=host or HostOptions(), threads=threads,
        limits=limits or Limits(), security=security,
    )  # fmt: skip
    try:
        from ray import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError("ray[serve]", "ray") from error
    from runtime.ray_app.replica import Replica

    deployment: Any = serve.deployment(serve.ingress()(Replica))
    return deployment.options(name="pame", **(scaling or Scaling()).options()).bind(options)


def start(*, http_host: str = "127.0.0.1", http_port: int = 8000, grpc_port: int | None = None, **options: Any) -> None:
    """Starts Ray Serve's proxies on this cluster, so that they know the protocol's calls over gRPC.

    Args:
        http_host: at which HTTP is answered.
        http_port: likewise.
        grpc_port: where gRPC is answered; ``None``: not at all.
        options: others of ``ray.serve.start``.

    Raises:
        MissingExtraError: Ray Serve is not installed.
    """
    try:
        from ray import serve
        from ray.serve.config import HTTPOptions, gRPCOptions
    except ModuleNotFoundError as error:
        raise MissingExtraError("ray[serve]", "ray") from error
    grpc = None if grpc_port is None else gRPCOptions(port=grpc_port, grpc_servicer_functions=[_SERVICER])
    serve.start(http_options=HTTPOptions(host=http_host, port=http_port), grpc_options=grpc, **options)


def _sources_of(
    bundles: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
) -> tuple[BundleSource, ...]:
    if isinstance(bundles, Mapping):
        return tuple(BundleSource(check_name(name), Path(folder).resolve()) for name, folder in bundles.items())
    source = parse_bundle(os.fspath(bundles))
    return (replace(source, folder=source.folder.resolve()),)

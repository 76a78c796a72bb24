"""``python -m runtime.serve``: the command line of the server."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts import UsageError, find_run
from artifacts.console import add_common_arguments, run_command
from runtime.hosting.options import HostOptions
from runtime.monitor.options import ON_DRIFT
from runtime.serve.logs import log_json
from runtime.serve.options import (
    OVERLOAD_STATUSES,
    BundleSource,
    Limits,
    Security,
    ServeOptions,
    check_name,
    parse_address,
    parse_bundle,
    read_token,
)
from runtime.serve.server import run_server

_DEFAULT = ServeOptions(bundles=(BundleSource("default", Path()),))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runtime.serve",
        description="Serve bundles by the Open Inference Protocol, over HTTP and gRPC.",
    )
    add_common_arguments(parser)
    parser.add_argument(
        "--bundle", action="append", default=[], metavar="[NAME=]DIR",
        help="a bundle to serve, once for each (default: that of the run, under the run's name)",
    )  # fmt: skip
    for name in ("http", "grpc", "metrics"):
        address = getattr(_DEFAULT, name)
        parser.add_argument(
            f"--{name}", default=str(address), metavar="HOST:PORT", help="or off (default: %(default)s)"
        )
    _add_host_flags(parser)
    _add_lifecycle_flags(parser)
    _add_security_flags(parser)
    limits = parser.add_argument_group("limits")
    for field in Limits.__slots__:
        value = getattr(_DEFAULT.limits, field)
        name = field.replace("_", "-")
        flag = f"--{name}" if field == "read_timeout_s" else f"--max-{name}"
        limits.add_argument(flag, type=type(value), default=value, dest=field, help="default: %(default)s")
    return parser


def _add_host_flags(parser: argparse.ArgumentParser) -> None:
    host = HostOptions()
    group = parser.add_argument_group("scheduling")
    group.add_argument(
        "--policy", default=host.policy, metavar="auto|full|chain|pooled:MARGIN", help="default: %(default)s"
    )
    group.add_argument("--slo-ms", type=float, help="requests are due so long after they came (default: 10 batches)")
    group.add_argument("--max-waiting-rows", type=int, metavar="N", help="default: four of the largest batches")
    group.add_argument("--priorities", type=int, default=host.priorities, metavar="N", help="default: %(default)s")
    group.add_argument("--refuse-late", action="store_true", help="refuse what would miss its deadline")
    group.add_argument(
        "--max-engine-faults", type=int, default=host.max_engine_faults, metavar="N", help="default: %(default)s"
    )
    group.add_argument("--threads", type=int, metavar="N", help="per engine (default: as planned)")
    group.add_argument("--device", type=int, default=0, metavar="N", help="ordinal of the GPU (default: %(default)s)")
    group.add_argument("--on-drift", choices=ON_DRIFT, default=host.on_drift, help="default: %(default)s")
    group.add_argument(
        "--shadow-fraction", type=float, default=host.shadow_fraction, metavar="SHARE",
        help="of the rows, carried on to the end to see whether it answers otherwise (default: %(default)s)",
    )  # fmt: skip
    group.add_argument("--shadow-log", type=Path, metavar="DIR", help="keep these rows there, for planner recalibrate")
    group.add_argument(
        "--overload-status", type=int, choices=OVERLOAD_STATUSES, default=OVERLOAD_STATUSES[0],
        help="of HTTP where the queue is full (default: %(default)s)",
    )  # fmt: skip


def _add_lifecycle_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("start and end")
    group.add_argument(
        "--drain-delay", type=float, default=_DEFAULT.drain_delay_s, metavar="SECONDS",
        help="after SIGTERM, answer for so long while not ready (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--drain-timeout", type=float, default=_DEFAULT.drain_timeout_s, metavar="SECONDS",
        help="then finish for so long (default: %(default)s)",
    )  # fmt: skip
    group.add_argument(
        "--watch", type=float, nargs="?", const=2.0, metavar="SECONDS",
        help="reload a bundle when another lies in its folder; look as often (default: 2)",
    )  # fmt: skip
    group.add_argument("--json-logs", action="store_true", help="log as JSON, one object a line")
    group.add_argument("--triton-metrics", action="store_true", help="export metrics by Triton's names too")
    group.add_argument(
        "--otlp", nargs="?", const="", metavar="ENDPOINT",
        help="send a span of each request to this collector of OpenTelemetry, by OTLP over HTTP, e.g. "
        "http://localhost:4318 (without ENDPOINT: as its environment variables say)",
    )  # fmt: skip


def _add_security_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("security")
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain, PEM")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its key, PEM")
    group.add_argument("--token-file", type=Path, metavar="FILE", help="holds the token that clients must send")
    group.add_argument(
        "--require-signature",
        type=Path,
        metavar="KEY",
        help="public key, or certificates: open bundles signed by it alone",
    )
    group.add_argument(
        "--shared-memory", action="store_true", help="let clients pass tensors in POSIX shared memory of this machine"
    )
    group.add_argument(
        "--allow-load", type=Path, metavar="DIR", help="let clients load and unload the models in this folder"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(serve_bundles, make_parser().parse_args(argv))


def serve_bundles(arguments: argparse.Namespace) -> dict[str, Any]:
    """Serves until a signal comes; returns the result for ``--json``."""
    options = read_flags(arguments)
    if arguments.json_logs:
        log_json()
    return run_server(options)


def read_flags(arguments: argparse.Namespace) -> ServeOptions:
    """Returns the options that the flags say.

    Raises:
        UsageError: one of them is out of range, or they contradict each other.
    """
    bundles = [parse_bundle(text) for text in arguments.bundle]
    if arguments.run is not None or (not bundles and arguments.allow_load is None):
        run = find_run(arguments.run)
        bundles.insert(0, BundleSource(check_name(run.root.resolve().name), run.bundle))
    if arguments.allow_load is not None and not arguments.allow_load.is_dir():
        raise UsageError(f"--allow-load {arguments.allow_load}: there is no such folder")
    host = HostOptions(
        policy=arguments.policy, slo_ms=arguments.slo_ms, max_waiting_rows=arguments.max_waiting_rows,
        priorities=arguments.priorities, refuse_late=arguments.refuse_late,
        max_engine_faults=arguments.max_engine_faults, drain_timeout_s=arguments.drain_timeout,
        on_drift=arguments.on_drift, shadow_fraction=arguments.shadow_fraction, shadow_log=arguments.shadow_log,
    )  # fmt: skip
    return ServeOptions(
        bundles=tuple(bundles), http=parse_address(arguments.http), grpc=parse_address(arguments.grpc),
        metrics=parse_address(arguments.metrics), host=host, threads=arguments.threads, device=arguments.device,
        drain_delay_s=arguments.drain_delay, drain_timeout_s=arguments.drain_timeout,
        overload_status=arguments.overload_status, watch_s=arguments.watch, triton_metrics=arguments.triton_metrics,
        otlp=arguments.otlp,
        limits=Limits(**{name: getattr(arguments, name) for name in Limits.__slots__}),
        security=Security(
            certificate=arguments.tls_cert, key=arguments.tls_key, load_folder=arguments.allow_load,
            shared_memory=arguments.shared_memory, signer=arguments.require_signature,
            token=None if arguments.token_file is None else read_token(arguments.token_file),
        ),
    )  # fmt: skip

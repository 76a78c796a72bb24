"""Time that Ray Serve adds to a request at the median: one replica against ``python -m runtime.serve``.

    python -m benchmarks.ray_latency --bundle runs/resnet/bundle --proxy haproxy --json ray_latency.json

Both run in processes of their own and serve the same bundle; one client asks them in turns, one request of one row
after the other, over HTTP (binary) and gRPC. A round is so many requests to each; the figure is the median over the
rounds of the difference of their medians. ``--proxy haproxy`` is Ray's way for low latencies (HAProxy in front,
requests straight to the replicas); ``default`` is its proxy in Python.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import BUNDLE_JSON, BundleSpec, environment_fingerprint, read_json

_HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
}
_PATIENCE = {  # on a busy machine, proxies start slowly
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
}
NAME = "net"


@contextmanager
def plain_server(bundle: Path, ports: dict[str, int]) -> Iterator[None]:
    """Runs ``python -m runtime.serve``."""
    command = [sys.executable, "-m", "runtime.serve", "--bundle", f"{NAME}={bundle}", "--metrics", "off"]
    flags = [f"--{way}=127.0.0.1:{port}" for way, port in ports.items()]
    process = subprocess.Popen([*command, *flags], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@contextmanager
def ray_server(bundle: Path, ports: dict[str, int], proxy: str) -> Iterator[None]:
    """Runs one replica on a cluster of this machine."""
    os.environ.update(_PATIENCE | (_HAPROXY if proxy == "haproxy" else {}))  # before Ray is imported
    import ray
    from ray import serve

    from runtime.ray_app import Scaling, build, start

    for left in (2, 1, 0):  # a node that does not start within 30 s, on a busy machine, is given up by Ray
        try:
            ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
            break
        except Exception:
            ray.shutdown()
            if not left:
                raise
    try:
        start(http_port=ports["http"], grpc_port=ports["grpc"])
        serve.run(build({NAME: bundle}, scaling=Scaling()))
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


def make_asking(way: str, port: int, spec: BundleSpec) -> Callable[[], Any]:
    """Returns a request of one row of zeros, after the server has answered it once."""
    library = importlib.import_module(f"tritonclient.{way}")
    client = library.InferenceServerClient(f"127.0.0.1:{port}")
    inputs = []
    for tensor in spec.inputs:
        array = np.zeros((1, *tensor.row_shape), tensor.dtype)
        found = library.InferInput(tensor.name, list(array.shape), tensor_datatype(array))
        found.set_data_from_numpy(array)
        inputs.append(found)
    ends = time.monotonic() + 180
    while True:
        try:
            client.infer(NAME, inputs)
        except Exception:  # not there yet; raised if it never is
            if time.monotonic() > ends:
                raise
            time.sleep(0.5)
        else:
            return lambda: client.infer(NAME, inputs)


def tensor_datatype(array: np.ndarray) -> str:
    from tritonclient.utils import np_to_triton_dtype

    found: str = np_to_triton_dtype(array.dtype)
    return found


def measure(
    asking: dict[str, dict[str, Callable[[], Any]]], rounds: int, requests: int
) -> dict[str, dict[str, list[float]]]:
    """Returns, by way and server, the median milliseconds of every round."""
    found: dict[str, dict[str, list[float]]] = {way: {name: [] for name in servers} for way, servers in asking.items()}
    for turn in range(rounds):
        for way, servers in asking.items():
            for name in list(servers)[:: 1 if turn % 2 else -1]:
                taken = []
                for _ in range(requests):
                    started = time.perf_counter()
                    servers[name]()
                    taken.append((time.perf_counter() - started) * 1e3)
                found[way][name].append(statistics.median(taken))
    return found


def describe(found: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """Returns the figures of each way."""
    figures = {}
    for way, servers in found.items():
        added = [ray - plain for ray, plain in zip(servers["ray"], servers["plain"], strict=True)]
        figures[way] = {
            "plain_ms": statistics.median(servers["plain"]), "ray_ms": statistics.median(servers["ray"]),
            "added_ms": statistics.median(added), "added_ms_rounds": sorted(added),
        }  # fmt: skip
    return figures


def free_ports() -> dict[str, int]:
    found = {}
    with ExitStack() as stack:
        for way in ("http", "grpc"):
            bound = stack.enter_context(socket.socket())
            bound.bind(("127.0.0.1", 0))
            found[way] = bound.getsockname()[1]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--proxy", choices=("haproxy", "default"), default="haproxy")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=200, help="of a round, to each (default: %(default)s)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    spec = read_json(arguments.bundle / BUNDLE_JSON, BundleSpec)
    plain, ray = free_ports(), free_ports()
    with plain_server(arguments.bundle, plain), ray_server(arguments.bundle, ray, arguments.proxy):
        asking = {
            way: {name: make_asking(way, ports[way], spec) for name, ports in (("plain", plain), ("ray", ray))}
            for way in ("http", "grpc")
        }
        measure(asking, 1, arguments.requests)  # warm
        figures = describe(measure(asking, arguments.rounds, arguments.requests))
    result = {"proxy": arguments.proxy, "environment": environment_fingerprint(), **figures}
    for way, found in figures.items():
        print(f"{way}: {found['plain_ms']:.2f} ms, Ray {found['ray_ms']:.2f} ms, added {found['added_ms']:.2f} ms")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()

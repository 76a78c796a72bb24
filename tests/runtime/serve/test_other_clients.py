"""Clients that others wrote: kserve's over HTTP and gRPC, and perf_analyzer; both from ``make test-clients``.

They run in processes of their own: kserve brings a second set of the protocol's messages, and a process may register
only one.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Runtime
from runtime.serve.options import ServeOptions
from runtime.serve.server import ModelServer
from tests.runtime.serve.servers import options_for, serving

FOLDER = Path(os.environ.get("PAME_CLIENTS", "/nonexistent")).absolute()
pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not FOLDER.is_dir(), reason="needs the clients that 'make test-clients' fetches"),
]

KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig

http, grpc, rows = sys.argv[1], sys.argv[2], np.array(json.loads(sys.argv[3]), np.float32)

def request(binary):
    tensor = InferInput("image", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows, binary_data=binary)
    return InferRequest("toy", [tensor])

async def ask():
    found = {}
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    for binary in (False, True):
        answer = await rest.infer(f"http://{http}", request(binary), model_name="toy")
        found[f"rest {binary}"] = {output.name: output.as_numpy().tolist() for output in answer.outputs}
    found["health"] = [
        await rest.is_server_live(f"http://{http}"), await rest.is_server_ready(f"http://{http}"),
        await rest.is_model_ready(f"http://{http}", "toy"),
    ]
    async with InferenceGRPCClient(grpc) as client:
        answer = await client.infer(request(True))
        found["grpc"] = {output.name: output.as_numpy().tolist() for output in answer.outputs}
        found["health"] += [
            await client.is_server_live(), await client.is_server_ready(), await client.is_model_ready("toy"),
        ]
    return found

print(json.dumps(asyncio.run(ask())))
"""


@pytest.fixture(scope="module")
def server(toy_run: Any) -> Iterator[ModelServer]:
    with serving(ServeOptions(**options_for(toy=toy_run.bundle))) as found:
        yield found


def test_the_clients_of_kserve(server: ModelServer, toy_run: Any) -> None:
    rows = toy_run.inputs[:3]
    where = [str(server.addresses[way]) for way in ("http", "grpc")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(FOLDER / "bin/python"), "-c", KSERVE, *where, json.dumps(rows.tolist())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    with Runtime.load(toy_run.bundle, threads=1) as runtime:
        expected, name = runtime.run(rows), runtime.spec.outputs[0].name
    assert found.pop("health") == [True] * 6
    assert found.keys() == {"rest False", "rest True", "grpc"}
    for outputs in found.values():
        np.testing.assert_allclose(outputs[name], expected.outputs, rtol=1e-4, atol=1e-5)
        assert outputs["exit_index"] == expected.exit_index.tolist()


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_perf_analyzer_measures_the_server(server: ModelServer, way: str, tmp_path: Path) -> None:
    report = tmp_path / "report.csv"
    command = [
        str(FOLDER / "perf_analyzer"), "-m", "toy", "-i", way, "-u", str(server.addresses[way]), "-f", str(report),
        "--concurrency-range", "2", "--measurement-mode", "count_windows", "--measurement-request-count", "50",
        "--stability-percentage", "999", "--max-trials", "5", "-b", "1",
    ]  # fmt: skip
    environment = {**os.environ, "LD_LIBRARY_PATH": str(FOLDER / "lib")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "Throughput:" in done.stdout
    head, values = report.read_text().splitlines()[:2]
    figures = dict(zip(head.split(","), values.split(","), strict=True))
    assert float(figures["Inferences/Second"]) > 0
    assert server.service.models["toy"].statistics.rows >= 50

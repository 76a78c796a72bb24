"""A bundle inside of a real Triton server, which 'make test-triton' fetches: answers as the runtime's, faults alone."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest

from runtime import Runtime
from runtime.triton_repository.command import main

pytestmark = pytest.mark.triton
ROOT = Path(__file__).parents[3]
_START_S = 120


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def is_ready(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


@pytest.fixture(scope="module")
def server(toy_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Triton server with the toy bundle as its only model."""
    home = Path(os.environ.get("PAME_TRITON", ROOT / ".venv" / "triton")).resolve()
    binary = home / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    if not binary.is_file():
        pytest.skip(f"there is no Triton server at {binary}: make test-triton fetches it")
    folder = tmp_path_factory.mktemp("triton")
    words = [str(toy_run.bundle), str(folder / "models"), "--threads", "1"]
    assert main([*words, "--python-path", str(ROOT), "--python-path", str(home / "packages")]) == 0
    http, grpc = free_port(), free_port()
    environment = {"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": str(home / "nvidia_pytriton.libs")}
    command = [
        str(binary), "--model-repository", str(folder / "models"), "--backend-directory", str(home / "backends"),
        "--http-address", "127.0.0.1", "--http-port", str(http), "--grpc-address", "127.0.0.1", "--grpc-port",
        str(grpc),
        "--allow-metrics", "false",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        deadline = time.monotonic() + _START_S
        while not is_ready(http):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
            time.sleep(0.2)
        yield f"127.0.0.1:{http}"
    finally:
        process.terminate()
        process.wait(30)


def ask(server: str, rows: np.ndarray) -> Any:
    client_module = pytest.importorskip("tritonclient.http", reason="asks Triton: pip install 'tritonclient[http]'")
    client = client_module.InferenceServerClient(server)
    tensor = client_module.InferInput("image", rows.shape, "FP32")
    tensor.set_data_from_numpy(rows)
    try:
        return client.infer("toy", [tensor])
    finally:
        client.close()


def test_triton_answers_as_the_runtime(server: str, toy_run: Any) -> None:
    rows = toy_run.inputs[:40]
    with Runtime.load(toy_run.bundle, threads=1) as runtime:
        expected = runtime.run(rows)
    parts = [slice(start, start + 1 + start % 7) for start in range(0, 33, 2)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda part: ask(server, rows[part]), parts))
    for answer, part in zip(found, parts, strict=True):
        np.testing.assert_allclose(answer.as_numpy("logits"), expected.outputs[part], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(answer.as_numpy("exit_index")[:, 0], expected.exit_index[part])
        np.testing.assert_allclose(answer.as_numpy("confidence")[:, 0], expected.confidence[part], rtol=1e-5)


def test_a_row_with_nan_fails_alone(server: str, toy_run: Any) -> None:
    good, bad = toy_run.inputs[:2], toy_run.inputs[2:3].copy()
    bad[...] = np.nan

    def attempt(rows: np.ndarray) -> str | None:
        try:
            ask(server, rows)
        except Exception as error:  # noqa: BLE001 - whatever the client raises is looked at
            return str(error)
        return None

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(attempt, [bad if index % 3 == 0 else good for index in range(24)]))
    assert [error is not None for error in found] == [index % 3 == 0 for index in range(24)]
    assert "NaN or infinity" in str(found[0])

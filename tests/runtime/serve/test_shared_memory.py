"""Tensors in system shared memory, by tritonclient over both protocols; regions that are not what they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import InputError, RefusedError
from runtime.oip.calls import OutputTensor, SharedRegion
from runtime.serve.options import Security, ServeOptions
from runtime.serve.server import ModelServer
from runtime.serve.shared_memory import SharedMemory
from tests.runtime.serve.servers import options_for, serving

pytest.importorskip("tritonclient.grpc", reason="asks the server: pip install 'pame[serve]'")
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as client_memory

CLIENTS = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@pytest.fixture(scope="module")
def server(toy_run: Any) -> Iterator[ModelServer]:
    options = ServeOptions(**options_for(toy=toy_run.bundle), security=Security(shared_memory=True))
    with serving(options) as found:
        yield found


@pytest.mark.parametrize("protocol", CLIENTS)
def test_inputs_and_outputs(server: ModelServer, toy_run: Any, protocol: str) -> None:
    library = CLIENTS[protocol]
    rows, key = toy_run.inputs[:6], f"pame-test-{os.getpid()}-{protocol}"
    handle = client_memory.create_shared_memory_region("mine", key, rows.nbytes + 200)
    try:
        client_memory.set_shared_memory_region(handle, [rows])
        with library.InferenceServerClient(str(server.addresses[protocol])) as client:
            client.register_system_shared_memory("mine", key, rows.nbytes + 200)
            status = client.get_system_shared_memory_status(**({"as_json": True} if protocol == "grpc" else {}))
            assert "mine" in str(status)
            stated = library.InferInput("image", list(rows.shape), "FP32")
            stated.set_shared_memory("mine", rows.nbytes)
            wanted = library.InferRequestedOutput("logits")
            wanted.set_shared_memory("mine", 200, offset=rows.nbytes)
            client.infer("toy", [stated], outputs=[wanted])
            found = client_memory.get_contents_as_numpy(handle, np.float32, [6, 4], offset=rows.nbytes).copy()
            plain = library.InferInput("image", list(rows.shape), "FP32")
            plain.set_data_from_numpy(rows)
            np.testing.assert_array_equal(found, client.infer("toy", [plain]).as_numpy("logits"))
            wanted.set_shared_memory("mine", 95, offset=rows.nbytes)
            with pytest.raises(InferenceServerException, match="96 bytes, its shared memory 95"):
                client.infer("toy", [stated], outputs=[wanted])
            client.unregister_system_shared_memory("mine")
            with pytest.raises(InferenceServerException, match="Unable to find shared memory region"):
                client.infer("toy", [stated])
            assert "mine" not in str(client.get_system_shared_memory_status())
    finally:
        client_memory.destroy_shared_memory_region(handle)


def test_it_is_off_unless_it_is_allowed(toy_run: Any) -> None:
    with serving(ServeOptions(**options_for(toy=toy_run.bundle))) as server:
        for protocol, library in CLIENTS.items():
            with library.InferenceServerClient(str(server.addresses[protocol])) as client:
                assert "system_shared_memory" not in str(client.get_server_metadata())
                with pytest.raises(InferenceServerException, match="not allowed"):
                    client.register_system_shared_memory("mine", "key", 10)
                client.unregister_system_shared_memory()  # what many clients begin with


@pytest.fixture
def region(tmp_path: Path) -> Iterator[Path]:
    if not Path("/dev/shm").is_dir():  # noqa: S108
        pytest.skip("there is no POSIX shared memory here")
    path = Path(f"/dev/shm/pame-test-{os.getpid()}")  # noqa: S108
    path.write_bytes(bytes(range(100)))
    yield path
    path.unlink(missing_ok=True)


def test_a_region_that_is_shortened_is_an_error_and_not_the_end_of_the_process(region: Path) -> None:
    memory = SharedMemory(allowed=True, limit=1000)
    memory.register("r", f"/{region.name}", 10, 90)
    assert bytes(memory.read(SharedRegion(name="r", offset=5, byte_size=3))) == bytes([15, 16, 17])
    os.truncate(region, 20)
    with pytest.raises(InputError, match="shortened"):
        memory.read(SharedRegion(name="r", offset=0, byte_size=90))
    memory.unregister()
    assert memory.status() == []


def test_what_cannot_be_a_region(region: Path, tmp_path: Path) -> None:
    memory = SharedMemory(allowed=True, limit=50)
    link = region.with_name(region.name + "-link")
    link.symlink_to("/etc/passwd")
    try:
        for key in ("none", "../etc/passwd", "..", "a/b", "", "\0", link.name):
            with pytest.raises(InputError):
                memory.register("r", key, 0, 10)
    finally:
        link.unlink()
    for offset, size in ((0, 101), (100, 1), (0, 0), (-1, 5)):
        with pytest.raises(InputError, match="100 bytes"):
            memory.register("r", region.name, offset, size)
    memory.register("r", region.name, 0, 100)
    with pytest.raises(InputError, match="already"):
        memory.register("r", region.name, 0, 100)
    with pytest.raises(RefusedError, match="more than 50"):
        memory.read(SharedRegion(name="r", offset=0, byte_size=51))
    with pytest.raises(InputError, match="expected 10 from 95"):
        memory.read(SharedRegion(name="r", offset=95, byte_size=10))
    with pytest.raises(RefusedError, match="Unable to find"):
        memory.status("other")
    output = OutputTensor("o", "FP32", np.zeros(2, np.float32), True, SharedRegion(name="r", offset=0, byte_size=50))
    memory.write(output)
    assert output.region is not None
    assert output.region.byte_size == 8
    assert region.read_bytes()[:9] == bytes(8) + b"\x08"
    with pytest.raises(InputError, match="8 bytes"):
        memory.write(replace(output, region=SharedRegion(name="r", offset=0, byte_size=7)))
    memory.unregister()

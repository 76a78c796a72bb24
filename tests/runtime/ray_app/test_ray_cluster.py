"""An application of Ray Serve on a local cluster of one node, asked by tritonclient over HTTP and gRPC."""

from __future__ import annotations

import queue
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason="starts a cluster: pip install 'pame[ray]'")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("default"),  # Ray and what it imports warn of what is not ours
]

import tritonclient.grpc as grpc  # noqa: E402
import tritonclient.http as http  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

from runtime import Runtime  # noqa: E402
from runtime.ray_app import Scaling, build, start  # noqa: E402
from runtime.serve.options import Security  # noqa: E402

TOKEN = "a-token-of-some-length"  # noqa: S105 - keeps nobody out


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    """A cluster with Ray Serve's proxies; starting one takes half a minute, so there is one for all tests."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # on a busy machine, proxies start slowly
    import ray
    from ray import serve

    for attempt in range(3):  # a node that does not start within 30 s, on a busy machine, is given up by Ray
        try:
            ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
            break
        except Exception:
            ray.shutdown()
            if attempt == 2:
                raise
    found = {"http": free_port(), "grpc": free_port()}
    start(http_port=found["http"], grpc_port=found["grpc"])
    yield found
    serve.shutdown()
    ray.shutdown()
    monkeypatch.undo()


@pytest.fixture(scope="module")
def served(ports: dict[str, int], toy_run: Any) -> dict[str, int]:
    from ray import serve

    application = build(
        {"toy": toy_run.bundle}, scaling=Scaling(replicas=2, cpus=0.5), threads=1, security=Security(token=TOKEN)
    )
    serve.run(application)
    return ports


def ask(way: str, ports: dict[str, int], rows: np.ndarray, *, name: str = "toy", token: str = TOKEN) -> Any:
    module = http if way == "http" else grpc
    client = module.InferenceServerClient(f"127.0.0.1:{ports[way]}")
    try:
        tensor = module.InferInput("image", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows)
        return client.infer(name, [tensor], headers={"authorization": f"Bearer {token}"})
    finally:
        client.close()


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_replicas_answer_as_the_runtime_does(served: dict[str, int], toy_run: Any, way: str) -> None:
    rows = toy_run.inputs[:12]
    with Runtime.load(toy_run.bundle, threads=1) as runtime:
        expected = runtime.run(rows)
        name = runtime.spec.outputs[0].name
    for row in range(12):
        found = ask(way, served, rows[row : row + 1])
        np.testing.assert_allclose(found.as_numpy(name)[0], expected.outputs[row], rtol=1e-4, atol=1e-5)
        assert found.as_numpy("exit_index")[0] == expected.exit_index[row]


def test_a_stream_over_grpc_answers_as_the_server_does(served: dict[str, int], toy_run: Any) -> None:
    """Answers in turn, one that fails among them, and rows that come as they leave."""
    rows, replies = toy_run.inputs[:12], queue.Queue()
    with Runtime.load(toy_run.bundle, threads=1) as runtime:
        expected = runtime.run(rows)
    with grpc.InferenceServerClient(f"127.0.0.1:{served['grpc']}") as client:
        headers = {"authorization": f"Bearer {TOKEN}"}
        client.start_stream(lambda result, error: replies.put((result, error)), headers=headers)
        for row in range(4):
            tensor = grpc.InferInput("image", [1, *rows.shape[1:]], "FP32")
            tensor.set_data_from_numpy(rows[row : row + 1])
            client.async_stream_infer("toy" if row != 2 else "nope", [tensor], request_id=str(row))
        found = [replies.get(timeout=60) for _ in range(4)]
        whole = grpc.InferInput("image", list(rows.shape), "FP32")
        whole.set_data_from_numpy(rows)
        client.async_stream_infer("toy", [whole], request_id="rows", parameters={"stream_rows": True})
        exits: dict[int, int] = {}
        while len(exits) < 12:
            part, error = replies.get(timeout=60)
            assert error is None
            exits |= dict(zip(part.as_numpy("rows").tolist(), part.as_numpy("exit_index").tolist(), strict=True))
        client.stop_stream()
    (failed,) = [error for _, error in found if error is not None]
    assert "unknown model" in str(failed)
    answers = {result.get_response().id: result.as_numpy("exit_index")[0] for result, error in found if error is None}
    assert answers == {row: expected.exit_index[int(row)] for row in ("0", "1", "3")}
    assert exits == dict(enumerate(expected.exit_index.tolist()))


def test_a_stream_without_the_token_is_refused(served: dict[str, int]) -> None:
    replies: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(f"127.0.0.1:{served['grpc']}") as client:
        client.start_stream(lambda result, error: replies.put(error))
        error = replies.get(timeout=60)
        client.stop_stream()
    assert "Bearer TOKEN" in str(error)


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_errors_are_those_of_the_server(served: dict[str, int], toy_run: Any, way: str) -> None:
    rows = toy_run.inputs[:1]
    for wrong, code, message in (
        ({"name": "nope"}, "404|NOT_FOUND", "unknown model"),
        ({"token": "another-token-of-a-length"}, "401|UNAUTHENTICATED", "Bearer TOKEN"),
        ({"rows": rows[..., :1]}, "400|INVALID_ARGUMENT", "expected shape"),
        ({"rows": np.full_like(rows, np.nan)}, "400|INVALID_ARGUMENT", "NaN"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            ask(way, served, **{"rows": rows, **wrong})
        assert re.search(code, str(caught.value.status())), wrong
        assert message in caught.value.message()


def test_both_ways_tell_of_the_model_and_of_health(served: dict[str, int]) -> None:
    headers = {"authorization": f"Bearer {TOKEN}"}
    by_http = http.InferenceServerClient(f"127.0.0.1:{served['http']}")
    by_grpc = grpc.InferenceServerClient(f"127.0.0.1:{served['grpc']}")
    assert by_http.is_server_live()
    assert by_grpc.is_server_live()
    assert by_http.is_model_ready("toy")
    assert by_grpc.is_server_ready()
    assert by_grpc.is_model_ready("toy")
    metadata = by_http.get_model_metadata("toy", headers=headers)
    assert metadata == by_grpc.get_model_metadata("toy", headers=headers, as_json=True) | {
        key: metadata[key] for key in ("inputs", "outputs")
    }
    assert by_grpc.get_model_config("toy", headers=headers).config.name == "toy"
    by_http.close()
    by_grpc.close()


def test_ray_refuses_what_would_wait_beyond_its_queue(ports: dict[str, int], toy_run: Any) -> None:
    """One replica that is given one request at a time, and a queue of one: of many at once, some are refused."""
    import asyncio

    import tritonclient.http.aio as aio
    from ray import serve

    scaling = Scaling(max_ongoing_requests=1, max_queued_requests=1, cpus=0.5)
    serve.run(build({"toy": toy_run.bundle}, scaling=scaling, threads=1), name="narrow", route_prefix="/narrow")

    async def infer(client: Any) -> str:
        tensor = aio.InferInput("image", [1, *toy_run.inputs.shape[1:]], "FP32")
        tensor.set_data_from_numpy(toy_run.inputs[:1])
        try:
            await client.infer("toy", [tensor])
        except InferenceServerException as error:
            return str(error.status())
        return "200"

    async def run() -> list[str]:
        async with aio.InferenceServerClient(f"127.0.0.1:{ports['http']}/narrow", conn_limit=64) as client:
            return list(await asyncio.gather(*(infer(client) for _ in range(64))))

    codes = asyncio.run(run())
    serve.delete("narrow")
    assert set(codes) == {"200", "503"}


def test_replicas_come_with_the_load(ports: dict[str, int], toy_run: Any) -> None:
    import asyncio

    import tritonclient.http.aio as aio
    from ray import serve

    scaling = Scaling(max_replicas=2, target_ongoing_requests=1, cpus=0.25)
    application = build({"toy": toy_run.bundle}, scaling=scaling, threads=1)
    serve.run(application, name="growing", route_prefix="/growing")

    def replicas() -> int:
        return sum(serve.status().applications["growing"].deployments["pame"].replica_states.values())

    async def run() -> None:
        async with aio.InferenceServerClient(f"127.0.0.1:{ports['http']}/growing", conn_limit=32) as client:

            async def keep_asking() -> None:
                tensor = aio.InferInput("image", [1, *toy_run.inputs.shape[1:]], "FP32")
                tensor.set_data_from_numpy(toy_run.inputs[:1])
                while replicas_seen[-1] < 2 and time.monotonic() < end:
                    await client.infer("toy", [tensor])

            end, replicas_seen = time.monotonic() + 300, [1]

            async def look() -> None:
                while replicas_seen[-1] < 2 and time.monotonic() < end:
                    await asyncio.sleep(1)
                    replicas_seen.append(await asyncio.to_thread(replicas))

            await asyncio.gather(look(), *(keep_asking() for _ in range(16)))
            assert replicas_seen[-1] == 2

    asyncio.run(run())
    serve.delete("growing")

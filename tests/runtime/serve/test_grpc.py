"""The gRPC server, asked by tritonclient, blocking and asynchronous, and by plain messages."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from artifacts import EngineError
from runtime import Runtime
from runtime.serve.options import Limits, Security, ServeOptions
from runtime.serve.server import ModelServer
from tests.runtime.hosting.host_worlds import Gate
from tests.runtime.serve.servers import call_there, fake_options, options_for, serving, wait_for

tritonclient = pytest.importorskip("tritonclient.grpc", reason="asks the server: pip install 'pame[serve]'")
import grpc  # noqa: E402
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402
from tritonclient.grpc import service_pb2, service_pb2_grpc  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402

TOKEN = "a-token-of-32-characters-or-so.."  # noqa: S105
CODES = grpc.StatusCode


@pytest.fixture(scope="module")
def server(toy_run: Any) -> Iterator[ModelServer]:
    with serving(ServeOptions(**options_for(toy=toy_run.bundle), limits=Limits(body_mb=1))) as found:
        yield found


@pytest.fixture
def client(server: ModelServer) -> Iterator[Any]:
    found = tritonclient.InferenceServerClient(str(server.addresses["grpc"]))
    yield found
    found.close()


@pytest.fixture
def stub(server: ModelServer) -> Iterator[Any]:
    with grpc.insecure_channel(str(server.addresses["grpc"])) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def expected(toy_run: Any) -> Any:
    with Runtime.load(toy_run.bundle, threads=1) as runtime:
        return runtime.run(toy_run.inputs[:20])


def tensor(name: str, rows: np.ndarray) -> Any:
    found = tritonclient.InferInput(name, list(rows.shape), "FP32")
    found.set_data_from_numpy(rows)
    return found


def test_what_the_server_and_its_model_are(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy", "1")
    assert not client.is_model_ready("toy", "2")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata(as_json=True)["name"] == "pame"
    outputs = client.get_model_metadata("toy", as_json=True)["outputs"]
    assert [(output["name"], output["datatype"]) for output in outputs] == [
        ("logits", "FP32"), ("exit_index", "INT64"), ("confidence", "FP32"),
    ]  # fmt: skip
    assert client.get_model_config("toy").config.max_batch_size == 32
    assert client.get_model_repository_index(as_json=True)["models"][0]["state"] == "READY"


def test_answers_and_statistics(client: Any, toy_run: Any, expected: Any) -> None:
    before = client.get_inference_statistics("toy").model_stats[0]
    found = client.infer("toy", [tensor("image", toy_run.inputs[:20])], request_id="7", priority=1, timeout=10_000_000)
    assert found.get_response().id == "7"
    np.testing.assert_array_equal(found.as_numpy("exit_index"), expected.exit_index)
    np.testing.assert_allclose(found.as_numpy("logits"), expected.outputs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.as_numpy("confidence"), expected.confidence, rtol=1e-4)
    after = client.get_inference_statistics("toy").model_stats[0]
    assert after.inference_count == before.inference_count + 20
    assert after.inference_stats.queue.count == before.inference_stats.queue.count + 1


def test_chosen_outputs_and_classification(client: Any, toy_run: Any, expected: Any) -> None:
    wanted = [tritonclient.InferRequestedOutput("logits", class_count=1)]
    found = client.infer("toy", [tensor("image", toy_run.inputs[:20])], outputs=wanted)
    assert len(found.get_response().outputs) == 1
    places = [int(text.split(b":")[1]) for text in found.as_numpy("logits")[:, 0]]
    np.testing.assert_array_equal(places, expected.outputs.argmax(axis=1))


def test_typed_contents(stub: Any, toy_run: Any, expected: Any) -> None:
    request = service_pb2.ModelInferRequest(model_name="toy")
    stated = request.inputs.add(name="image", datatype="FP32", shape=[2, 1, 4, 4])
    stated.contents.fp32_contents.extend(toy_run.inputs[:2].reshape(-1).tolist())
    found = np.frombuffer(stub.ModelInfer(request).raw_output_contents[0], "<f4").reshape(2, 4)
    np.testing.assert_allclose(found, expected.outputs[:2], rtol=1e-4, atol=1e-5)


def wrong(change: Any, toy_run: Any) -> Any:
    request = service_pb2.ModelInferRequest(model_name="toy")
    request.inputs.add(name="image", datatype="FP32", shape=[1, 1, 4, 4])
    request.raw_input_contents.append(toy_run.inputs[:1].tobytes())
    change(request)
    return request


def clear_bytes(request: Any) -> None:
    del request.raw_input_contents[:]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda request: setattr(request, "model_name", "nope"), CODES.NOT_FOUND),
        (lambda request: setattr(request, "model_version", "9"), CODES.NOT_FOUND),
        (lambda request: setattr(request.inputs[0], "name", "z"), CODES.INVALID_ARGUMENT),
        (lambda request: setattr(request.inputs[0], "datatype", "INT32"), CODES.INVALID_ARGUMENT),
        (lambda request: setattr(request.inputs[0], "datatype", "WHAT"), CODES.INVALID_ARGUMENT),
        (lambda request: request.inputs[0].shape.append(2), CODES.INVALID_ARGUMENT),
        (lambda request: request.inputs[0].shape.insert(0, -1), CODES.INVALID_ARGUMENT),
        (lambda request: request.raw_input_contents.append(b"1234"), CODES.INVALID_ARGUMENT),
        (clear_bytes, CODES.INVALID_ARGUMENT),
        (lambda request: request.ClearField("inputs"), CODES.INVALID_ARGUMENT),
        (lambda request: request.outputs.add(name="q"), CODES.INVALID_ARGUMENT),
        (lambda request: setattr(request.parameters["priority"], "int64_param", 9), CODES.INVALID_ARGUMENT),
        (lambda request: setattr(request.parameters["timeout"], "uint64_param", 1), CODES.DEADLINE_EXCEEDED),
        (lambda request: setattr(request.inputs[0].parameters["shared_memory_region"], "string_param", "r"),
         CODES.UNAVAILABLE),
    ],
)  # fmt: skip
def test_wrong_messages(stub: Any, toy_run: Any, change: Any, code: Any) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(wrong(change, toy_run))
    assert refused.value.code() == code
    assert refused.value.details()


def test_a_message_has_a_limit(stub: Any, toy_run: Any) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        stub.ModelInfer(wrong(lambda request: request.raw_input_contents.append(bytes(2 << 20)), toy_run))
    assert refused.value.code() == CODES.RESOURCE_EXHAUSTED


def test_calls_that_are_not_there(stub: Any) -> None:
    assert len(stub.CudaSharedMemoryStatus(service_pb2.CudaSharedMemoryStatusRequest()).regions) == 0
    stub.CudaSharedMemoryUnregister(service_pb2.CudaSharedMemoryUnregisterRequest())
    stub.SystemSharedMemoryUnregister(service_pb2.SystemSharedMemoryUnregisterRequest())
    for call, request, code in (
        (stub.CudaSharedMemoryRegister, service_pb2.CudaSharedMemoryRegisterRequest(name="a"), CODES.UNIMPLEMENTED),
        (stub.TraceSetting, service_pb2.TraceSettingRequest(), CODES.UNIMPLEMENTED),
        (stub.LogSettings, service_pb2.LogSettingsRequest(), CODES.UNIMPLEMENTED),
        (stub.RepositoryModelLoad, service_pb2.RepositoryModelLoadRequest(model_name="toy"), CODES.UNAVAILABLE),
        (stub.RepositoryModelUnload, service_pb2.RepositoryModelUnloadRequest(model_name="toy"), CODES.UNAVAILABLE),
        (stub.ModelMetadata, service_pb2.ModelMetadataRequest(name="nope"), CODES.NOT_FOUND),
        (stub.ModelConfig, service_pb2.ModelConfigRequest(name="nope"), CODES.NOT_FOUND),
        (stub.ModelStatistics, service_pb2.ModelStatisticsRequest(name="nope"), CODES.NOT_FOUND),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call(request)
        assert refused.value.code() == code


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(client: Any, toy_run: Any, expected: Any, algorithm: str) -> None:
    found = client.infer("toy", [tensor("image", toy_run.inputs[:20])], compression_algorithm=algorithm)
    np.testing.assert_allclose(found.as_numpy("logits"), expected.outputs, rtol=1e-4, atol=1e-5)


def test_asynchronous_requests_do_not_mix(server: ModelServer, toy_run: Any, expected: Any) -> None:
    from tritonclient.grpc import aio

    async def run() -> list[Any]:
        async with aio.InferenceServerClient(str(server.addresses["grpc"])) as client:
            rows = [tensor("image", toy_run.inputs[row : row + 1]) for row in range(20)]
            return await asyncio.gather(*(client.infer("toy", [row]) for row in rows))

    found = np.concatenate([result.as_numpy("logits") for result in asyncio.run(run())])
    np.testing.assert_allclose(found, expected.outputs, rtol=1e-4, atol=1e-5)


def test_a_stream_of_requests_with_an_error_among_them(client: Any, toy_run: Any, expected: Any) -> None:
    replies: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: replies.put((result, error)))
    for row in range(5):
        client.async_stream_infer(
            "toy" if row != 3 else "nope", [tensor("image", toy_run.inputs[row : row + 1])], request_id=str(row)
        )
    found = [replies.get(timeout=30) for _ in range(5)]
    client.stop_stream()
    (error,) = [error for _, error in found if error is not None]
    assert "unknown model" in str(error)
    answers = {result.get_response().id: result.as_numpy("logits") for result, error in found if error is None}
    assert sorted(answers) == ["0", "1", "2", "4"]
    for row, logits in answers.items():
        np.testing.assert_allclose(logits[0], expected.outputs[int(row)], rtol=1e-4, atol=1e-5)


def test_rows_come_as_they_leave(fake_net: Any) -> None:
    gate = Gate()
    net = fake_net(thresholds=(0.5,), masked=False)
    compute = net.compute
    net.compute = lambda stage: lambda values: (gate() if stage == 1 else None, compute(stage)(values))[1]
    (x,) = net.batch(np.float32([[0.9, 0], [0.1, 0.3], [0.8, 0]]))
    replies: queue.Queue[Any] = queue.Queue()
    with serving(fake_options(), nets={"fake": net}) as server:
        gate.armed = True  # the last stage waits, the first answers
        with tritonclient.InferenceServerClient(str(server.addresses["grpc"])) as client:
            client.start_stream(lambda result, error: replies.put((result, error)))
            client.async_stream_infer("fake", [tensor("x", x)], parameters={"stream_rows": True})
            first, error = replies.get(timeout=30)
            assert error is None
            gate.open()
            last, error = replies.get(timeout=30)
            assert error is None
            client.stop_stream()
    final = [part.get_response().parameters["triton_final_response"].bool_param for part in (first, last)]
    assert final == [False, True]
    assert (first.as_numpy("rows").tolist(), last.as_numpy("rows").tolist()) == ([0, 2], [1])
    assert (first.as_numpy("exit_index").tolist(), last.as_numpy("exit_index").tolist()) == ([0, 0], [1])
    np.testing.assert_array_equal(first.as_numpy("confidence"), np.float32([0.9, 0.8]))


def test_cancels_and_deadlines_free_their_rows(fake_net: Any) -> None:
    gate = Gate()
    net = fake_net(thresholds=(0.5,), masked=False, hook=gate)
    (x,) = net.batch(np.float32([[0.9, 0]]))
    with (
        serving(fake_options(), nets={"fake": net}) as server,
        ThreadPoolExecutor() as pool,
        tritonclient.InferenceServerClient(str(server.addresses["grpc"])) as client,
    ):
        model = server.service.models["fake"]
        gate.armed = True
        neighbour = pool.submit(client.infer, "fake", [tensor("x", x)])
        assert gate.entered.wait(30)
        with pytest.raises(InferenceServerException, match="DEADLINE_EXCEEDED"):
            client.infer("fake", [tensor("x", x)], client_timeout=0.1)
        call = client.async_infer("fake", [tensor("x", x)], lambda result, error: None)
        wait_for(lambda: model.host.snapshot().scheduling.open_tickets == 2)
        call.cancel()
        wait_for(lambda: model.host.snapshot().scheduling.open_tickets == 1)  # while the engine still runs
        gate.open()
        np.testing.assert_array_equal(neighbour.result().as_numpy("exit_index"), [0])
        wait_for(lambda: sum(model.statistics.failures.values()) == 2)


def test_a_full_queue_and_an_engine_fault(fake_net: Any) -> None:
    gate = Gate()
    net = fake_net(thresholds=(0.5,), masked=False, hook=gate, faults={8: EngineError("out of memory")})
    (x,) = net.batch(np.float32([[0.1, 0]] * 8))
    with (
        serving(fake_options(max_waiting_rows=8), nets={"fake": net}) as server,
        ThreadPoolExecutor() as pool,
        tritonclient.InferenceServerClient(str(server.addresses["grpc"])) as client,
    ):
        gate.armed = True
        first = pool.submit(client.infer, "fake", [tensor("x", x)])
        assert gate.entered.wait(30)
        second = pool.submit(client.infer, "fake", [tensor("x", x)])
        wait_for(lambda: server.service.models["fake"].host.snapshot().scheduling.open_tickets == 2)
        with pytest.raises(InferenceServerException, match="UNAVAILABLE"):
            client.infer("fake", [tensor("x", x)])
        gate.open()
        with pytest.raises(InferenceServerException, match="INTERNAL.*out of memory"):
            first.result()
        assert second.result().as_numpy("exit_index").tolist() == [1] * 8


def test_health_for_kubernetes(fake_net: Any) -> None:
    kinds = health_pb2.HealthCheckResponse
    net = fake_net(thresholds=(0.5,), masked=False)
    options = ServeOptions(**{**options_for(fake=fake_options().bundles[0].folder), "drain_delay_s": 1.0})
    with (
        serving(options, nets={"fake": net}) as server,
        grpc.insecure_channel(str(server.addresses["grpc"])) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService", "fake"):
            assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == kinds.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            health.Check(health_pb2.HealthCheckRequest(service="nope"))
        assert unknown.value.code() == CODES.NOT_FOUND
        watching = health.Watch(health_pb2.HealthCheckRequest())
        assert next(watching).status == kinds.SERVING
        call_there(server, server.stop)
        assert next(watching).status == kinds.NOT_SERVING
        watching.cancel()


def test_a_token_is_asked_for_but_not_by_health(toy_run: Any) -> None:
    options = ServeOptions(**options_for(toy=toy_run.bundle), security=Security(token=TOKEN))
    with serving(options) as server, tritonclient.InferenceServerClient(str(server.addresses["grpc"])) as client:
        assert client.is_server_ready()
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            client.infer("toy", [tensor("image", toy_run.inputs[:1])])
        with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
            client.get_model_config("toy", headers={"authorization": "Bearer wrong"})
        good = {"authorization": f"Bearer {TOKEN}"}
        client.infer("toy", [tensor("image", toy_run.inputs[:1])], headers=good)
        assert client.get_model_config("toy", headers=good).config.name == "toy"

"""The HTTP server, asked by tritonclient, the client that most people have."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime import Runtime
from runtime.serve.options import ServeOptions
from runtime.serve.server import ModelServer
from tests.runtime.serve.servers import ask, options_for, serving

http = pytest.importorskip("tritonclient.http", reason="asks the server: pip install 'tritonclient[http]'")
from tritonclient.utils import InferenceServerException  # noqa: E402

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server(toy_run: Any) -> Iterator[ModelServer]:
    with serving(ServeOptions(**options_for(toy=toy_run.bundle, other=toy_run.bundle))) as found:
        yield found


@pytest.fixture
def client(server: ModelServer) -> Iterator[Any]:
    found = http.InferenceServerClient(str(server.addresses["http"]))
    yield found
    found.close()


@pytest.fixture(scope="module")
def expected(toy_run: Any) -> Any:
    with Runtime.load(toy_run.bundle, threads=1) as runtime:
        return runtime.run(toy_run.inputs[:20])


def image(rows: np.ndarray, **options: Any) -> Any:
    found = http.InferInput("image", list(rows.shape), "FP32")
    found.set_data_from_numpy(rows, **options)
    return found


def test_what_the_server_and_its_models_are(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("toy")
    assert client.is_model_ready("toy", "1")
    assert not client.is_model_ready("toy", "9")
    assert not client.is_model_ready("nope")
    assert client.get_server_metadata()["name"] == "pame"
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("toy") == {
        "name": "toy",
        "versions": ["1"],
        "platform": "pame",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 4, 4]}],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [-1, 4]},
            {"name": "exit_index", "datatype": "INT64", "shape": [-1]},
            {"name": "confidence", "datatype": "FP32", "shape": [-1]},
        ],
    }
    config = client.get_model_config("toy")
    assert config["max_batch_size"] == 32  # four of the largest batches may wait, and a request may be all of them
    assert config["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": [1, 4, 4]}]
    assert {entry["name"]: entry["state"] for entry in client.get_model_repository_index()} == {
        "toy": "READY",
        "other": "READY",
    }


@pytest.mark.parametrize("model", ["toy", "other"])
def test_answers_in_binary(client: Any, toy_run: Any, expected: Any, model: str) -> None:
    found = client.infer(model, [image(toy_run.inputs[:20])], request_id="seven")
    assert found.get_response()["id"] == "seven"
    np.testing.assert_array_equal(found.as_numpy("exit_index"), expected.exit_index)
    np.testing.assert_allclose(found.as_numpy("logits"), expected.outputs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.as_numpy("confidence"), expected.confidence, rtol=1e-4)


def test_answers_in_json_and_only_those_asked_for(client: Any, toy_run: Any, expected: Any) -> None:
    wanted = [http.InferRequestedOutput("logits", binary_data=False)]
    found = client.infer("toy", [image(toy_run.inputs[:20], binary_data=False)], outputs=wanted)
    assert [output["name"] for output in found.get_response()["outputs"]] == ["logits"]
    np.testing.assert_allclose(found.as_numpy("logits"), expected.outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression_both_ways(client: Any, toy_run: Any, expected: Any, algorithm: str) -> None:
    rows = np.concatenate([toy_run.inputs[:20], toy_run.inputs[:12]])
    found = client.infer(
        "toy", [image(rows)], request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )
    np.testing.assert_allclose(found.as_numpy("logits")[:20], expected.outputs, rtol=1e-4, atol=1e-5)


def test_an_answer_is_compressed_where_that_is_worth_it(server: ModelServer, toy_run: Any) -> None:
    for rows, encoding in ((1, None), (32, "gzip")):
        body = request_of(np.resize(toy_run.inputs, (rows, 1, 4, 4)))
        done = ask(server, "POST", "/v2/models/toy/infer", body, {"Accept-Encoding": "br, gzip;q=0.5"})
        assert (done.status, done.headers.get("content-encoding")) == (200, encoding)


def test_classification(client: Any, toy_run: Any, expected: Any) -> None:
    wanted = [http.InferRequestedOutput("logits", class_count=2)]
    found = client.infer("toy", [image(toy_run.inputs[:20])], outputs=wanted).as_numpy("logits")
    places = [[int(text.split(b":")[1]) for text in row] for row in found]
    np.testing.assert_array_equal(places, np.argsort(-expected.outputs, axis=1)[:, :2])
    assert found[0][0] == f"{expected.outputs[0].max():f}:{expected.outputs[0].argmax()}".encode()


def test_timeout_and_priority(client: Any, toy_run: Any) -> None:
    for priority in (1, 2, 3):
        client.infer("toy", [image(toy_run.inputs[:1])], priority=priority, timeout=10_000_000)
    with pytest.raises(InferenceServerException) as late:
        client.infer("toy", [image(toy_run.inputs[:1])], timeout=1)
    assert late.value.status() == "504"
    with pytest.raises(InferenceServerException, match="priority") as unknown:
        client.infer("toy", [image(toy_run.inputs[:1])], priority=4)
    assert unknown.value.status() == "400"


def test_statistics_move(client: Any, toy_run: Any) -> None:
    def now() -> Any:
        return client.get_inference_statistics("other")["model_stats"][0]

    before = now()
    client.infer("other", [image(toy_run.inputs[:3])])
    with pytest.raises(InferenceServerException, match="shape"):
        client.infer("other", [image(toy_run.inputs[:3].reshape(3, 16))])
    after = now()
    assert after["inference_count"] == before["inference_count"] + 3
    assert after["execution_count"] > before["execution_count"]
    for name in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert after["inference_stats"][name]["count"] == before["inference_stats"][name]["count"] + 1
    assert after["inference_stats"]["fail"]["count"] == before["inference_stats"]["fail"]["count"] + 1
    times = {name: found["ns"] for name, found in after["inference_stats"].items()}
    parts = times["queue"] + times["compute_input"] + times["compute_infer"] + times["compute_output"]
    assert parts == pytest.approx(times["success"], rel=0.01)
    assert len(client.get_inference_statistics()["model_stats"]) == 2


def test_many_requests_at_the_same_time_do_not_mix(server: ModelServer, toy_run: Any, expected: Any) -> None:
    aio = pytest.importorskip("tritonclient.http.aio")

    async def run() -> list[Any]:
        async with aio.InferenceServerClient(str(server.addresses["http"])) as client:
            rows = [aio.InferInput("image", [1, 1, 4, 4], "FP32") for _ in range(20)]
            for row, stated in enumerate(rows):
                stated.set_data_from_numpy(toy_run.inputs[row : row + 1])
            return await asyncio.gather(*(client.infer("toy", [stated]) for stated in rows))

    found = np.concatenate([result.as_numpy("logits") for result in asyncio.run(run())])
    np.testing.assert_allclose(found, expected.outputs, rtol=1e-4, atol=1e-5)


def test_the_client_of_the_documents(server: ModelServer) -> None:
    text = (ROOT / "docs" / "serving.md").read_text()
    (block,) = re.findall(r"```\n(import numpy.*?)```", text, flags=re.DOTALL)
    changes = {
        "localhost:8000": str(server.addresses["http"]),
        "28, 28": "4, 4",
        "digits": "toy",
        "25_000": "25_000_000",
    }
    for there, here in changes.items():
        assert there in block
        block = block.replace(there, here)
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102
    assert names["result"].as_numpy("logits").shape == (2, 4)
    names["client"].close()


def request_of(rows: np.ndarray) -> bytes:
    stated = {"name": "image", "datatype": "FP32", "shape": rows.shape, "data": rows.reshape(-1).tolist()}
    return json.dumps({"inputs": [stated]}).encode()


def test_a_request_by_hand(server: ModelServer, toy_run: Any, expected: Any) -> None:
    done = ask(server, "POST", "/v2/models/toy/infer", request_of(toy_run.inputs[:2]))
    assert done.status == 200
    assert done.headers["content-type"] == "application/json"
    logits, exits, _ = done.json["outputs"]
    assert logits["shape"] == [2, 4]
    np.testing.assert_allclose(np.reshape(logits["data"], (2, 4)), expected.outputs[:2], rtol=1e-4, atol=1e-5)
    assert exits["data"] == expected.exit_index[:2].tolist()

"""A server of a bundle whose rows have several lengths, asked over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from runtime import Runtime
from runtime.serve.options import ServeOptions
from runtime.serve.server import ModelServer
from runtime.triton_repository.config import write_config
from tests.export.sequence_graphs import draw_sequences
from tests.runtime.sequence_worlds import make_sequence_run
from tests.runtime.serve.servers import options_for, serving

http = pytest.importorskip("tritonclient.http", reason="asks the server: pip install 'tritonclient[http]'")
import tritonclient.grpc as grpc  # noqa: E402
from tritonclient.utils import InferenceServerException  # noqa: E402


@pytest.fixture(scope="module")
def sequence(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return make_sequence_run(tmp_path_factory.mktemp("sequence"))


@pytest.fixture(scope="module")
def server(sequence: Any) -> Iterator[ModelServer]:
    with serving(ServeOptions(**options_for(encoder=sequence.bundle))) as found:
        yield found


@pytest.mark.parametrize("module", [http, grpc], ids=["http", "grpc"])
def test_requests_of_any_length_are_answered(server: ModelServer, sequence: Any, module: Any) -> None:
    way = "http" if module is http else "grpc"
    client = module.InferenceServerClient(str(server.addresses[way]))
    with Runtime.load(sequence.bundle, threads=1) as runtime:
        for lengths in ([3], [5, 12], [1, 16, 7]):
            rows = draw_sequences(lengths, seed=sum(lengths))
            inputs = []
            for name, array in rows.items():
                inputs.append(module.InferInput(name, list(array.shape), "INT64"))
                inputs[-1].set_data_from_numpy(array)
            found = client.infer("encoder", inputs)
            expected = runtime.run(rows)
            name = runtime.spec.outputs[0].name
            np.testing.assert_allclose(found.as_numpy(name), expected.outputs, rtol=1e-4, atol=1e-5)
            assert found.as_numpy("exit_index").tolist() == expected.exit_index.tolist()
    with pytest.raises(InferenceServerException, match="up to 17 long"):
        rows = draw_sequences([17])
        inputs = [module.InferInput(name, list(array.shape), "INT64") for name, array in rows.items()]
        for tensor, array in zip(inputs, rows.values(), strict=True):
            tensor.set_data_from_numpy(array)
        client.infer("encoder", inputs)
    client.close()


def test_lengths_are_open_in_what_clients_are_told(server: ModelServer, sequence: Any) -> None:
    client = http.InferenceServerClient(str(server.addresses["http"]))
    assert [tensor["shape"] for tensor in client.get_model_metadata("encoder")["inputs"]] == [[-1, -1], [-1, -1]]
    assert [tensor["dims"] for tensor in client.get_model_config("encoder")["input"]] == [[-1], [-1]]
    client.close()
    with Runtime.load(sequence.bundle, threads=1) as runtime:
        assert 'name: "attention_mask", data_type: TYPE_INT64, dims: [-1]' in write_config(
            runtime.spec, name="encoder", threads=None, instances=1
        )

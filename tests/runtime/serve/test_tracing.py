"""Traces: a span per request over both protocols, part of the client's trace, and none where it is not asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from artifacts import UsageError
from engines import HostDevice
from runtime import AsyncRuntime
from runtime.serve.server import ModelServer
from runtime.serve.tracing import Tracing, open_tracing
from tests.runtime.serve.servers import ask, fake_options, serving

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="traces: pip install 'pame[otel]'")
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

grpc = pytest.importorskip("tritonclient.grpc", reason="asks the server: pip install 'pame[serve]'")

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
HEADERS = {"traceparent": f"00-{TRACE:032x}-{PARENT:016x}-01"}


@pytest.fixture
def spans() -> Any:
    return InMemorySpanExporter()


def watch(server: ModelServer, spans: Any) -> None:
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    server.service.tracing = Tracing(provider)


def body_of(net: Any, confidence: list[list[float]]) -> tuple[np.ndarray, bytes]:
    (x,) = net.batch(np.float32(confidence))
    tensor = {"name": "x", "datatype": "FP32", "shape": x.shape, "data": x.tolist()}
    return x, json.dumps({"inputs": [tensor]}).encode()


def test_a_span_of_each_request_is_part_of_the_clients_trace(fake_net: Any, spans: Any) -> None:
    net = fake_net(thresholds=(0.5,), masked=False)
    x, body = body_of(net, [[0.9, 0]] * 2 + [[0.1, 0]])
    host = AsyncRuntime.over(net.spec(), net.engine_sets(), HostDevice())
    with serving(fake_options(), hosts={"fake": host}) as server:
        watch(server, spans)
        assert ask(server, "POST", "/v2/models/fake/infer", body, HEADERS).status == 200
        assert ask(server, "POST", "/v2/models/fake/infer", body).status == 200
        client = grpc.InferenceServerClient(str(server.addresses["grpc"]))
        tensor = grpc.InferInput("x", list(x.shape), "FP32")
        tensor.set_data_from_numpy(x)
        client.infer("fake", [tensor], headers=HEADERS)
        replies: list[Any] = []
        client.start_stream(lambda result, error: replies.append((result, error)), headers=HEADERS)
        client.async_stream_infer("fake", [tensor], parameters={"stream_rows": True})
        client.stop_stream()
        client.close()
        assert all(error is None for _, error in replies)
        found = spans.get_finished_spans()
    assert [span.attributes["pame.protocol"] for span in found] == ["http", "http", "grpc", "grpc"]
    for place, span in enumerate(found):
        attributes = span.attributes
        assert span.name == "infer fake"
        assert span.kind.name == "SERVER"
        assert sorted(attributes["pame.exit_index"]) == [0, 0, 1]
        assert (attributes["pame.rows"], attributes["pame.stages"]) == (3, 2)
        lasted_ms = (span.end_time - span.start_time) / 1e6
        assert 0 <= attributes["pame.engine_ms"] + attributes["pame.queue_ms"] <= lasted_ms + 1
        if place == 1:
            assert span.parent is None
        else:
            assert (span.parent.trace_id, span.parent.span_id) == (TRACE, PARENT)
            assert span.context.trace_id == TRACE


def test_a_request_that_fails_says_why(fake_net: Any, spans: Any) -> None:
    net = fake_net(thresholds=(0.5,), masked=False)
    _, body = body_of(net, [[0.9, 0]])
    wrong = body.replace(b'"x"', b'"y"')
    host = AsyncRuntime.over(net.spec(), net.engine_sets(), HostDevice())
    with serving(fake_options(), hosts={"fake": host}) as server:
        watch(server, spans)
        assert ask(server, "POST", "/v2/models/fake/infer", wrong, HEADERS).status == 400
        (span,) = spans.get_finished_spans()
    assert span.status.status_code.name == "ERROR"
    assert "unexpected inference input 'y'" in span.status.description
    assert span.attributes["error.type"] == "invalid"
    assert "pame.exit_index" not in span.attributes


def test_nothing_is_imported_unless_it_is_asked_for() -> None:
    code = "import sys, runtime.serve.server; sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_endpoint_that_is_no_address_is_refused() -> None:
    for wrong in ("localhost:4317", "collector", "ftp://host/"):
        with pytest.raises(UsageError, match="http://localhost:4318"):
            open_tracing(wrong)


def test_spans_go_to_the_collector() -> None:
    """A collector that counts what comes: the exporter's own way over HTTP, to the end of the server."""
    import threading
    from http.server import BaseHTTPRequestHandler, HTTPServer

    came: list[tuple[str, int]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            came.append((self.path, len(self.rfile.read(int(self.headers["content-length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        tracing = open_tracing(f"http://127.0.0.1:{collector.server_port}")
        tracing._tracer.start_span("infer net").end()
        tracing.close()
        collector.shutdown()
    assert len(came) == 1
    assert came[0][0] == "/v1/traces"
    assert came[0][1] > 0

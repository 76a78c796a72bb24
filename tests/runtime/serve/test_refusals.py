"""Wrong requests over HTTP: what a real Triton 2.51 answered to them, and the limits of what is read."""

from __future__ import annotations

import gzip
import json
import re
import socket
import zlib
from collections.abc import Iterator
from typing import Any

import pytest

from runtime.serve.options import Limits, Security, ServeOptions
from runtime.serve.server import ModelServer
from tests.runtime.serve.servers import ask, options_for, serving

pytest.importorskip("uvicorn", reason="serves: pip install 'pame[serve]'")

INFER = "/v2/models/toy/infer"
TOKEN = "a-token-of-32-characters-or-so.."  # noqa: S105


@pytest.fixture(scope="module")
def server(toy_run: Any) -> Iterator[ModelServer]:
    limits = Limits(body_mb=0.25, json_mb=0.125, header_kb=8, read_timeout_s=0.5)
    with serving(ServeOptions(**options_for(toy=toy_run.bundle), limits=limits)) as found:
        yield found


def tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "image", "datatype": "FP32", "shape": [1, 1, 4, 4], "data": [0.5] * 16, **changes}


def head(*inputs: Any, **others: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **others}).encode()


# Triton 2.51's status, and ours where it is another, with the reason
CASES: dict[str, tuple[str, str, bytes, int, int | None]] = {
    "unknown path": ("GET", "/v2/nonsense", b"", 404, None),
    "wrong verb": ("GET", INFER, b"", 405, None),
    "unknown model": ("GET", "/v2/models/nope", b"", 404, None),
    "unknown version": ("GET", "/v2/models/toy/versions/9", b"", 404, None),
    "inference of an unknown model": ("POST", "/v2/models/nope/infer", head(tensor()), 404, None),
    "readiness of an unknown model": ("GET", "/v2/models/nope/ready", b"", 400, None),
    "no JSON": ("POST", INFER, b"{]", 500, 400),  # the client's mistake
    "data that do not fit the shape": ("POST", INFER, head(tensor(data=[1.0])), 500, 400),  # likewise
    "another type": ("POST", INFER, head(tensor(datatype="INT32", data=[1] * 16)), 400, None),
    "an unknown input": ("POST", INFER, head(tensor(name="z")), 400, None),
    "no input": ("POST", INFER, head(), 400, None),
    "an unknown output": ("POST", INFER, head(tensor(), outputs=[{"name": "q"}]), 400, None),
    "more rows than may be": ("POST", INFER, head(tensor(shape=[33, 1, 4, 4], data=[0.5] * 528)), 400, None),
    "loading, which is off": ("POST", "/v2/repository/models/toy/load", b"{}", 503, None),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_wrong_requests_are_answered_as_triton_does(server: ModelServer, case: str) -> None:
    verb, path, body, triton, ours = CASES[case]
    done = ask(server, verb, path, body)
    assert done.status == (triton if ours is None else ours)
    assert list(done.json) == ["error"]
    assert done.json["error"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no JSON"),
        (b"[]", "expected a JSON object"),
        (b'{"inputs": 3}', "expected a list"),
        (b'{"inputs": [3]}', "expected a JSON object"),
        (head(tensor(), id=3), "id of a request"),
        (head(tensor(name=None)), "has a name"),
        (head(tensor(), tensor()), "twice"),
        (head(tensor(datatype="FP31")), "expected one of BOOL"),
        (head(tensor(shape=[1, 1, 4, -4])), "whole numbers from 0"),
        (head(tensor(shape=[1, 1, 4, 4.0])), "whole numbers from 0"),
        (head(tensor(shape=[1 << 40, 1 << 40])), "whole numbers from 0"),
        (head(tensor(shape=[1 << 40, 4])), "do not fit shape"),
        (head(tensor(shape=[0, 1 << 31, 1 << 31, 4], data=[])), "whole numbers from 0"),
        (head(tensor(shape=[0, 1, 4, 4], data=[])), "empty"),
        (head(tensor(shape=[1, 16])), "expected shape"),
        (head(tensor(data=[[1.0] * 8] * 2)), "nested as"),
        (head(tensor(data=[[1.0], [1.0, 2.0]])), "different lengths"),
        (head(tensor(data=["1.0"] * 16)), "got str"),
        (head(tensor(data=[None] * 16)), "got null"),
        (head(tensor(data=[True] * 16)), "got bool"),
        (head(tensor(data=[1e300] * 16)), "infinity"),
        (head(tensor(parameters={"binary_data_size": 64})), "expected one of data"),
        (head(tensor(parameters={"shared_memory_region": "r"}, data=None)), "expected one of data"),
        (head(tensor(), parameters={"timeout": -1}), "'timeout'"),
        (head(tensor(), parameters={"timeout": 1.5}), "'timeout'"),
        (head(tensor(), parameters={"priority": "high"}), "'priority'"),
        (head(tensor(), parameters={"binary_data_output": 1}), "true or false"),
        (head(tensor(), outputs=[{"name": "logits"}] * 2), "twice"),
        (head(tensor(), outputs=[{"name": "confidence", "parameters": {"classification": 1}}]), "several numbers"),
        (head(*[tensor()] * 65), "1 to 64"),
        (b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", "depth limit"),
    ],
)
def test_a_wrong_body_is_told_what_is_wrong(server: ModelServer, body: bytes, says: str) -> None:
    done = ask(server, "POST", INFER, body)
    assert (done.status, says in done.json["error"]) == (400, True), done.json


@pytest.mark.parametrize(
    ("stated", "blob", "says"),
    [
        ("9999", b"", "should be in range"),
        ("-1", b"", "length of the JSON"),
        ("1" * 40, b"", "length of the JSON"),
        (None, bytes(63), "states more bytes"),
        (None, bytes(65), "bytes follow the JSON"),
    ],
)
def test_a_wrong_length_of_binary_data(server: ModelServer, stated: str | None, blob: bytes, says: str) -> None:
    binary = {key: value for key, value in tensor(parameters={"binary_data_size": 64}).items() if key != "data"}
    body = head(binary)
    headers = {"Inference-Header-Content-Length": stated or str(len(body))}
    done = ask(server, "POST", INFER, body + blob, headers)
    assert (done.status, says in done.json["error"]) == (400, True), done.json


def test_bodies_have_limits_also_when_they_are_decompressed(server: ModelServer) -> None:
    assert ask(server, "POST", INFER, bytes(300_000)).status == 413
    assert ask(server, "POST", INFER, b" " * 200_000).status == 400  # more JSON than may be
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < 100_000
    assert ask(server, "POST", INFER, bomb, {"Content-Encoding": "gzip"}).status == 413
    assert ask(server, "POST", INFER, b"no gzip", {"Content-Encoding": "gzip"}).status == 400
    half = zlib.compress(head(tensor()))[:-5]
    assert ask(server, "POST", INFER, half, {"Content-Encoding": "deflate"}).status == 400
    assert ask(server, "POST", INFER, b"", {"Content-Encoding": "br"}).status == 415
    assert server.service.budget.taken == 0


def exchange(server: ModelServer, data: bytes) -> bytes:
    address = server.addresses["http"]
    with socket.create_connection((address.host, address.port), timeout=10) as connection:
        connection.sendall(data)
        found = b""
        while part := connection.recv(65536):
            found += part
        return found


def test_a_head_has_a_limit(server: ModelServer) -> None:
    endless = b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * 100_000
    assert exchange(server, endless).startswith(b"HTTP/1.1 400 ")
    assert ask(server, "GET", "/v2", headers={"X-Fine": "a" * 4000}).status == 200


def test_a_head_that_does_not_arrive_is_given_up(server: ModelServer) -> None:
    """Connections that ask for nothing would take the places of others for ever."""
    late = exchange(server, b"GET /v2 HTTP/1.1\r\nHos")
    assert late.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive" in late
    assert exchange(server, b"") == b""
    done_then_begun = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\nGET /v2 HT"
    assert re.findall(rb"HTTP/1.1 (\d+)", exchange(server, done_then_begun))[0] == b"200"


def test_a_body_that_does_not_arrive_is_given_up(server: ModelServer) -> None:
    begun = b"POST " + INFER.encode() + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{"
    assert exchange(server, begun).startswith(b"HTTP/1.1 408 ")
    assert server.service.budget.taken == 0


def test_all_bodies_together_have_a_limit(toy_run: Any) -> None:
    limits = Limits(inflight_mb=0.01)
    with serving(ServeOptions(**options_for(toy=toy_run.bundle), limits=limits)) as server:
        done = ask(server, "POST", INFER, bytes(20_000))
        assert (done.status, done.headers["retry-after"]) == (503, "1")
        assert ask(server, "POST", INFER, head(tensor())).status == 200


def test_a_token_is_asked_for_but_not_by_health(toy_run: Any) -> None:
    security = Security(token=TOKEN)
    with serving(ServeOptions(**options_for(toy=toy_run.bundle), security=security)) as server:
        assert ask(server, "GET", "/v2/health/ready").status == 200
        for path in ("/v2", "/v2/models/toy", "/v2/models/toy/config", "/v2/models/toy/stats"):
            assert ask(server, "GET", path).status == 401
            assert ask(server, "GET", path, headers={"Authorization": f"Bearer {TOKEN}"}).status == 200
        for wrong in ("Bearer ", f"Bearer {TOKEN[:-1]}", f"bearer {TOKEN}x", "Bearer \xe4"):
            done = ask(server, "POST", INFER, head(tensor()), {"Authorization": wrong})
            assert (done.status, done.headers["www-authenticate"]) == (401, "Bearer")
        assert ask(server, "POST", "/v2/repository/index", b"").status == 401
        done = ask(server, "POST", INFER, head(tensor()), {"Authorization": f"Bearer {TOKEN}"})
        assert done.status == 200

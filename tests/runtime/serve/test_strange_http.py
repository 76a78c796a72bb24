"""HTTP as strangers speak it: old versions, pipelines, expectations, oddly framed bodies, and addresses that clash."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from artifacts import PameError
from runtime.serve.options import Address, ServeOptions
from runtime.serve.server import ModelServer
from tests.runtime.serve.servers import ask, options_for, serving

pytest.importorskip("uvicorn", reason="serves: pip install 'pame[serve]'")

INFER = b"/v2/models/toy/infer"
STATED = {"name": "image", "datatype": "FP32", "shape": [1, 1, 4, 4], "data": [0.5] * 16}
BODY = json.dumps({"inputs": [STATED]}).encode()
CLOSE = b"Connection: close\r\n"


@pytest.fixture(scope="module")
def server(toy_run: Any) -> Iterator[ModelServer]:
    with serving(ServeOptions(**options_for(toy=toy_run.bundle))) as found:
        yield found


def request(headers: bytes = CLOSE, *, body: bytes = BODY, version: bytes = b"1.1", length: int | None = None) -> bytes:
    stated = b"Content-Length: %d\r\n" % (len(body) if length is None else length)
    return b"POST %s HTTP/%s\r\nHost: x\r\n%s%s\r\n%s" % (INFER, version, stated, headers, body)


def exchange(server: ModelServer, *parts: bytes) -> bytes:
    """Sends parts, the later ones when something has come back, and returns all that comes until the end."""
    address = server.addresses["http"]
    with socket.create_connection((address.host, address.port), timeout=10) as connection:
        found = b""
        for place, part in enumerate(parts):
            if place:
                found += connection.recv(65536)
            connection.sendall(part)
        while part := connection.recv(65536):
            found += part
        return found


def test_requests_behind_each_other_are_answered_in_their_order(server: ModelServer) -> None:
    ids = [str(number) for number in range(8)]
    bodies = [json.dumps({"inputs": [STATED], "id": name}).encode() for name in ids]
    sent = b"".join(
        request(b"" if name != ids[-1] else CLOSE, body=body) for name, body in zip(ids, bodies, strict=True)
    )
    found = exchange(server, sent)
    assert found.count(b"HTTP/1.1 200 OK") == 8
    places = [found.index(b'"id":"%s"' % name.encode()) for name in ids]
    assert places == sorted(places)


def test_a_client_of_http_1_0(server: ModelServer) -> None:
    found = exchange(server, request(b"", version=b"1.0"))
    assert found.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in found


def test_a_client_that_waits_to_be_told_to_go_on(server: ModelServer) -> None:
    expects = request(CLOSE + b"Expect: 100-continue\r\n", body=b"", length=len(BODY))
    found = exchange(server, expects, BODY)
    assert found.startswith(b"HTTP/1.1 100 Continue")
    assert b"HTTP/1.1 200 OK" in found
    too_large = request(CLOSE + b"Expect: 100-continue\r\n", body=b"", length=1 << 40)
    assert exchange(server, too_large).startswith(b"HTTP/1.1 413")  # before the body is sent


def test_what_is_no_http_is_refused_with_an_object(server: ModelServer) -> None:
    framed_twice = request(CLOSE + b"Transfer-Encoding: chunked\r\n")
    for wrong in (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        framed_twice,
        request(CLOSE, length=-5),
        b"BREW / HTTP/1.1\r\n\r\n",
    ):
        head, _, body = exchange(server, wrong).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400"), wrong
        assert b"application/json" in head
        assert list(json.loads(body)) == ["error"]


def test_a_body_in_chunks(server: ModelServer) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (BODY[:9], BODY[9:], b""))
    head = b"POST %s HTTP/1.1\r\nHost: x\r\n%sTransfer-Encoding: chunked\r\n\r\n" % (INFER, CLOSE)
    assert exchange(server, head + chunks).startswith(b"HTTP/1.1 200")
    assert exchange(server, head + b"zz\r\n").startswith(b"HTTP/1.1 400")


def test_a_body_that_was_compressed_twice_is_refused(server: ModelServer) -> None:
    twice = gzip.compress(gzip.compress(BODY))
    for headers in (b"Content-Encoding: gzip\r\n" * 2, b"Content-Encoding: gzip, gzip\r\n"):
        assert exchange(server, request(CLOSE + headers, body=twice)).startswith(b"HTTP/1.1 415")


def test_no_redirects_and_a_wrong_verb_is_told_the_right_one(server: ModelServer) -> None:
    assert ask(server, "POST", INFER.decode() + "/", BODY).status == 404
    assert ask(server, "GET", "/v2/").status == 404
    wrong = ask(server, "GET", INFER.decode())
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")


def test_two_ways_in_at_one_address(toy_run: Any) -> None:
    """gRPC would bind to the port of a socket that is bound and does not listen yet."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    same = {**options_for(toy=toy_run.bundle), "http": Address("127.0.0.1", port), "grpc": Address("127.0.0.1", port)}
    with pytest.raises(PameError, match="cannot listen at"), serving(ServeOptions(**same)):
        pass


def test_the_address_of_ipv6(toy_run: Any) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    loopback = Address("::1", 0)
    options = {**options_for(toy=toy_run.bundle), "http": loopback, "grpc": loopback, "metrics": None}
    with serving(ServeOptions(**options)) as server:
        assert str(server.addresses["http"]).startswith("[::1]:")
        assert ask(server, "POST", INFER.decode(), BODY).status == 200

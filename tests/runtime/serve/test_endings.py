"""The ways in which requests over HTTP end: full queue, late, gone, engine fault; start and end of a server."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from artifacts import CorruptArtifactError, EngineError, PameError
from runtime.serve.options import ServeOptions
from runtime.serve.server import ModelServer
from runtime.serve.transports.http_listener import HttpListener
from tests.runtime.hosting.host_worlds import Gate
from tests.runtime.serve.servers import Reply, ask, call_there, fake_options, options_for, serving, wait_for

pytest.importorskip("uvicorn", reason="serves: pip install 'pame[serve]'")

INFER = "/v2/models/fake/infer"


def body_of(net: Any, confidence: list[list[float]], **parameters: Any) -> bytes:
    (x,) = net.batch(np.float32(confidence))
    stated = {"name": "x", "datatype": "FP32", "shape": x.shape, "data": x.tolist()}
    return json.dumps({"inputs": [stated], "parameters": parameters}).encode()


def snapshot(server: ModelServer) -> Any:
    return server.service.models["fake"].host.snapshot()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def net(fake_net: Any, gate: Gate) -> Any:
    return fake_net(thresholds=(0.5,), masked=False, hook=gate)


def test_a_full_queue_says_when_to_come_again(net: Any, gate: Gate) -> None:
    with serving(fake_options(max_waiting_rows=8), nets={"fake": net}) as server, ThreadPoolExecutor() as pool:
        gate.armed = True
        first = pool.submit(ask, server, "POST", INFER, body_of(net, [[0.9, 0]] * 8))
        assert gate.entered.wait(30)
        second = pool.submit(ask, server, "POST", INFER, body_of(net, [[0.9, 0]] * 8))
        wait_for(lambda: snapshot(server).scheduling.open_tickets == 2)
        refused = ask(server, "POST", INFER, body_of(net, [[0.9, 0]]))
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        late = ask(server, "POST", INFER, body_of(net, [[0.9, 0]] * 9))
        assert late.status == 400  # more rows than may ever wait
        gate.open()
        assert (first.result().status, second.result().status) == (200, 200)
        assert server.service.models["fake"].statistics.failures == {"queue_full": 1, "invalid": 1}


def test_a_full_queue_can_be_told_by_429(net: Any, gate: Gate) -> None:
    options = fake_options(max_waiting_rows=8)
    options = ServeOptions(
        **{**options_for(fake=options.bundles[0].folder), "host": options.host, "overload_status": 429}
    )
    with serving(options, nets={"fake": net}) as server, ThreadPoolExecutor() as pool:
        gate.armed = True
        found = [pool.submit(ask, server, "POST", INFER, body_of(net, [[0.9, 0]] * 8)) for _ in range(1)]
        assert gate.entered.wait(30)
        found.append(pool.submit(ask, server, "POST", INFER, body_of(net, [[0.9, 0]] * 8)))
        wait_for(lambda: snapshot(server).scheduling.open_tickets == 2)
        assert ask(server, "POST", INFER, body_of(net, [[0.9, 0]])).status == 429
        gate.open()


def test_a_deadline_passes_while_an_engine_runs(net: Any, gate: Gate) -> None:
    with serving(fake_options(), nets={"fake": net}) as server:
        gate.armed = True
        late = ask(server, "POST", INFER, body_of(net, [[0.9, 0]], timeout=50_000))
        assert late.status == 504
        assert "deadline" in late.json["error"]
        gate.open()
        assert ask(server, "POST", INFER, body_of(net, [[0.9, 0]], timeout=20_000_000)).status == 200


def test_a_client_that_hangs_up_frees_its_rows_and_its_neighbours_notice_nothing(net: Any, gate: Gate) -> None:
    with serving(fake_options(), nets={"fake": net}) as server, ThreadPoolExecutor() as pool:
        gate.armed = True
        neighbours = [pool.submit(ask, server, "POST", INFER, body_of(net, [[0.9, 0]])) for _ in range(3)]
        assert gate.entered.wait(30)
        address, body = server.addresses["http"], body_of(net, [[0.1, 0.2]])
        gone = socket.create_connection((address.host, address.port))
        gone.sendall(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (INFER.encode(), len(body), body))
        wait_for(lambda: snapshot(server).scheduling.open_tickets == 4)
        gone.close()
        wait_for(lambda: snapshot(server).scheduling.open_tickets == 3)  # while the engine still runs
        gate.open()
        assert [found.result().status for found in neighbours] == [200] * 3
        assert server.service.models["fake"].statistics.failures == {"cancelled": 1}
        assert server.service.budget.taken == 0


def test_an_engine_fault_is_the_error_of_its_requests_alone(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,), masked=False, faults={8: EngineError("out of memory")})  # 0 to 7 warm up
    with serving(fake_options(), nets={"fake": net}) as server:
        failed = ask(server, "POST", INFER, body_of(net, [[0.1, 0]]))
        assert failed.status == 500
        assert "out of memory" in failed.json["error"]
        assert ask(server, "POST", INFER, body_of(net, [[0.1, 0]])).status == 200
        assert server.service.models["fake"].statistics.failures == {"engine": 1}


def test_a_server_that_ends_answers_what_it_has_admitted(net: Any, gate: Gate) -> None:
    options = ServeOptions(**{**options_for(fake=fake_options().bundles[0].folder), "drain_delay_s": 0.5})
    with ThreadPoolExecutor() as pool:
        with serving(options, nets={"fake": net}) as server:
            gate.armed = True
            admitted = pool.submit(ask, server, "POST", INFER, body_of(net, [[0.9, 0]]))
            assert gate.entered.wait(30)
            call_there(server, server.stop)
            wait_for(lambda: ask(server, "GET", "/v2/health/ready").status == 503)
            assert ask(server, "GET", "/v2/health/live").status == 200
            during = pool.submit(ask, server, "POST", INFER, body_of(net, [[0.9, 0]]))  # answered in the delay
            wait_for(lambda: snapshot(server).scheduling.open_tickets == 2)
            wait_for(lambda: snapshot(server).scheduling.draining)
            refused = ask(server, "POST", INFER, body_of(net, [[0.9, 0]]))
            assert (refused.status, refused.headers["connection"]) == (503, "close")
            threading.Timer(0.2, gate.open).start()
        assert [found.result().status for found in (admitted, during)] == [200, 200]


def test_what_is_not_finished_in_time_fails(net: Any, gate: Gate) -> None:
    options = fake_options()
    options = ServeOptions(**{**options_for(fake=options.bundles[0].folder), "drain_timeout_s": 0.2})
    with ThreadPoolExecutor() as pool, serving(options, nets={"fake": net}) as server:
        gate.armed = True
        admitted = pool.submit(ask, server, "POST", INFER, body_of(net, [[0.9, 0]]))
        assert gate.entered.wait(30)
        call_there(server, server.stop)
        found: Reply = admitted.result()
        gate.open()
        assert found.status == 500
        assert "are over" in found.json["error"]


def test_an_engine_that_hangs_ends_the_server_with_an_error(net: Any, gate: Gate) -> None:
    with ThreadPoolExecutor() as pool, pytest.raises(EngineError, match="lost its device"):  # noqa: SIM117
        with serving(fake_options(hang_factor=1.0, hang_grace_s=0.2), nets={"fake": net}) as server:
            gate.armed = True
            lost = pool.submit(ask, server, "POST", INFER, body_of(net, [[0.9, 0]]))
            assert lost.result().status == 500
            wait_for(lambda: server.service.draining)
            gate.open()


def test_a_bundle_that_cannot_be_opened_ends_the_start(toy_run: Any, tmp_path: Any) -> None:
    import shutil

    bad = shutil.copytree(toy_run.bundle, tmp_path / "bad")
    (bad / "bundle.json").write_bytes(b"{}")
    with pytest.raises(CorruptArtifactError), serving(ServeOptions(**options_for(bad=bad))):
        pass


def test_an_address_that_is_taken(toy_run: Any) -> None:
    with serving(ServeOptions(**options_for(toy=toy_run.bundle))) as server:
        taken = {**options_for(toy=toy_run.bundle), "http": server.addresses["http"]}
        with pytest.raises(PameError, match="cannot listen at"), serving(ServeOptions(**taken)):
            pass


def test_an_idle_connection_and_one_that_waits_are_refused_in_words_at_the_end(net: Any) -> None:
    """Requests that cross with the end, on a connection that was kept and on one that nobody has accepted yet."""
    body = body_of(net, [[0.9, 0]])
    request = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (INFER.encode(), len(body), body)
    with serving(fake_options(), nets={"fake": net}) as server:
        address = server.addresses["http"]
        place = (address.host, address.port)
        kept = socket.create_connection(place, timeout=10)
        kept.sendall(request)
        assert kept.recv(1 << 16).startswith(b"HTTP/1.1 200")
        listener = next(found for found in server._listeners if isinstance(found, HttpListener))
        connected: list[socket.socket] = []

        async def end() -> None:
            server.service.draining = True
            await server.service.drain(1.0)
            connected.append(socket.create_connection(place, timeout=10))  # the loop does not accept it meanwhile
            await listener._server.shutdown([listener._socket])

        ending = asyncio.run_coroutine_threadsafe(end(), server.loop)  # type: ignore[attr-defined]
        wait_for(lambda: bool(connected))
        for connection in (*connected, kept):
            connection.sendall(request)
            answer = b""
            while part := connection.recv(1 << 16):
                answer += part
            assert answer.startswith(b"HTTP/1.1 503"), answer
            assert b"drains" in answer
            connection.close()
        ending.result(30)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(place, timeout=10)

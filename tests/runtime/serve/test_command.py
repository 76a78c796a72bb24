"""``python -m runtime.serve``: its flags, and a process that serves, is told to stop, and ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from artifacts import UsageError
from runtime.serve.command import main, make_parser, read_flags
from runtime.serve.options import Address, parse_address, parse_bundle

ROOT = Path(__file__).parents[3]


def options(*argv: str) -> Any:
    return read_flags(make_parser().parse_args(argv))


def test_the_defaults_listen_on_this_machine_alone(tmp_path: Path) -> None:
    found = options("--bundle", str(tmp_path / "net" / "bundle"))
    assert [source.name for source in found.bundles] == ["net"]
    assert {found.http.host, found.grpc.host, found.metrics.host} == {"127.0.0.1"}
    assert found.security.load_folder is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:80", Address("0.0.0.0", 80)),  # noqa: S104
        (":8000", Address("127.0.0.1", 8000)),
        ("8000", Address("127.0.0.1", 8000)),
        ("[::1]:0", Address("::1", 0)),
        ("off", None),
    ],
)
def test_addresses(text: str, address: Address | None) -> None:
    assert parse_address(text) == address


def test_names_of_bundles() -> None:
    assert parse_bundle("runs/resnet/bundle").name == "resnet"
    assert parse_bundle("a=b=c").folder == Path("b=c")
    assert parse_bundle("deployed/digits").name == "digits"


@pytest.mark.parametrize(
    "argv",
    [
        ("--bundle", "a/b=x=/"), ("--bundle", "a b=x"), ("--bundle", "..=x"), ("--bundle", "a=x", "--bundle", "a=y"),
        ("--bundle", "a=x", "--http", "localhost"), ("--bundle", "a=x", "--http", "h:70000"),
        ("--bundle", "a=x", "--http", "off", "--grpc", "off"), ("--bundle", "a=x", "--max-body-mb", "0"),
        ("--bundle", "a=x", "--max-connections", "-1"), ("--bundle", "a=x", "--drain-delay", "nan"),
        ("--bundle", "a=x", "--policy", "best"), ("--bundle", "a=x", "--slo-ms", "-1"),
        ("--bundle", "a=x", "--tls-cert", "c.pem"), ("--allow-load", "/does/not/exist"),
    ],
)  # fmt: skip
def test_wrong_flags(argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_token_that_keeps_nobody_out(tmp_path: Path) -> None:
    for text in ("", "short", "a token with spaces in it"):
        (tmp_path / "token").write_text(text)
        with pytest.raises(UsageError, match="at least 16"):
            options("--bundle", "a=x", "--token-file", str(tmp_path / "token"))


def test_a_bundle_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("uvicorn", reason="serves: pip install 'pame[serve]'")
    ports = ("--http", "127.0.0.1:0", "--grpc", "off", "--metrics", "off")
    assert main(["--bundle", f"m={tmp_path / 'none'}", *ports]) == 1
    assert "Traceback" not in capsys.readouterr().err


class Process:
    """A server of its own."""

    def __init__(self, *argv: str) -> None:
        ports = ("--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--metrics", "off")
        self.child = subprocess.Popen(
            [sys.executable, "-m", "runtime.serve", *ports, *argv], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self.child.stderr is not None
        self.said = ""
        for line in self.child.stderr:
            self.said += line
            if (found := re.search(r"http 127.0.0.1:(\d+)", line)) is not None:
                self.port = int(found[1])
                return
        raise AssertionError(self.said)

    def infer(self, connection: HTTPConnection, body: bytes) -> int:
        connection.request("POST", "/v2/models/toy/infer", body)
        found = connection.getresponse()
        found.read()
        if found.getheader("connection") == "close":
            connection.close()
        return found.status


def test_sigterm_under_load_resets_nobody(toy_run: Any) -> None:
    pytest.importorskip("uvicorn", reason="serves: pip install 'pame[serve]'")
    server = Process("--bundle", f"toy={toy_run.bundle}", "--threads", "1", "--drain-delay", "0.7", "--json", "-")
    rows = toy_run.inputs[:4]
    body = json.dumps({"inputs": [{"name": "image", "datatype": "FP32", "shape": rows.shape, "data": rows.tolist()}]})
    statuses: list[list[int]] = [[] for _ in range(4)]
    ready: list[int] = []
    stop_at = [float("inf")]

    def load(found: list[int]) -> None:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=20)
        while time.monotonic() < stop_at[0]:  # a client leaves within the drain delay, as balancers let it
            found.append(server.infer(connection, body.encode()))

    threads = [threading.Thread(target=load, args=(found,)) for found in statuses]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    server.child.send_signal(signal.SIGTERM)
    stop_at[0] = time.monotonic() + 0.4
    time.sleep(0.1)
    probe = HTTPConnection("127.0.0.1", server.port, timeout=20)
    probe.request("GET", "/v2/health/ready")
    ready.append(probe.getresponse().status)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    out, err = server.child.communicate(timeout=30)
    assert server.child.returncode == 0, err
    assert ready == [503]
    sent = [status for found in statuses for status in found]
    assert set(sent) == {200}
    assert json.loads(out)["models"]["toy"]["requests"] == {"http 200": len(sent)}


def test_the_second_signal_ends_at_once(toy_run: Any) -> None:
    pytest.importorskip("uvicorn", reason="serves: pip install 'pame[serve]'")
    server = Process("--bundle", f"toy={toy_run.bundle}", "--threads", "1", "--drain-delay", "60")
    server.child.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert server.child.poll() is None
    server.child.send_signal(signal.SIGTERM)
    assert server.child.wait(10) == 128 + signal.SIGTERM
    server.child.communicate()

"""The load test of a server that runs somewhere: by HTTP and gRPC, with data and without, and what it refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import UsageError
from runtime import Runtime
from runtime.loadtest.command import main
from runtime.loadtest.wire import RemoteTensor, parse_url, read_metadata
from runtime.oip.failures import error_told_by
from runtime.serve.models import LOADING, READY
from runtime.serve.options import Security, ServeOptions
from runtime.serve.server import ModelServer
from tests.runtime.serve.servers import options_for, serving

pytest.importorskip("tritonclient.http", reason="asks a server: pip install 'tritonclient[http]'")
pytest.importorskip("tritonclient.grpc", reason="asks a server: pip install 'pame[serve]'")

SHORT = ["--slo-ms", "5000", "--seconds", "0.1", "--repeats", "1", "--steps", "2"]  # a bound that is kept
TOKEN = "a-token-of-32-characters-or-so.."  # noqa: S105


@pytest.fixture(scope="module")
def server(toy_run: Any) -> Iterator[ModelServer]:
    with serving(ServeOptions(**options_for(toy=toy_run.bundle, other=toy_run.bundle))) as found:
        yield found


def url_of(server: ModelServer, protocol: str) -> str:
    return f"{protocol}://{server.addresses[protocol]}"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_is_loaded_and_its_answers_are_judged(
    server: ModelServer, toy_run: Any, tmp_path: Path, protocol: str, capsys: pytest.CaptureFixture
) -> None:
    rows, target = toy_run.inputs[:40], tmp_path / "out.json"
    with Runtime.load(toy_run.bundle, threads=1) as runtime:
        answered = runtime.run(rows)
    labels = answered.outputs.argmax(axis=1)
    labels[::4] = (labels[::4] + 1) % answered.outputs.shape[1]
    np.savez(tmp_path / "rows.npz", image=rows, labels=labels, other=np.zeros(3))
    url = url_of(server, protocol)
    code = main(["--url", url, "--model", "toy", "--data", str(tmp_path / "rows.npz"), "--json", str(target), *SHORT])
    assert code == 0
    result = json.loads(target.read_text())
    assert (result["model"], result["platform"], result["url"], result["queries"]) == ("toy", "pame", url, 40)
    (found,) = result["bounds"][0]["contenders"]
    assert found["goodput_per_s"] > 0
    assert found["answered"] == 1
    assert found["queries"] == 40
    assert found["metric"] == pytest.approx(0.75)
    assert found["agreement"] is None
    assert "simulated_per_s" not in found
    assert found["exit_fractions"] == pytest.approx(np.bincount(answered.exit_index, minlength=2) / 40, abs=0.1)
    assert url in capsys.readouterr().out


def test_a_run_gives_the_data_and_what_the_full_network_answers(
    server: ModelServer, toy_run: Any, tmp_path: Path
) -> None:
    target = tmp_path / "out.json"
    words = ["--url", url_of(server, "http"), "--model", "toy", "--samples", "32", "--json", str(target)]
    code = main([*words, "--run", str(toy_run.root), "--data", str(toy_run.data), *SHORT])
    assert code == 0
    (found,) = json.loads(target.read_text())["bounds"][0]["contenders"]
    assert found["queries"] == 32
    assert 0.5 < found["agreement"] <= 1


def test_without_data_rows_are_random_and_that_is_said(
    server: ModelServer, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    picture = tmp_path / "goodput.png"
    pytest.importorskip("matplotlib", reason="draws the picture: pip install 'pame[report]'")
    assert main(["--url", url_of(server, "grpc"), "--model", "toy", "--plot", str(picture), *SHORT]) == 0
    assert "random" in capsys.readouterr().err
    assert picture.stat().st_size > 5000


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_nothing_that_listens_an_unknown_model_and_one_that_is_not_ready(
    server: ModelServer, protocol: str, capsys: pytest.CaptureFixture
) -> None:
    def refused(*words: str) -> str:
        assert main([*words, *SHORT]) != 0
        return capsys.readouterr().err

    url = url_of(server, protocol)
    assert "nothing answers at" in refused("--url", f"{protocol}://127.0.0.1:9")
    other = url_of(server, "grpc" if protocol == "http" else "http").partition("//")[2]
    assert other in refused("--url", f"{protocol}://{other}", "--model", "toy")
    assert "it serves other, toy" in refused("--url", url, "--model", "nope")
    assert "other, toy: name one with --model" in refused("--url", url)
    server.service.models["other"].state = LOADING
    assert "not ready" in refused("--url", url, "--model", "other")
    server.service.models["other"].state = READY


def test_a_server_of_something_else(capsys: pytest.CaptureFixture) -> None:
    class Friendly(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<p>Good day</p>")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Friendly) as server:
        threading.Thread(target=server.serve_forever).start()
        assert main(["--url", f"http://127.0.0.1:{server.server_port}", "--model", "toy", *SHORT]) == 1
        server.shutdown()
    assert "not of the Open Inference Protocol" in capsys.readouterr().err


def test_data_that_does_not_fit_is_refused_before_any_load(
    server: ModelServer, toy_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def refused(**arrays: Any) -> str:
        np.savez(tmp_path / "rows.npz", **arrays)
        words = ["--url", url_of(server, "http"), "--model", "toy", "--data", str(tmp_path / "rows.npz"), *SHORT]
        assert main(words) in (1, 2)
        return capsys.readouterr().err

    rows = toy_run.inputs[:4]
    assert "no array 'image'" in refused(pixels=rows)
    assert "FP32 [1, 4, 4]; the data has float32 [1, 4, 3]" in refused(image=rows[..., :3])
    assert "float64" in refused(image=rows.astype(np.float64))
    assert "arrays of [3, 4] rows" in refused(image=rows, labels=np.zeros(3))
    assert "arrays of [0] rows" in refused(image=rows[:0])
    assert "NaN" in refused(image=rows * np.nan)
    assert "allow_pickle" in refused(image=np.array([{}, 3], object))
    assert main(["--url", url_of(server, "http"), "--model", "toy", "--data", str(toy_run.data), *SHORT]) == 2
    assert "--run DIR" in capsys.readouterr().err


def test_a_token_is_sent(toy_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    secret = tmp_path / "token"
    secret.write_text(TOKEN)
    options = ServeOptions(**options_for(toy=toy_run.bundle), security=Security(token=TOKEN))
    with serving(options) as server:
        for protocol in ("http", "grpc"):
            words = ["--url", url_of(server, protocol), *SHORT]
            assert main(words) == 1
            assert "Bearer TOKEN" in capsys.readouterr().err
            assert main([*words, "--token-file", str(secret)]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--url", "localhost:8000"), "expected http://HOST:PORT"),
        (("--url", "http://localhost"), "no port"),
        (("--url", "http://localhost:99999"), "range"),
        (("--url", "grpc://localhost:1/path"), "no paths"),
        (("--url", "ftp://localhost:1"), "expected http"),
        (("--url", "http://localhost:1", "--policies", "full"), "--policies"),
        (("--url", "http://localhost:1", "--mlperf"), "--mlperf"),
        (("--url", "http://localhost:1", "--samples", "0"), "--samples"),
        (("--model", "toy"), "--url"),
    ],
)
def test_flags_that_cannot_be(flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*flags]) == 2
    assert message in capsys.readouterr().err


def test_addresses_of_every_kind() -> None:
    assert parse_url("https://[::1]:8000/v/").place == "[::1]:8000/v"
    assert (parse_url("grpcs://host:1").protocol, parse_url("grpcs://host:1").secure) == ("grpc", True)


def test_models_of_other_servers_are_understood() -> None:
    """As Triton tells of them; lengths as text come from gRPC."""

    def metadata(shape: list[Any], *outputs: str) -> dict[str, Any]:
        tensors = [{"name": name, "datatype": "FP32", "shape": shape} for name in ("x", *outputs)]
        return {"name": "m", "platform": "python", "inputs": tensors[:1], "outputs": tensors[1:]}

    found = read_metadata(metadata(["-1", "3"], "y", "confidence"))
    assert (found.inputs[0].row_shape, [tensor.name for tensor in found.outputs]) == ((3,), ["y", "confidence"])
    assert found.exit_index is None
    ours = read_metadata(metadata([-1, 1], "y", "exit_index", "confidence"))
    assert ([tensor.name for tensor in ours.outputs], ours.exit_index) == (["y"], "exit_index")
    with pytest.raises(Exception, match="takes no rows"):
        read_metadata(metadata([3, 3], "y"))
    with pytest.raises(UsageError, match="no output 'z'"):
        found.with_outputs(["z"])
    RemoteTensor("x", "FP32", (-1,)).check(np.zeros((2, 9), np.float32))
    with pytest.raises(UsageError, match="takes rows of"):
        RemoteTensor("x", "FP32", (-1,)).check(np.zeros((2, 9, 1), np.float32))


@pytest.mark.parametrize(
    ("code", "kind"),
    [("400", "InputError"), ("INVALID_ARGUMENT", "InputError"), ("504", "DeadlineError"), ("INTERNAL", "EngineError"),
     ("503", "RefusedError"), ("UNAVAILABLE", "RefusedError"), ("418", "RefusedError")],
)  # fmt: skip
def test_codes_become_the_errors_that_they_tell_of(code: str, kind: str) -> None:
    assert type(error_told_by(code, "why")).__name__ == kind

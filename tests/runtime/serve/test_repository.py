"""Models that come and go: loading from one folder, reload of what changed, damaged bundles; TLS."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
import time
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import MissingArtifactError, PameError
from runtime.serve.options import Security, ServeOptions
from runtime.serve.server import ModelServer
from tests.runtime.serve.servers import ask, options_for, serving, wait_for

tritonclient = pytest.importorskip("tritonclient.grpc", reason="asks the server: pip install 'pame[serve]'")
pytest.importorskip("uvicorn", reason="serves: pip install 'pame[serve]'")


def body_of(rows: np.ndarray) -> bytes:
    stated = {"name": "image", "datatype": "FP32", "shape": rows.shape, "data": rows.tolist()}
    return json.dumps({"inputs": [stated]}).encode()


def states(server: ModelServer) -> dict[str, str]:
    return {entry["name"]: entry["state"] for entry in ask(server, "POST", "/v2/repository/index").json}


def test_models_are_loaded_and_unloaded_from_one_folder_alone(toy_run: Any, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(toy_run.bundle, folder / "good")
    shutil.copytree(toy_run.bundle, folder / "bad")
    (folder / "bad" / "bundle.json").write_bytes(b"{}")
    (folder / "outside").symlink_to(toy_run.bundle)
    options = ServeOptions(**options_for(toy=toy_run.bundle), security=Security(load_folder=folder))
    body = body_of(toy_run.inputs[:2])
    with serving(options) as server:
        assert states(server) == {"toy": "READY", "good": "UNAVAILABLE", "bad": "UNAVAILABLE", "outside": "UNAVAILABLE"}
        assert ask(server, "POST", "/v2/models/good/infer", body).status == 404
        assert ask(server, "POST", "/v2/repository/models/good/load").status == 200
        assert ask(server, "POST", "/v2/models/good/infer", body).status == 200
        assert ask(server, "POST", "/v2/repository/models/good/load", b"{}").status == 200  # again: a reload
        assert server.service.models["good"].statistics.reloads == {"done": 1}
        for name, status in (("bad", 409), ("none", 404), ("outside", 503), ("..", 404), ("toy", 404)):
            done = ask(server, "POST", f"/v2/repository/models/{name}/load")
            assert (name, done.status) == (name, status), done.body
            assert "error" in done.json
        assert ask(server, "POST", "/v2/repository/models/good/load", b'{"parameters": {"config": "x"}}').status == 400
        with tritonclient.InferenceServerClient(str(server.addresses["grpc"])) as client:
            client.unload_model("good")
            assert not client.is_model_ready("good")
            client.load_model("good")
            assert client.is_model_ready("good")
        assert ask(server, "POST", "/v2/repository/models/good/unload").status == 200
        assert states(server)["good"] == "UNAVAILABLE"
        assert ask(server, "POST", "/v2/repository/models/toy/unload").status == 404
        assert ask(server, "GET", "/v2/health/ready").status == 200


def test_a_server_may_begin_without_models(toy_run: Any, tmp_path: Path) -> None:
    shutil.copytree(toy_run.bundle, tmp_path / "models" / "later")
    options = {**options_for(), "security": Security(load_folder=tmp_path / "models")}
    with serving(ServeOptions(**options)) as server:
        assert ask(server, "GET", "/v2/models/later").status == 404
        assert ask(server, "POST", "/v2/repository/models/later/load").status == 200
        assert ask(server, "GET", "/v2/models/later").status == 200


def replace_bundle(bundle: Path, source: Path) -> None:
    new = bundle.with_name("new")
    shutil.copytree(source, new)
    old = bundle.with_name("old")
    bundle.rename(old)
    new.rename(bundle)
    shutil.rmtree(old)


def test_another_bundle_in_the_folder_takes_over_and_a_damaged_one_does_not(
    toy_run: Any, publish_toy: Any, tmp_path: Path
) -> None:
    served, other = tmp_path / "served" / "bundle", tmp_path / "other"
    shutil.copytree(toy_run.bundle, served)
    publish_toy(toy_run, parameters={"made": "later"}, folder=other)
    options = ServeOptions(**{**options_for(toy=served), "watch_s": 0.05})
    body = body_of(toy_run.inputs[:2])
    with serving(options) as server:
        statistics = server.service.models["toy"].statistics
        before = ask(server, "POST", "/v2/models/toy/infer", body).json
        time.sleep(0.2)
        assert statistics.reloads == {}
        replace_bundle(served, other)
        wait_for(lambda: statistics.reloads == {"done": 1})
        assert ask(server, "POST", "/v2/models/toy/infer", body).json == before
        manifest = served / "manifest.json"
        manifest.write_bytes(manifest.read_bytes().replace(b'"later"', b'"never"'))  # not what it was signed as
        wait_for(lambda: statistics.reloads == {"done": 1, "failed": 1})
        time.sleep(0.2)
        assert statistics.reloads == {"done": 1, "failed": 1}  # it is tried once
        assert ask(server, "POST", "/v2/models/toy/infer", body).json == before
        runs = ask(server, "GET", "/v2/models/toy/stats").json["model_stats"][0]["execution_count"]
        assert runs >= 6  # those before the reload count


def test_reloads_under_load_lose_nothing(toy_run: Any, tmp_path: Path) -> None:
    options = ServeOptions(**options_for(toy=toy_run.bundle))
    body = body_of(toy_run.inputs[:1])
    with serving(options) as server:
        model = server.service.models["toy"]
        loop = server.loop  # type: ignore[attr-defined]
        statuses = []
        for number in range(60):
            if number % 20 == 10:
                reloading = asyncio.run_coroutine_threadsafe(model.reload(), loop)
            statuses.append(ask(server, "POST", "/v2/models/toy/infer", body).status)
            if number % 20 == 19:
                reloading.result(30)
        assert statuses == [200] * 60
        assert model.statistics.reloads == {"done": 3}


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    if shutil.which("openssl") is None:
        pytest.skip("makes certificates with openssl, which is not installed")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days",
         "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


def test_tls_of_both_protocols(toy_run: Any, identity: tuple[Path, Path]) -> None:
    certificate, key = identity
    options = ServeOptions(**options_for(toy=toy_run.bundle), security=Security(certificate=certificate, key=key))
    with serving(options) as server:
        context = ssl.create_default_context(cafile=certificate)
        connection = HTTPSConnection("127.0.0.1", server.addresses["http"].port, context=context, timeout=20)
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().status == 200
        connection.close()
        with tritonclient.InferenceServerClient(
            f"localhost:{server.addresses['grpc'].port}", ssl=True, root_certificates=str(certificate)
        ) as client:
            assert client.is_server_ready()


def test_a_certificate_that_cannot_be_read(toy_run: Any, identity: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = identity
    for pair in ((tmp_path / "none", key), (key, certificate)):
        options = ServeOptions(**options_for(toy=toy_run.bundle), security=Security(certificate=pair[0], key=pair[1]))
        with pytest.raises(PameError, match="TLS is not possible"), serving(options):
            pass


def test_a_bundle_without_a_signature_is_not_served_where_one_is_required(
    toy_run: Any, identity: tuple[Path, Path]
) -> None:
    pytest.importorskip("model_signing", reason="verifies signatures: pip install 'pame[signing]'")
    options = ServeOptions(**options_for(toy=toy_run.bundle), security=Security(signer=identity[0]))
    with pytest.raises(MissingArtifactError, match="no signature"), serving(options):
        pass

"""Pictures and texts as clients have them, over the wire, against what the runtime makes of them in process."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from artifacts import BundleSpec, InputError, Preprocessing, TensorSpec, TextEncoder, TextPreprocessing
from engines import DeviceOptions
from runtime import AsyncRuntime, Runtime, RuntimeOptions, open_bundle, prepare_images
from runtime.oip.calls import InferCall, InputTensor
from runtime.oip.datatypes import bytes_array, to_binary
from runtime.serve.options import Limits, ServeOptions
from runtime.serve.raw_inputs import RawInputs
from runtime.serve.server import ModelServer
from tests.runtime.serve.servers import ask, options_for, serving

http = pytest.importorskip("tritonclient.http", reason="asks the server: pip install 'tritonclient[http]'")
PIL = pytest.importorskip("PIL.Image", reason="makes pictures: pip install 'pame[images]'")

GREY = Preprocessing(height=4, width=4, channel_order="L", mean=(0.4,), std=(0.3,))
CLASSES = ("shirt", "shoe", "bag", "coat")
INFER = "/v2/models/toy/infer"
LENGTH = 12


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    random, files = np.random.default_rng(3), []
    for size, kind in (((9, 7), "PNG"), ((40, 30), "JPEG"), ((4, 4), "BMP")):
        file = io.BytesIO()
        PIL.fromarray(random.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(file, kind)
        files.append(file.getvalue())
    return files


@pytest.fixture(scope="module")
def spec(toy_run: Any) -> BundleSpec:
    opened = open_bundle(toy_run.bundle, threads=1, device=DeviceOptions())
    opened.close()
    return replace(opened.spec, preprocessing=GREY, classes=CLASSES)


@pytest.fixture(scope="module")
def expected(toy_run: Any, spec: BundleSpec, pictures: list[bytes]) -> Any:
    opened = open_bundle(toy_run.bundle, threads=1)
    with Runtime(spec, opened.engine_sets, opened.device, RuntimeOptions()) as runtime:
        return runtime.run(prepare_images(pictures, spec))


@pytest.fixture(scope="module")
def server(toy_run: Any, spec: BundleSpec) -> Iterator[ModelServer]:
    opened = open_bundle(toy_run.bundle, threads=1)
    host = AsyncRuntime.over(spec, opened.engine_sets, opened.device)
    options = ServeOptions(**options_for(toy=toy_run.bundle), limits=Limits(image_mpx=0.01))
    with serving(options, hosts={"toy": host}) as found:
        yield found


def infer(server: ModelServer, rows: np.ndarray, datatype: str) -> Any:
    with http.InferenceServerClient(str(server.addresses["http"])) as client:
        stated = http.InferInput("image", list(rows.shape), datatype)
        stated.set_data_from_numpy(rows)
        return client.infer("toy", [stated])


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_files_of_pictures(server: ModelServer, pictures: list[bytes], expected: Any, shape: tuple[int, ...]) -> None:
    found = infer(server, bytes_array(pictures, shape), "BYTES")
    np.testing.assert_array_equal(found.as_numpy("exit_index"), expected.exit_index)
    np.testing.assert_allclose(found.as_numpy("logits"), expected.outputs, rtol=1e-4, atol=1e-5)


def test_pixels(server: ModelServer, spec: BundleSpec) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (2, 9, 7, 3), np.uint8)
    rows = prepare_images(pixels, spec)
    np.testing.assert_array_equal(
        infer(server, pixels, "UINT8").as_numpy("logits"), infer(server, rows, "FP32").as_numpy("logits")
    )


def test_a_picture_alone_is_a_request(server: ModelServer, pictures: list[bytes], expected: Any) -> None:
    for row, picture in enumerate(pictures):
        done = ask(server, "POST", INFER, picture, {"Inference-Header-Content-Length": "0"})
        assert done.status == 200, done.body
        logits = next(output for output in done.json["outputs"] if output["name"] == "logits")
        np.testing.assert_allclose(logits["data"], expected.outputs[row], rtol=1e-4, atol=1e-5)


def test_classification_names_the_classes(server: ModelServer, pictures: list[bytes], expected: Any) -> None:
    with http.InferenceServerClient(str(server.addresses["http"])) as client:
        stated = http.InferInput("image", [3], "BYTES")
        stated.set_data_from_numpy(bytes_array(pictures, (3,)))
        found = client.infer("toy", [stated], outputs=[http.InferRequestedOutput("logits", class_count=1)])
        config = client.get_model_config("toy")
    labels = [text.decode().split(":")[2] for text in found.as_numpy("logits")[:, 0]]
    assert labels == [CLASSES[place] for place in expected.outputs.argmax(axis=1)]
    assert "BYTES" in config["parameters"]["raw_inputs"]["string_value"]


def test_what_is_no_picture_or_too_large_a_one(server: ModelServer, pictures: list[bytes]) -> None:
    file = io.BytesIO()
    PIL.new("1", (1000, 1000)).save(file, "PNG")
    assert len(file.getvalue()) < 2000
    head = {"Inference-Header-Content-Length": "0"}
    for wrong, says in (
        (b"no picture", "cannot be read as an image"),
        (pictures[1][:100], "cannot be read as an image"),
        (b"", "cannot be read as an image"),
        (file.getvalue(), "million"),
    ):
        done = ask(server, "POST", INFER, wrong, head)
        assert (done.status, says in done.json["error"]) == (400, True), done.json
    many = json.dumps({"inputs": [{"name": "image", "datatype": "BYTES", "shape": [33], "data": ["x"] * 33}]})
    assert "1 to 32 rows" in ask(server, "POST", INFER, many.encode()).json["error"]


def test_a_row_without_a_head(toy_run: Any) -> None:
    with serving(ServeOptions(**options_for(toy=toy_run.bundle))) as server:
        head = {"Inference-Header-Content-Length": "0"}
        done = ask(server, "POST", INFER, toy_run.inputs[0].tobytes(), head)
        plain = infer(server, toy_run.inputs[:1], "FP32")
        np.testing.assert_allclose(done.json["outputs"][0]["data"], plain.as_numpy("logits")[0], rtol=1e-6)
        assert ask(server, "POST", INFER, bytes(63), head).status == 400


def text_call(*texts: bytes, shape: tuple[int, ...] | None = None, name: str = "text") -> InferCall:
    return InferCall(inputs=(InputTensor(name, "BYTES", bytes_array(texts, shape or (len(texts),))),))


def tokenizer_of(words: list[str]) -> bytes:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: place for place, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return bytes(tokenizer.to_str(), "utf-8")


def test_texts() -> None:
    pytest.importorskip("tokenizers", reason="cuts texts into tokens: pip install 'pame[text]'")
    content = tokenizer_of(["the", "a", "film", "scene", "runs", "ends", "plot"])
    inputs = tuple(TensorSpec(name=name, dtype="int64", row_shape=(LENGTH,)) for name in ("ids", "mask", "types"))
    text = TextPreprocessing(length=LENGTH, ids="ids", mask="mask", types="types")
    spec = cast("BundleSpec", SimpleNamespace(name="t", inputs=inputs, preprocessing=None, text=text))
    raw = RawInputs(spec, content, image_mpx=1)
    encoder = TextEncoder(content, text, inputs)
    call = text_call(b"the film runs", "a scene ends \u00e9".encode())
    assert raw.wanted_by(call)
    assert not raw.wanted_by(InferCall(inputs=(InputTensor("ids", "INT64", np.zeros((1, LENGTH), np.int64)),)))
    for name, rows in encoder.encode(["the film runs", "a scene ends \u00e9"]).inputs.items():
        np.testing.assert_array_equal(raw.prepare(call, 8)[name], rows)
    pair = raw.prepare(text_call(b"a film", b"the plot", shape=(1, 2)), 8)
    np.testing.assert_array_equal(pair["types"], encoder.encode([("a film", "the plot")]).inputs["types"])
    for wrong, says in (
        (text_call(b"\xff"), "UTF-8"),
        (text_call(*[b"a"] * 3, shape=(1, 3)), "expected"),
        (text_call(*[b"a"] * 9), "1 to 8 rows"),
    ):
        with pytest.raises(InputError, match=says):
            raw.prepare(wrong, 8)
    assert bytes(to_binary(bytes_array([b"a"], (1,)))) == b"\1\0\0\0a"

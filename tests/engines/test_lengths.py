"""Engines for rows of several lengths: one engine takes all of them, says so in its key, and refuses any other."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from artifacts import EngineError, EngineKey, GraphSpec, InputError, StaleArtifactError, TensorSpec, canonical_json
from engines import (
    BuildOptions,
    EngineSet,
    FakeEngine,
    GraphRunner,
    HostDevice,
    ensure_engine,
    fit_length,
    open_engine,
    plan_covers,
)
from engines.identity.keys import open_key
from engines.trt.files import PROFILES_JSON, EngineFiles, plan_profiles
from tests.export.export_graphs import GraphBuilder
from tests.export.sequence_graphs import CLASSES, LENGTHS, draw_sequences, write_sequence_encoder

pytest.importorskip("onnx")
IDS, MASK = [
    TensorSpec(name=name, dtype="int64", row_shape=(16,), length_axes=(0,)) for name in ("input_ids", "attention_mask")
]
GRAPH = GraphSpec(
    name="encoder", file="encoder.onnx", inputs=(IDS, MASK), lengths=LENGTHS,
    outputs=(TensorSpec(name="logits", dtype="float32", row_shape=(CLASSES,)),), answers=("logits",),
)  # fmt: skip
BACKENDS = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sequence_encoder(GraphBuilder, tmp_path_factory.mktemp("encoder") / "encoder.onnx")


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_engine_takes_every_length(backend: str, encoder: Path, tmp_path: Path) -> None:
    options = BuildOptions(max_batch_size=4)
    folder = ensure_engine(encoder, GRAPH, tmp_path, backend=backend, options=options)
    assert open_key(folder)[1].lengths == LENGTHS
    engine = open_engine(folder, GRAPH, threads=1)
    for rows, length in ((4, 16), (1, 4), (3, 8), (4, 4)):
        batch = draw_sequences([length, *range(1, rows)], seed=rows)
        out = np.zeros((rows, CLASSES), np.float32)
        engine.bind({**batch, "logits": out})()
        with GraphRunner(encoder) as runner:
            np.testing.assert_allclose(out, runner.run(batch)["logits"], rtol=1e-4, atol=1e-5)
    batch, out = draw_sequences([5]), np.zeros((1, CLASSES), np.float32)
    with pytest.raises(EngineError, match="rows of length 5, this engine takes 4, 8, 16; pad"):
        engine.bind({**batch, "logits": out})
    mixed = {"input_ids": np.zeros((1, 4), np.int64), "attention_mask": np.zeros((1, 8), np.int64)}
    with pytest.raises(EngineError, match="'attention_mask' has dtype int64 and rows of \\(8,\\), expected int64"):
        engine.bind({**mixed, "logits": out})
    engine.close()
    with pytest.raises(StaleArtifactError, match=r"lengths is \(4, 8, 16\), here \(4, 8\)"):
        open_engine(folder, dataclasses.replace(GRAPH, lengths=(4, 8)), threads=1)


def test_engines_of_other_lengths_are_other_engines(encoder: Path, tmp_path: Path) -> None:
    options = BuildOptions(max_batch_size=4)
    graphs = (GRAPH, dataclasses.replace(GRAPH, lengths=(4, 8)))
    first, second = (
        ensure_engine(encoder, graph, tmp_path, backend="onnxruntime", options=options) for graph in graphs
    )
    assert first != second
    key = open_key(first)[1]
    assert BuildOptions.of(key).lengths == LENGTHS


def test_a_key_without_lengths_is_written_as_ever() -> None:
    key = EngineKey(
        onnx_digest="0", backend="b", backend_version="1", device="d", precision="float32", batch_sizes=(),
        max_batch_size=4, options={},
    )  # fmt: skip
    assert "lengths" not in json.loads(canonical_json(key))
    assert json.loads(canonical_json(dataclasses.replace(key, lengths=(4, 8))))["lengths"] == [4, 8]
    assert "length_axes" not in json.loads(canonical_json(GRAPH.outputs[0]))


def test_an_engine_set_has_covers_of_its_own_at_every_length() -> None:
    fake = FakeEngine(GRAPH, max_batch_size=8)
    slow, quick = plan_covers({4: 1.0, 8: 100.0}, largest=8, fixed=True), plan_covers({8: 1.0}, largest=8, fixed=False)
    engines = EngineSet(fake, slow, {4: quick})
    assert (len(engines.cover(8)), len(engines.at_length(4).cover(8)), len(engines.at_length(8).cover(8))) == (2, 1, 2)
    view = engines.at_length(4)
    assert [spec.row_shape for spec in view.graph.inputs] == [(4,), (4,)]
    device = HostDevice()
    buffers = {spec.name: device.allocate(spec, 8) for spec in (*view.graph.inputs, *view.graph.outputs)}
    buffers["input_ids"][:] = 3
    view.bind(view.cover(8)[0], buffers)()
    assert fake.batches == [8]
    np.testing.assert_array_equal(buffers["logits"][0], np.arange(CLASSES) + 3)


@pytest.mark.parametrize(
    ("layout", "rows"),
    [
        ("range", [(1, 4, 4), (1, 4, 8), (1, 4, 16)]),
        ("per-batch", [(1, 1, 4), (4, 4, 4), (1, 1, 8), (4, 4, 8), (1, 1, 16), (4, 4, 16)]),
        ("separate", [(1, 1, 4), (4, 4, 4), (1, 1, 8), (4, 4, 8), (1, 1, 16), (4, 4, 16)]),
    ],
)
def test_tensorrt_gets_a_profile_per_batch_size_and_length(layout: str, rows: list[tuple[int, int, int]]) -> None:
    key = EngineKey(
        onnx_digest="0", backend="tensorrt", backend_version="1", device="d", precision="float32",
        batch_sizes=() if layout == "range" else (1, 4), max_batch_size=4, options={}, lengths=LENGTHS,
    )  # fmt: skip
    profiles = plan_profiles(key, separate=layout == "separate")
    assert [(profile.least, profile.most, profile.length) for profile in profiles] == rows
    by_file: dict[str, list[int]] = {}
    for profile in profiles:
        by_file.setdefault(profile.file, []).append(profile.index)
    assert all(indices == list(range(len(indices))) for indices in by_file.values())
    files = EngineFiles(inputs=GRAPH.inputs, outputs=GRAPH.outputs, profiles=profiles, activation_bytes=(0,))
    assert (files.profile_of(4, 8).length, files.profile_of(4, 8).most) == (8, 4)
    with pytest.raises(EngineError, match="no profile for a batch of 2 rows of length 5, only for"):
        files.profile_of(2, 5)


@pytest.mark.parametrize("layout", ["range", "per-batch"])
def test_a_real_build_for_several_lengths(rtx: str, encoder: Path, tmp_path: Path, layout: str) -> None:
    from artifacts import read_json

    options = BuildOptions(max_batch_size=2, profiles=layout)
    folder = ensure_engine(encoder, GRAPH, tmp_path, backend=rtx, options=options)
    files = read_json(folder / PROFILES_JSON, EngineFiles)
    assert (files.inputs, files.outputs) == (GRAPH.inputs, GRAPH.outputs)
    assert {profile.length for profile in files.profiles} == set(LENGTHS)
    with pytest.raises(EngineError, match="only the leading axis open"):
        ensure_engine(encoder, dataclasses.replace(GRAPH, lengths=()), tmp_path, backend=rtx, options=options)


def test_rows_that_fit_nothing_are_refused() -> None:
    from artifacts import SequenceSpec

    sequence = SequenceSpec(lengths=LENGTHS, mask="attention_mask")
    rows = draw_sequences([3, 20])
    with pytest.raises(InputError, match="rows 1 are up to 20 long"):
        fit_length((rows["input_ids"], rows["attention_mask"]), (IDS, MASK), sequence)
    with pytest.raises(InputError, match="a row is 17 long, .* --lengths 4,8,16,17"):
        sequence.bucket(17)

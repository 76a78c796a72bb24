"""Building, caching, vetting and opening real engines."""

from __future__ import annotations

import dataclasses
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import engines
from artifacts import (
    ArtifactError,
    CorruptArtifactError,
    EngineError,
    GraphSpec,
    MissingArtifactError,
    SchemaError,
    StaleArtifactError,
    TensorSpec,
    UsageError,
    new_artifact,
    to_plain,
    write_json,
)
from engines import BuildOptions, builder, ensure_engine, list_engines, open_engine, read_onnx_facts
from engines.identity.keys import ENGINE_JSON, open_key, rebuild_command

pytest.importorskip("onnxruntime")


def ensure(onnx: Path, graph: GraphSpec, cache: Path, *, backend: str = "onnxruntime", **settings: Any) -> Path:
    options = BuildOptions(**{"max_batch_size": 16, **settings})
    return ensure_engine(onnx, graph, cache, backend=backend, options=options)


def test_an_engine_is_built_once(onnx_file: Path, graph: GraphSpec, tmp_path: Path) -> None:
    folder = ensure(onnx_file, graph, tmp_path)
    made = (folder / "manifest.json").stat().st_mtime_ns
    assert ensure(onnx_file, graph, tmp_path) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == made
    _, key = open_key(folder)
    assert key == builder("onnxruntime", BuildOptions(max_batch_size=16)).key(onnx_file)
    assert key.precision == "float32"


def test_a_full_disk_is_named_and_leaves_no_engine(
    onnx_file: Path, graph: GraphSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise EngineError("onnxruntime failed to optimise the graph: it could not be written")

    monkeypatch.setattr("engines.ort.build.open_session", fail)
    with pytest.raises(EngineError, match="could not be written"):
        ensure(onnx_file, graph, tmp_path / "cache")
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(100_000, 99_000, 1_000))
    with pytest.raises(ArtifactError, match="no space left on the disk.*free some"):
        ensure(onnx_file, graph, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_key_is_another_engine(make_onnx: Callable[..., Path], graph: GraphSpec, tmp_path: Path) -> None:
    folders = {
        ensure(make_onnx(seed=0), graph, tmp_path),
        ensure(make_onnx(seed=1), graph, tmp_path),
        ensure(make_onnx(seed=0), graph, tmp_path, max_batch_size=8),
        ensure(make_onnx(seed=0), graph, tmp_path, batch_sizes=(4, 2)),
    }
    assert len(folders) == 4
    assert ensure(make_onnx(seed=0), graph, tmp_path, batch_sizes=(2, 4, 4)) in folders
    assert {path.parent for path in folders} == {tmp_path}


def test_the_stored_graph_is_optimised_and_its_weights_lie_beside_it(ort_folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    nodes = onnx.load(ort_folder / "graph.onnx", load_external_data=False).graph.node
    assert not any(node.op_type == "Relu" for node in nodes)  # fused into the convolutions
    assert (ort_folder / "graph.bin").stat().st_size >= 16 * 16 * 9 * 4


def test_a_fixed_engine_has_a_graph_per_batch_size(onnx_file: Path, graph: GraphSpec, tmp_path: Path) -> None:
    folder = ensure(onnx_file, graph, tmp_path, batch_sizes=(2, 8))
    assert {path.name for path in folder.glob("*.onnx")} == {"graph_b2.onnx", "graph_b8.onnx"}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"backend_version": "1.2.3"}, "backend_version is '1.2.3', here "),
        ({"device": "another processor"}, "device is 'another processor', here "),
        ({"onnx_digest": "f" * 64}, f"onnx_digest is '{'f' * 64}', here "),
    ],
)
def test_a_stale_engine_is_refused(
    republish: Callable[..., Any],
    onnx_file: Path,
    graph: GraphSpec,
    tmp_path: Path,
    changes: dict[str, Any],
    found: str,
) -> None:
    folder = ensure(onnx_file, graph, tmp_path)
    republish(folder, **changes)
    with pytest.raises(StaleArtifactError, match=f"{re.escape(found)}.*python -m engines build"):
        open_engine(folder, graph, threads=1, onnx=onnx_file)
    assert "was built for something else" in str(list_engines(tmp_path)[0].problem) or "onnx_digest" in changes


@pytest.mark.parametrize(
    "changes",
    [
        {"backend_version": "1.2.3"},
        {"device": "x"},
        {"onnx_digest": "f" * 64},
        {"precision": "float16"},
        {"batch_sizes": (2,)},
        {"max_batch_size": 99},
        {"options": {"graph_optimization": "none"}},
    ],
)
def test_a_stale_engine_in_the_cache_is_built_again(
    republish: Callable[..., Any], onnx_file: Path, graph: GraphSpec, tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = ensure(onnx_file, graph, tmp_path)
    republish(folder, **changes)
    assert ensure(onnx_file, graph, tmp_path) == folder
    open_engine(folder, graph, threads=1, onnx=onnx_file).close()


def test_an_unknown_backend_suggests_the_nearest(
    republish: Callable[..., Any], onnx_file: Path, graph: GraphSpec, tmp_path: Path
) -> None:
    folder = ensure(onnx_file, graph, tmp_path)
    republish(folder, backend="onnxrutime")
    with pytest.raises(UsageError, match="Did you mean 'onnxruntime'"):
        open_engine(folder, graph, threads=1)
    with pytest.raises(UsageError, match="Did you mean 'onnxruntime'"):
        ensure(onnx_file, graph, tmp_path, backend="onnx-runtime")


@pytest.mark.parametrize("name", ["graph.onnx", "graph.bin", "engine.json"])
def test_a_flipped_byte_is_refused_and_built_again(
    flip: Callable[..., Any],
    onnx_file: Path,
    graph: GraphSpec,
    tmp_path: Path,
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = ensure(onnx_file, graph, tmp_path)
    flip(folder / name)
    with pytest.raises(CorruptArtifactError, match=f"{name} differs .*python -m engines build"):
        open_engine(folder, graph, threads=1)
    assert "differs" in str(list_engines(tmp_path, check_bytes=True)[0].problem)
    with caplog.at_level(logging.WARNING, "pame.engines"):
        ensure(onnx_file, graph, tmp_path)
    assert "rebuilding a damaged engine" in caplog.text
    open_engine(folder, graph, threads=1).close()


def test_an_absent_or_foreign_folder_is_refused(graph: GraphSpec, tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="python -m engines build"):
        open_engine(tmp_path / "none", graph, threads=1)
    with new_artifact(tmp_path / "trace", kind="trace") as new:
        (new / "x").write_text("")
    with pytest.raises(SchemaError, match="holds a trace, not a engine"):
        open_engine(tmp_path / "trace", graph, threads=1)


def test_a_key_of_a_newer_pame_is_refused(onnx_file: Path, graph: GraphSpec, tmp_path: Path) -> None:
    folder = ensure(onnx_file, graph, tmp_path)
    _, key = open_key(folder)
    with new_artifact(folder, kind="engine") as new:
        write_json(new / ENGINE_JSON, {**to_plain(key), "novelty": 1})
    with pytest.raises(SchemaError, match=r"unknown keys \['novelty'\]"):
        open_engine(folder, graph, threads=1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("inputs", TensorSpec(name="x", dtype="float16", row_shape=(1, 6, 6)), "its inputs are x tensor.float."),
        ("inputs", TensorSpec(name="x", dtype="float32", row_shape=(1, 6, 7)), "its inputs"),
        ("inputs", TensorSpec(name="x", dtype="float32", row_shape=(36,)), "its inputs"),
        ("inputs", TensorSpec(name="image", dtype="float32", row_shape=(1, 6, 6)), "expected image"),
        ("outputs", TensorSpec(name="logits", dtype="float32", row_shape=(4,)), "its outputs"),
    ],
)
def test_an_engine_of_another_graph_is_refused(
    ort_folder: Path, graph: GraphSpec, field: str, value: TensorSpec, message: str
) -> None:
    changed: dict[str, Any] = {field: (value,)}
    other = dataclasses.replace(graph, **changed)
    with pytest.raises(EngineError, match=message):
        open_engine(ort_folder, other, threads=1)


def test_threads_are_checked(ort_folder: Path, graph: GraphSpec) -> None:
    with pytest.raises(UsageError, match="threads=0"):
        open_engine(ort_folder, graph, threads=0)


def test_a_fixed_batch_axis_is_refused_for_any_size(
    make_onnx: Callable[..., Path], graph: GraphSpec, tmp_path: Path
) -> None:
    onnx = make_onnx(batch=4)
    with pytest.raises(EngineError, match=r"any batch size: the leading axes of its inputs are \['4'\]"):
        ensure(onnx, graph, tmp_path)
    with pytest.raises(EngineError, match="batch size 2"):
        ensure(onnx, graph, tmp_path, batch_sizes=(2,))
    assert list(tmp_path.iterdir()) == []  # nothing half-built
    open_engine(ensure(onnx, graph, tmp_path, batch_sizes=(4,)), graph, threads=1).close()


def test_a_graph_that_the_backend_refuses_is_named(graph: GraphSpec, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    body = helper.make_graph(
        [helper.make_node("Novelty", ["x"], ["y"], name="node_7", domain="nowhere")],
        "g",
        [helper.make_tensor_value_info("x", floats, ["b", 2])],
        [helper.make_tensor_value_info("y", floats, ["b", 2])],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)]
    onnx.save(helper.make_model(body, opset_imports=opsets, ir_version=10), tmp_path / "bad.onnx")
    with pytest.raises(EngineError, match="onnxruntime .* failed to load .*bad.onnx.*(node_7|Novelty)"):
        ensure(tmp_path / "bad.onnx", graph, tmp_path / "cache")
    assert list_engines(tmp_path / "cache") == ()


def test_a_file_that_is_not_a_graph_is_refused(graph: GraphSpec, tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a graph at all")
    with pytest.raises(EngineError, match=r"text.onnx is not an ONNX graph"):
        ensure(tmp_path / "text.onnx", graph, tmp_path / "cache")
    with pytest.raises(EngineError, match=r"cannot read .*none.onnx"):
        ensure(tmp_path / "none.onnx", graph, tmp_path / "cache")
    with pytest.raises(UsageError, match="within 1 to max_batch_size=0"):
        ensure(tmp_path / "text.onnx", graph, tmp_path / "cache", max_batch_size=0)


def test_a_killed_build_leaves_no_engine(onnx_file: Path, graph: GraphSpec, tmp_path: Path) -> None:
    folder = ensure(onnx_file, graph, tmp_path)
    left_behind = tmp_path / f".{folder.name}.new-999999999-00aa"
    shutil.copytree(folder, left_behind)
    shutil.rmtree(folder)
    assert list_engines(tmp_path) == ()
    assert ensure(onnx_file, graph, tmp_path) == folder
    assert not left_behind.exists()


def test_facts_are_read_without_onnx(flip: Callable[..., Any], make_onnx: Callable[..., Path], tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    plain, external = make_onnx(), make_onnx(external=True)
    assert read_onnx_facts(plain).precision == "float32"
    before = read_onnx_facts(external).digest
    flip(external.parent / "w.data")
    assert read_onnx_facts(external).digest != before
    (external.parent / "w.data").unlink()
    with pytest.raises(EngineError, match="'w.data', which is missing"):
        read_onnx_facts(external)

    model = onnx.load(plain)
    model.graph.node.append(onnx.helper.make_node("QuantizeLinear", ["x", "s"], ["q"]))
    model.graph.initializer.append(onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT16, [1], [1.0]))
    onnx.save(model, tmp_path / "mixed.onnx")
    assert read_onnx_facts(tmp_path / "mixed.onnx").precision == "float16+float32+int8"


def test_weights_outside_the_folder_are_refused(make_onnx: Callable[..., Path]) -> None:
    onnx = pytest.importorskip("onnx")
    path = make_onnx(external=True)
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../w.data"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match=r"'../w.data', outside its folder"):
        read_onnx_facts(path)


def test_a_truncated_graph_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    data = onnx_file.read_bytes()
    path = tmp_path / "cut.onnx"
    for size in range(0, len(data) - 1, 97):
        path.write_bytes(data[:size])
        with pytest.raises(EngineError, match="is not an ONNX graph"):
            read_onnx_facts(path)


def test_the_rebuild_command_depends_on_the_engines_folder(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "tiny"
    (run / "model").mkdir(parents=True)
    (run / "bundle" / "engines" / "stage_00").mkdir(parents=True)
    (run / "bundle" / "bundle.json").write_text("{}")
    assert rebuild_command(run / "engines" / "abc") == f"python -m engines build --run {run}"
    bundled = rebuild_command(run / "bundle" / "engines" / "stage_00")
    assert bundled == f"python -m engines build --bundle {run / 'bundle'}"
    assert rebuild_command(tmp_path / "elsewhere") == "python -m engines build"


def test_the_public_api_is_pinned() -> None:
    assert sorted(engines.__all__) == [
        "BACKENDS", "Branch", "Buffer", "BuildOptions", "BuildWatch", "CachedEngine", "CapturedChain", "Covers",
        "DEFAULT_BACKEND", "Departure", "Device", "DeviceArray", "DeviceOptions", "Engine", "EngineBuilder",
        "EngineSet", "Execution", "FakeEngine", "GraphRunner", "HostDevice", "PROFILE_WAYS", "Run", "StageWork",
        "arithmetic_of", "as_gpuarray", "build_engine", "builder", "choose_backend", "choose_branches",
        "ensure_engine", "find_length", "fit_length", "fixed_batch_sizes", "in_float32", "is_device_array",
        "list_engines", "open_device", "open_engine",
        "open_key", "plan_covers", "read_onnx_facts", "resize_rows", "row_lengths", "run_graph", "share_scratch",
        "wrap_allocation",
    ]  # fmt: skip

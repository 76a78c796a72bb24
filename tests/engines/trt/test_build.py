"""Real builds with TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import EngineError, GraphSpec, TensorSpec, UsageError, read_json, read_manifest
from engines import BuildOptions, BuildWatch, build_engine, builder, ensure_engine, list_engines
from engines.identity.keys import BUILD_SECONDS, open_key
from engines.identity.onnx_facts import read_interface_names
from engines.trt.files import PROFILES_JSON, EngineFiles
from engines.trt.library import PORTABLE_DEVICE, clean_message

onnx = pytest.importorskip("onnx")
MAGIC = b"vtrt"


def build(path: Path, graph: GraphSpec, cache: Path, **settings: Any) -> tuple[Path, EngineFiles]:
    options = BuildOptions(**{"max_batch_size": 8, **settings})
    folder = ensure_engine(path, graph, cache, backend="tensorrt-rtx", options=options)
    return folder, read_json(folder / PROFILES_JSON, EngineFiles)


def write_graph(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], *weights: Any) -> Path:
    body = onnx.helper.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("nowhere", 1)]
    onnx.save(onnx.helper.make_model(body, opset_imports=opsets, ir_version=10), path)
    return path


def floats(name: str, *shape: int | str) -> Any:
    return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


@pytest.mark.parametrize(
    ("profiles", "sizes", "names", "rows"),
    [
        (None, (), ["engine.trt"], [(1, 8, 8)]),
        ("range", (), ["engine.trt"], [(1, 8, 8)]),
        ("per-batch", (), ["engine.trt"], [(1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8)]),
        ("per-batch", (1, 6), ["engine.trt"], [(1, 1, 1), (6, 6, 6)]),
        ("separate", (1, 8), ["engine_b1.trt", "engine_b8.trt"], [(1, 1, 1), (8, 8, 8)]),
    ],
)
def test_an_engine_in_every_profile_layout(
    rtx: str, onnx_file: Path, graph: GraphSpec, tmp_path: Path,
    profiles: str | None, sizes: tuple[int, ...], names: list[str], rows: list[tuple[int, int, int]],
) -> None:  # fmt: skip
    folder, files = build(onnx_file, graph, tmp_path, profiles=profiles, batch_sizes=sizes)
    assert sorted(path.name for path in folder.glob("*.trt")) == names
    assert [(profile.least, profile.best, profile.most) for profile in files.profiles] == rows
    assert (files.inputs, files.outputs) == (graph.inputs, graph.outputs)
    assert len(files.activation_bytes) == len(names)
    assert all(size > 0 for size in files.activation_bytes)
    for name in names:
        content = (folder / name).read_bytes()
        assert content.startswith(MAGIC)
        assert all(spec.name.encode() in content for spec in (*graph.inputs, *graph.outputs))
    _, key = open_key(folder)
    assert (key.backend, key.device, key.precision) == (rtx, PORTABLE_DEVICE, "float32")
    assert BuildOptions.of(key).profiles == (profiles or "range")
    assert float(read_manifest(folder).environment[BUILD_SECONDS]) > 0


def test_an_engine_is_built_once_per_layout(rtx: str, onnx_file: Path, graph: GraphSpec, tmp_path: Path) -> None:
    first, _ = build(onnx_file, graph, tmp_path)
    made = (first / "manifest.json").stat().st_mtime_ns
    assert build(onnx_file, graph, tmp_path, profiles="range")[0] == first
    assert (first / "manifest.json").stat().st_mtime_ns == made
    assert build(onnx_file, graph, tmp_path, profiles="per-batch")[0] != first
    assert len(list_engines(tmp_path)) == 2


def test_weights_are_stored_once_for_all_profiles(rtx: str, tmp_path: Path) -> None:
    """The weights are much larger than the kernels here, so the file sizes show it.

    There is no batch of 1: a product with a single row is a kernel of its own with a layout of its own, and its weights
    are stored once more (docs/adr/0006).
    """
    weight = onnx.numpy_helper.from_array(np.random.default_rng(0).standard_normal((1024, 1024), np.float32), "w")
    path = write_graph(
        tmp_path / "wide.onnx", [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        [floats("x", "batch", 1024)], [floats("y", "batch", 1024)], weight,
    )  # fmt: skip
    spec = [TensorSpec(name=name, dtype="float32", row_shape=(1024,)) for name in "xy"]
    graph = GraphSpec(name="wide", file="wide.onnx", inputs=(spec[0],), outputs=(spec[1],))
    sizes = {
        layout: sum(
            path.stat().st_size
            for path in build(path, graph, tmp_path / "cache", profiles=layout, batch_sizes=sizes)[0].glob("*.trt")
        )
        for layout, sizes in {"range": (), "per-batch": (2, 4, 8), "separate": (2, 4, 8)}.items()
    }
    assert sizes["range"] >= 4 * 1024**2
    assert sizes["per-batch"] <= 1.1 * sizes["range"]
    assert sizes["separate"] >= 2.8 * sizes["range"]


def test_types_other_than_float_are_preserved(rtx: str, tmp_path: Path) -> None:
    helper, types = onnx.helper, onnx.TensorProto
    table = onnx.numpy_helper.from_array(np.ones((7, 4), np.float16), "table")
    path = write_graph(
        tmp_path / "ids.onnx",
        [
            helper.make_node("Gather", ["table", "ids"], ["rows"]),
            helper.make_node("Where", ["mask", "rows", "low"], ["y"]),
        ],
        [helper.make_tensor_value_info("ids", types.INT64, ["b", 3]),
         helper.make_tensor_value_info("mask", types.BOOL, ["b", 3, 1])],
        [helper.make_tensor_value_info("y", types.FLOAT16, ["b", 3, 4])],
        table, onnx.numpy_helper.from_array(np.array(-1e4, np.float16), "low"),
    )  # fmt: skip
    graph = GraphSpec(
        name="ids", file="ids.onnx",
        inputs=(TensorSpec(name="ids", dtype="int64", row_shape=(3,)),
                TensorSpec(name="mask", dtype="bool", row_shape=(3, 1))),
        outputs=(TensorSpec(name="y", dtype="float16", row_shape=(3, 4)),),
    )  # fmt: skip
    folder, files = build(path, graph, tmp_path / "cache")
    assert (files.inputs, files.outputs) == (graph.inputs, graph.outputs)
    assert open_key(folder)[1].precision == "float16"


def test_a_parser_error_names_node_operator_and_reason(rtx: str, graph: GraphSpec, tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["r"], name="fine"),
        onnx.helper.make_node("Novelty", ["r"], ["y"], name="node_7", domain="nowhere"),
    ]
    path = write_graph(tmp_path / "bad.onnx", nodes, [floats("x", "b", 2)], [floats("y", "b", 2)])
    with pytest.raises(
        EngineError,
        match=r"TensorRT-RTX 1\.7\S* cannot parse .*bad.onnx: node 'node_7', operator Novelty: .*Plugin not found",
    ):
        build(path, graph, tmp_path / "cache")
    assert list_engines(tmp_path / "cache") == ()
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_build_error_names_the_layer(rtx: str, graph: GraphSpec, tmp_path: Path) -> None:
    shape = onnx.numpy_helper.from_array(np.array([-1, 4]), "s")
    nodes = [onnx.helper.make_node("Reshape", ["x", "s"], ["y"], name="bad_reshape")]
    path = write_graph(tmp_path / "bad.onnx", nodes, [floats("x", "b", 6)], [floats("y", "b", 4)], shape)
    with pytest.raises(
        EngineError, match=r"failed to build .*bad_reshape: reshape wildcard -1 has no integer"
    ) as caught:
        build(path, graph, tmp_path / "cache", profiles="separate", batch_sizes=(1,))
    assert ".cpp" not in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_tensor_that_passes_through_is_refused(rtx: str, graph: GraphSpec, tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    inputs = [floats("x", "b", 2), floats("mask", "b", 2)]
    path = write_graph(tmp_path / "pass.onnx", nodes, inputs, [floats("y", "b", 2), floats("mask", "b", 2)])
    assert read_interface_names(path) == (("x", "mask"), ("y", "mask"))
    with pytest.raises(EngineError, match=r"sees other inputs in .*no input is an output"):
        build(path, graph, tmp_path / "cache")


def test_a_fixed_batch_axis_fits_one_batch_size(
    rtx: str, make_onnx: Callable[..., Path], graph: GraphSpec, tmp_path: Path
) -> None:
    path = make_onnx(batch=4)
    with pytest.raises(EngineError, match="cannot be built for 1 to 8 rows: the leading axis of its input 'x' is 4"):
        build(path, graph, tmp_path)
    with pytest.raises(EngineError, match="batch sizes 2"):
        build(path, graph, tmp_path, profiles="per-batch", batch_sizes=(2,))
    build(path, graph, tmp_path, profiles="per-batch", batch_sizes=(4,))


def test_an_open_row_shape_is_refused(rtx: str, graph: GraphSpec, tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    path = write_graph(tmp_path / "open.onnx", nodes, [floats("x", "b", "n")], [floats("y", "b", "n")])
    with pytest.raises(EngineError, match="tensor 'x' .* only the leading axis open"):
        build(path, graph, tmp_path / "cache")


def test_range_and_batch_sizes_do_not_go_together(rtx: str, onnx_file: Path, graph: GraphSpec, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="takes any from 1 to 8"):
        build(onnx_file, graph, tmp_path, batch_sizes=(2,))
    with pytest.raises(UsageError, match="onnxruntime has no shape profiles"):
        builder("onnxruntime", BuildOptions(max_batch_size=8, profiles="range"))


def test_progress_is_reported_to_the_end(rtx: str, onnx_file: Path, graph: GraphSpec, tmp_path: Path) -> None:
    reported: list[tuple[str, float]] = []
    watch = BuildWatch(report=lambda phase, fraction: reported.append((phase, fraction)))
    build(onnx_file, graph, tmp_path, profiles="separate", batch_sizes=(1, 8), watch=watch)
    fractions = [fraction for _, fraction in reported]
    assert fractions == sorted(fractions)
    assert len(set(fractions)) > 20
    assert fractions[-1] == 1
    assert {0.5} <= set(fractions)  # the first of two engines
    assert len({phase for phase, _ in reported}) > 3


@pytest.mark.parametrize("after", [1, 10, 40])
def test_a_cancelled_build_leaves_nothing(
    rtx: str, onnx_file: Path, graph: GraphSpec, tmp_path: Path, after: int
) -> None:
    reported: list[str] = []
    watch = BuildWatch(report=lambda phase, _: reported.append(phase), cancelled=lambda: len(reported) >= after)
    with pytest.raises(EngineError, match="the build of tiny.onnx was cancelled; nothing was published"):
        build(onnx_file, graph, tmp_path, watch=watch)
    assert after <= len(reported) < after + 20  # it ended soon
    assert list(tmp_path.iterdir()) == []
    build(onnx_file, graph, tmp_path)


def test_ctrl_c_ends_a_build(rtx: str, onnx_file: Path, graph: GraphSpec, tmp_path: Path) -> None:
    reported: list[str] = []

    def interrupt(phase: str, _fraction: float) -> None:
        reported.append(phase)
        if len(reported) == 10:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(onnx_file, graph, tmp_path, watch=BuildWatch(report=interrupt))
    assert len(reported) < 30
    assert signal.getsignal(signal.SIGINT) is before
    assert list(tmp_path.iterdir()) == []


def test_a_watch_that_fails_ends_the_build_with_its_own_error(
    rtx: str, onnx_file: Path, graph: GraphSpec, tmp_path: Path
) -> None:
    def fail(_phase: str, _fraction: float) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        build(onnx_file, graph, tmp_path, watch=BuildWatch(report=fail))
    assert list(tmp_path.iterdir()) == []


def test_builds_in_threads_take_turns(rtx: str, onnx_file: Path, graph: GraphSpec, tmp_path: Path) -> None:
    key = builder(rtx, BuildOptions(max_batch_size=8)).key(onnx_file)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda index: build_engine(onnx_file, tmp_path / str(index), key), range(3)))
    assert all(engine.problem is None for engine in list_engines(tmp_path))


def test_messages_are_cleaned_of_source_positions() -> None:
    message = "IBuilder: Error 4 (Layer r: no. In operator() at /_src/a.cpp:4 In analyze at /_src/b.cpp:2)"
    assert clean_message(message) == "IBuilder: Error 4 (Layer r: no.)"
    assert clean_message("one\ntwo In plain words at last") == "one two In plain words at last"

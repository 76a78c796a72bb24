"""Stages as they are deployed, built by TensorRT-RTX: convolutions, and an encoder with its mask; fp32 and fp16.

A few of them with every test run; all of the demo network (``make test-engines``) take a minute or two.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import GraphSpec, Model, PameError, RunFolder
from engines import PROFILE_WAYS, BuildOptions, ensure_engine, fixed_batch_sizes
from engines.identity.keys import open_key
from engines.trt.files import EngineFiles
from engines.trt.library import load_tensorrt
from engines.trt.vetting import vet_trt_engine
from export import ExportOptions, add_heads, build_missing_heads, export_model, export_torch, merge_stage
from tests.planner.source_worlds import SHAPE, write_conv_file

SIZES = (1, 8, 32)
PRECISIONS = ("fp32", "fp16")


@pytest.fixture(scope="module", autouse=True)
def _rtx() -> None:
    try:
        load_tensorrt("tensorrt-rtx")
    except PameError as error:
        pytest.skip(str(error))


def build(path: Path, graph: GraphSpec, cache: Path, way: str) -> EngineFiles:
    """Builds a graph and vets what came out against its interface, as opening would."""
    options = BuildOptions(max_batch_size=32, batch_sizes=SIZES, profiles=way)
    options = dataclasses.replace(options, batch_sizes=fixed_batch_sizes("tensorrt-rtx", options))
    folder = ensure_engine(path, graph, cache, backend="tensorrt-rtx", options=options)
    artifact, key = open_key(folder)
    files = vet_trt_engine(artifact, key, graph)
    assert {size: files.profile_of(size).most >= size for size in SIZES} == dict.fromkeys(SIZES, True)
    for name in files.files:
        content = artifact.path(name).read_bytes()
        assert all(spec.name.encode() in content for spec in (*graph.inputs, *graph.outputs))
    return files


def deployed_stages(model: Model, folder: Path) -> Iterator[tuple[Path, GraphSpec]]:
    """Yields every stage of the plan that uses all exits."""
    folder.mkdir()
    bounds = [None, *(cut.name for cut in model.spec.candidates), None]
    for index, (after, until) in enumerate(itertools.pairwise(bounds)):
        path = folder / f"stage_{index:02d}.onnx"
        yield path, merge_stage(model, after=after, until=until, path=path)


def with_heads(model: Model) -> Model:
    return add_heads(model, build_missing_heads(model), inputs={"training": "none"})


def export_encoder(run: RunFolder, precision: str, **sizes: int) -> Model:
    source = Path(__file__).parents[2] / "benchmarks" / "bert_encoder.py"
    spec = importlib.util.spec_from_file_location("bert_encoder", source)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import torch

    torch.manual_seed(0)
    net = module.BertEncoder(**sizes)
    inputs = module.example_inputs(sizes["length"])
    result = export_torch(
        run, net, inputs, input_names=["ids", "mask"], output_names=["logits"],
        options=ExportOptions(every=2, precision=precision),
    )  # fmt: skip
    return with_heads(result.model)


@pytest.mark.parametrize(("fixture", "wanted"), [("tiny_with_heads", "float32"), ("half_model", "float16")])
def test_stages_of_a_small_convnet(tmp_path: Path, fixture: str, wanted: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(fixture)
    stages = list(deployed_stages(model, tmp_path / "stages"))
    assert len(stages) == 3
    for way in PROFILE_WAYS:
        path, graph = stages[1]
        files = build(path, graph, tmp_path / "cache", way)
        assert [spec.dtype for spec in files.inputs] == [wanted]
        assert {spec.name: spec.dtype for spec in files.outputs}[str(graph.confidence)] == "float32"


@pytest.mark.parametrize("precision", PRECISIONS)
def test_stages_of_a_small_encoder_with_its_mask(tmp_path: Path, precision: str) -> None:
    model = export_encoder(
        RunFolder(root=tmp_path / "run"), precision, layers=2, width=32, heads=2, tokens=50, length=8
    )
    carried = [tensor for cut in model.spec.cuts for tensor in cut.carried]
    assert carried
    stages = list(deployed_stages(model, tmp_path / "stages"))
    masked = [(path, graph) for path, graph in stages if set(carried) & set(graph.inputs)]
    assert masked
    for way in PROFILE_WAYS:
        build(*masked[-1], tmp_path / "cache", way)


@pytest.fixture(scope="module", params=PRECISIONS)
def demo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The network of the demo, with its trained exit heads."""
    run = RunFolder(root=tmp_path_factory.mktemp("runs") / "resnet")
    return export_model(run, ExportOptions(precision=request.param)).model


@pytest.fixture(scope="module", params=PRECISIONS)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A BERT of 6 layers."""
    run = RunFolder(root=tmp_path_factory.mktemp("runs") / "bert")
    return export_encoder(run, request.param, layers=6, width=128, heads=4, tokens=1000, length=64)


@pytest.mark.engines
@pytest.mark.parametrize("way", PROFILE_WAYS)
def test_every_graph_and_stage_of_the_demo_network(demo: Model, tmp_path: Path, way: str) -> None:
    spec = demo.spec
    assert spec.final_head is not None
    graphs = [(demo.path(graph), graph) for graph in (spec.full, *spec.segments, *spec.heads.values(), spec.final_head)]
    stages = list(deployed_stages(demo, tmp_path / "stages"))
    exits = len(spec.heads)
    assert exits >= 7
    assert (len(graphs), len(stages)) == (len(spec.segments) + exits + 2, exits + 1)
    for path, graph in [*graphs, *stages]:
        build(path, graph, tmp_path / "cache", way)


@pytest.mark.engines
@pytest.mark.parametrize("way", PROFILE_WAYS)
def test_every_stage_of_a_bert_encoder(encoder: Model, tmp_path: Path, way: str) -> None:
    stages = list(deployed_stages(encoder, tmp_path / "stages"))
    assert len(stages) >= 3
    for path, graph in stages:
        build(path, graph, tmp_path / "cache", way)


@pytest.mark.engines
def test_stages_in_int8_with_zero_points_of_0(tmp_path: Path) -> None:
    rows = {"x": np.random.default_rng(0).standard_normal((64, *SHAPE), np.float32)}
    options = ExportOptions(
        source=str(write_conv_file(tmp_path)), precision="int8-symmetric", rows=lambda _run, _count: rows
    )  # fmt: skip
    model = with_heads(export_model(RunFolder(root=tmp_path / "run"), options).model)
    assert {cut.main.dtype for cut in model.spec.cuts} == {"int8"}
    assert {cut.main.quantised.zero_point for cut in model.spec.cuts if cut.main.quantised is not None} == {0}
    for path, graph in deployed_stages(model, tmp_path / "stages"):
        files = build(path, graph, tmp_path / "cache", PROFILE_WAYS[0])
        assert {spec.name: spec.dtype for spec in files.inputs} == {spec.name: spec.dtype for spec in graph.inputs}

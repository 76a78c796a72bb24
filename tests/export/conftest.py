"""Small real networks: hand-written ONNX graphs, and one exported ResNet per session."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable

import pytest

from artifacts import Model, RunFolder, open_model
from export import add_heads, build_missing_heads, export_model
from tests.export.export_graphs import TINY, GraphBuilder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A ResNet-20 on 12x12 images with random weights, cut after blocks 3, 6 and 9; no heads."""
    run = RunFolder(root=tmp_path_factory.mktemp("runs") / "tiny")
    export_model(run, TINY)
    return run


@pytest.fixture(scope="session")
def tiny_with_heads(tiny_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The same with (untrained) exit heads at both candidates."""
    run = RunFolder(root=tmp_path_factory.mktemp("runs") / "tiny-heads")
    shutil.copytree(tiny_run.model, run.model)
    model = export_model(run, TINY).model
    return add_heads(model, build_missing_heads(model), inputs={"training": "none"})


@pytest.fixture(scope="session")
def half_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The same network as in ``tiny_run`` in fp16; no heads."""
    run = RunFolder(root=tmp_path_factory.mktemp("runs") / "tiny16")
    export_model(run, dataclasses.replace(TINY, precision="fp16"))
    return run


@pytest.fixture(scope="session")
def half_model(half_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The same with (untrained) exit heads, which were exported after it."""
    run = RunFolder(root=tmp_path_factory.mktemp("runs") / "tiny16-heads")
    shutil.copytree(half_run.model, run.model)
    model = open_model(run.model, remedy="")
    return add_heads(model, build_missing_heads(model), inputs={"training": "none"})


@pytest.fixture
def graph() -> Callable[..., GraphBuilder]:
    return GraphBuilder

"""Tests of reading: weights beside the file at any size, and files that are empty, cut short or incomplete."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from artifacts import InputError, RunFolder, copy_folder, open_model
from engines import run_graph
from export import ExportOptions, ExportResult, add_heads, build_missing_heads, export_model, merge_stage
from export.cli import main
from export.graphs import files, probing, reading
from tests.export.export_graphs import write_convnet

WEIGHTS = "net.onnx_data"


def write_with_sidecar(graph: Any, folder: Path, *, threshold: int = 64) -> Path:
    """A network whose weights lie beside it, under the name that optimum gives them."""
    folder.mkdir(exist_ok=True)
    path = write_convnet(graph, folder / "net.onnx")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location=WEIGHTS, size_threshold=threshold)
    assert (folder / WEIGHTS).is_file()
    return path


def export(path: Path, run: Path, **options: Any) -> ExportResult:
    return export_model(RunFolder(root=run), ExportOptions(source=str(path), **options))


@pytest.mark.parametrize("limit", [1 << 30, 100])
def test_weights_beside_the_file_are_read_from_any_folder(
    graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """With a low limit, as for networks of more than 2 GB: nothing is put into one message."""
    for module in (files, probing, reading):
        monkeypatch.setattr(module, "PROTO_LIMIT", limit)
    path = write_with_sidecar(graph, tmp_path / "models")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = export(Path("../models/net.onnx"), tmp_path / "run").model
    rows = {"image": np.random.default_rng(0).standard_normal((3, 3, 8, 8), dtype=np.float32)}
    np.testing.assert_allclose(
        run_graph(model.path(model.spec.full), rows)["answer"], run_graph(path, rows)["answer"], rtol=1e-5
    )
    model = add_heads(model, build_missing_heads(model), inputs={"training": "none"})
    merge_stage(model, after=None, until="early", path=tmp_path / "stage.onnx")
    assert "early/answer" in run_graph(tmp_path / "stage.onnx", rows)


def test_weights_beside_the_file_decide_whether_a_run_is_current(graph: Any, tmp_path: Path) -> None:
    path = write_with_sidecar(graph, tmp_path / "models")
    first = export(path, tmp_path / "run")
    moved = tmp_path / "moved"
    shutil.copytree(path.parent, moved)
    (moved / "net.data").write_bytes(b"of another network")
    assert export(moved / "net.onnx", tmp_path / "run").reused, "the same bytes in another place"
    content = bytearray((moved / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (moved / WEIGHTS).write_bytes(content)
    other = export(moved / "net.onnx", tmp_path / "run")
    assert not other.reused
    assert other.model.digest != first.model.digest


def test_shapes_beside_the_file_are_read_though_onnxruntime_refuses_them(graph: Any, tmp_path: Path) -> None:
    path = write_with_sidecar(graph, tmp_path / "models", threshold=0)
    assert export(path, tmp_path / "run").parity.source_relative < 1e-6


def test_weights_that_are_missing_cut_short_or_elsewhere_are_named(graph: Any, tmp_path: Path) -> None:
    path = write_with_sidecar(graph, tmp_path / "models")
    beside = path.parent / WEIGHTS
    content = beside.read_bytes()
    beside.write_bytes(content[:-4])
    with pytest.raises(InputError, match=r"net\.onnx_data is cut short: \d+ bytes, and 'w\d' of net\.onnx ends at"):
        export(path, tmp_path / "run")
    beside.unlink()
    with pytest.raises(
        InputError, match=r"lies in .*net\.onnx_data, and there is no such file. Put the weights beside"
    ):
        export(path, tmp_path / "run")
    (tmp_path / WEIGHTS).write_bytes(content)
    model = onnx.load(path, load_external_data=False)
    for tensor in [tensor for tensor in model.graph.initializer if tensor.external_data]:
        tensor.external_data[0].value = f"../{WEIGHTS}"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="outside the file's folder. Save the network again"):
        export(path, tmp_path / "run")


def test_an_empty_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").touch()
    with pytest.raises(InputError, match=r"it is empty \(0 bytes\). Download or export it again"):
        export(tmp_path / "net.onnx", tmp_path / "run")


def test_a_file_in_capitals_is_a_file(graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_convnet(graph, tmp_path / "NET.ONNX")
    assert main(["NET.ONNX", "--segments"]) == 0
    assert (tmp_path / "runs/NET/model/full.onnx").is_file()


@pytest.mark.parametrize("limit", [1 << 30, 100])
@pytest.mark.parametrize("links", ["hub", "folder", "hard"])
def test_weights_behind_links_are_read(
    graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: str, limit: int
) -> None:
    """As the cache of the Hugging Face hub has them, and copies that are made by links."""
    for module in (files, probing, reading):
        monkeypatch.setattr(module, "PROTO_LIMIT", limit)
    path = write_with_sidecar(graph, tmp_path / "blobs", threshold=0)
    plain = export(path, tmp_path / "plain" / "net").model
    linked = tmp_path / "snapshots" / "1"
    linked.parent.mkdir()
    if links == "folder":
        linked.symlink_to(path.parent)
    else:
        linked.mkdir()
        for file in path.parent.iterdir():
            if links == "hard":
                (linked / file.name).hardlink_to(file)
            else:
                (linked / file.name).symlink_to(Path("..", "..", "blobs", file.name))
    model = export(linked / path.name, tmp_path / "run" / "net").model
    assert model.digest == plain.digest


def test_a_run_that_was_copied_by_links_is_read(graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files, probing, reading):
        monkeypatch.setattr(module, "PROTO_LIMIT", 100)
    export(write_convnet(graph, tmp_path / "net.onnx"), tmp_path / "run")
    copy_folder(tmp_path / "run" / "model", tmp_path / "copy" / "model")
    model = open_model(tmp_path / "copy" / "model", remedy="")
    assert any(file.suffix == ".data" and file.stat().st_nlink > 1 for file in (tmp_path / "copy").rglob("*"))
    model = add_heads(model, build_missing_heads(model), inputs={"training": "none"})
    merge_stage(model, after=None, until="early", path=tmp_path / "stage.onnx")
    rows = {"image": np.random.default_rng(0).standard_normal((3, 3, 8, 8), dtype=np.float32)}
    assert "early/answer" in run_graph(tmp_path / "stage.onnx", rows)

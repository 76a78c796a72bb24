"""Tests of sources: the command line of an export is recorded, and every remedy names it."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artifacts import CorruptArtifactError, GraphError, Model, RunFolder, UsageError, open_model, recorded_command
from export import ExportOptions, build_missing_heads, ensure_model, export_model, merge_stage, publish_net, rebuild_net
from export.cli import main, make_parser, read_options
from export.nets.resnet import FAMILY
from tests.export.export_graphs import TINY, TINY_NET, write_convnet


def test_the_remedy_for_an_imported_network_names_its_file(
    graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_convnet(graph, tmp_path / "my net.onnx")
    assert main(["my net.onnx", "--segments", "--run", "mine", "--every", "1"]) == 0
    run = RunFolder(root=Path("mine"))
    command = f"python -m export '{tmp_path}/my net.onnx' --segments --every 1 --run mine"
    assert recorded_command(run.model) == command
    with (run.model / "full.onnx").open("r+b") as stream:
        stream.write(b"\xff")
    with pytest.raises(CorruptArtifactError) as caught:
        ensure_model(run)
    assert command in str(caught.value)
    assert "resnet" not in str(caught.value)
    assert main([*shlex.split(command)[3:], "--json", "-"]) == 0


def test_a_command_says_what_the_options_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunFolder(root=Path("runs/x y"))
    assert ExportOptions(segments=False).command(run) == "python -m export resnet --run 'runs/x y'"
    plain = ExportOptions(net=TINY_NET, every=2, head="simple", precision="fp16", weights=str(tmp_path / "w.pth"))
    words = shlex.split(plain.command(run))
    assert read_options(make_parser(FAMILY).parse_args(words[3:]), FAMILY) == plain
    file = ExportOptions(source=str(tmp_path / "n.onnx"), input_shapes={"": (3, 8, 8), "mask": (5,)})
    words = shlex.split(file.command(run))
    assert read_options(make_parser().parse_args(words[3:]), None) == file
    assert str(tmp_path / "w.pth") in replace(plain, weights="w.pth").command(run)


def test_heads_and_training_keep_the_command(tiny_run: RunFolder, tiny_with_heads: Model) -> None:
    command = TINY.command(tiny_run)
    assert recorded_command(tiny_run.model) == command
    assert recorded_command(tiny_with_heads.artifact.folder) == command
    published = publish_net(tiny_with_heads, rebuild_net(tiny_with_heads), inputs={"training": "none"})
    assert recorded_command(published.artifact.folder) == command


def test_a_missing_exit_head_is_refused_with_the_run_to_train(tiny_run: RunFolder, tmp_path: Path) -> None:
    model = open_model(tiny_run.model, remedy="")
    with pytest.raises(GraphError, match=f"Train one with: python -m calibration --run {tiny_run.root}"):
        merge_stage(model, after=None, until="layer1.2", path=tmp_path / "stage.onnx")


def test_an_imported_network_has_no_net_to_train(graph: Any, tmp_path: Path) -> None:
    path = write_convnet(graph, tmp_path / "net.onnx")
    model = export_model(RunFolder(root=tmp_path / "run"), ExportOptions(source=str(path))).model
    with pytest.raises(GraphError, match=f"python -m calibration --train frozen --run {tmp_path}/run"):
        rebuild_net(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "pose"}, "--task pose: exit heads with heat maps are for the family"),
        ({"answers": "classes"}, "--answers classes is for the families"),
        ({"confidence": "mean-pixel"}, "--confidence mean-pixel is for the families"),
    ],
)
def test_an_imported_network_has_no_heads_of_families(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportOptions(source="net.onnx", **options)


@pytest.mark.parametrize(("family", "task"), [("resnet", "segmentation"), ("segmentation", "pose"),
                                              ("posenet", "regression")])  # fmt: skip
def test_a_dense_task_is_that_of_its_family(family: str, task: str, tmp_path: Path) -> None:
    options = ExportOptions(source=family, weights="random", task=task)
    with pytest.raises(UsageError, match=f"--task {task}: the family {family} answers with"):
        export_model(RunFolder(root=tmp_path), options)


def test_a_family_of_release_0_1_0_is_still_current(tiny_run: RunFolder, tmp_path: Path) -> None:
    run = RunFolder(root=tmp_path / "run")
    shutil.copytree(tiny_run.model, run.model)
    model = open_model(run.model, remedy="")
    assert dict(model.artifact.manifest.parameters) == {
        "format": 1, "family": "resnet", "segments": True, "depth": 20, "classes": 10, "input_shape": "1,12,12",
        "every": 3, "head": "pooled", "weights": "random", "confidence": "softmax", "data_input": "input",
    }  # fmt: skip
    assert export_model(run, TINY).reused
    assert build_missing_heads(model)

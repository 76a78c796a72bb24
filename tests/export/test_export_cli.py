"""The command line, in-process; one subprocess proves that it starts without torch and onnx."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import export
from artifacts import Cut, RunFolder, TensorSpec, UsageError
from export import ExportOptions
from export.cli import main
from export.cuts.thinning import thin, thin_cuts
from tests.export.export_graphs import write_convnet


def test_the_public_names_exist() -> None:
    assert all(getattr(export, name) is not None for name in export.__all__)
    with pytest.raises(AttributeError):
        export.nothing  # noqa: B018


def test_a_file_is_exported_and_reused(
    graph: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_convnet(graph, tmp_path / "net.onnx")
    assert main(["net.onnx", "--segments", "--name", "mine", "--json", "result.json"]) == 0
    out = capsys.readouterr().out
    assert "early" in out
    assert "no (last)" in out
    assert "parity: chained segments against full.onnx" in out
    result = json.loads((tmp_path / "result.json").read_text())
    assert [cut["name"] for cut in result["cuts"]] == ["early", "flat"]
    assert [cut["candidate"] for cut in result["cuts"]] == [True, False]
    assert not result["reused"]
    assert (tmp_path / "runs/mine/model/segments/segment_01.onnx").is_file()
    assert main(["net.onnx", "--segments", "--name", "mine", "--json", "-"]) == 0
    assert '"reused":true' in capsys.readouterr().out


def test_what_was_rewritten_is_said(graph: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_convnet(graph, tmp_path / "net.onnx", batch=1)
    assert main([str(path), "--segments", "--run", str(tmp_path / "run")]) == 0
    assert "note: fixed batch 1 made symbolic\n" in capsys.readouterr().out


def test_without_segments_the_whole_network_alone(
    graph: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_convnet(graph, tmp_path / "net.onnx")
    assert main([str(path), "--run", str(tmp_path / "run")]) == 0
    assert "the whole network in" in capsys.readouterr().out
    files = sorted(item.name for item in (tmp_path / "run/model").iterdir())
    assert files == ["full.onnx", "manifest.json", "model.json", "parity.json"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["resnext"], 2, "Did you mean 'resnet'"),
        (["bert", "--segments"], 2, "no weights are shipped for BERT 6 x 384"),
        (["absent.onnx"], 2, "no such file"),
        (["resnet", "--depth", "33"], 2, "no ResNet of depth 33"),
        (["resnet", "--depth", "44"], 2, "--weights random"),
        (["resnet", "--weights", "absent.pth"], 2, "no such file"),
        (["resnet", "--every", "0"], 2, "a number from 1"),
        (["resnet", "--every", "99", "--depth", "20", "--weights", "random", "--segments"], 2, "leaves none"),
        (["resnet", "--input-shape", "28"], 2, "channels,height,width"),
        (["resnet", "--input-shape", "a,b"], 2, "expected sizes from 1"),
        (["resnet", "--input-shape", "x:1,28,28"], 2, "is for ONNX files"),
        (["resnet", "--name", "../out"], 2, "a plain name"),
        (["bad.onnx"], 1, "cannot be read as ONNX"),
    ],
)
def test_what_cannot_be_is_said(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    assert main(arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert not list(tmp_path.glob("runs/*/model"))


def test_help_and_import_need_no_heavy_package() -> None:
    blocked = (
        "import sys; [sys.modules.__setitem__(n, None) for n in ('torch', 'onnx', 'onnx_ir', 'onnxruntime', 'rich')];"
    )
    code = blocked + "import runpy; sys.argv = ['export', '--help']; runpy.run_module('export', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--segments" in done.stdout
    code = blocked + "from export.cli import main; sys.exit(main(['resnet', '--weights', 'random']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'pame[" in done.stderr
    assert "Traceback" not in done.stderr


def cuts(count: int) -> tuple[Cut, ...]:
    return tuple(
        Cut(name=str(i), main=TensorSpec(name=str(i), dtype="float32", row_shape=(1,))) for i in range(1, count + 1)
    )


def test_every_keeps_the_last_cut_as_a_cut() -> None:
    assert [cut.name for cut in thin_cuts(cuts(15), 2)] == ["2", "4", "6", "8", "10", "12", "14", "15"]
    assert [cut.name for cut in thin_cuts(cuts(4), 1)] == ["1", "2", "3", "4"]
    assert [cut.name for cut in thin_cuts(cuts(1), 1)] == ["1"]
    with pytest.raises(UsageError, match="use at most 3"):
        thin_cuts(cuts(4), 4)
    assert thin((), 3) == ()


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="Did you mean 'complex'"):
        ExportOptions(head="komplex")
    assert RunFolder(root=Path("runs/x")).name == "x"

"""``python -m planner scout``: from a file and its data to a range and a verdict, without a trace of itself."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from artifacts import InputError
from planner.commands.main import main
from planner.scout.scouting import choose_cuts, choose_timing, draw_samples
from planner.workflow.pace import Pace
from tests.planner.source_worlds import SAMPLES, write_dense_file, write_right_data

for _name in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(_name, reason="exports and runs a network: pip install 'pame[export]'")

QUICK = ("--threads", "1", "--batch-size", "4")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_right_data(write_dense_file(folder), folder / "data.npz")
    write_right_data(folder / "dense.onnx", folder / "queries.npz", labelled=False)
    return folder


@pytest.fixture
def place(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_file_is_scouted_without_a_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in place.iterdir())
    assert main(["scout", "dense.onnx", "--data", "data.npz", "--head", "simple", *QUICK, "--json", "-"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert sorted(path.name for path in place.iterdir()) == before
    assert (found["model"], found["labelled"], found["batch_size"]) == ("dense", True, 4)
    assert abs(found["samples"] - SAMPLES * 0.8) <= 5, "the test part is left alone"
    assert found["full_metric"] > 0.95
    assert [cut["name"] for cut in found["cuts"]] == ["relu2", "relu4"]
    assert all(0 < cut["share"] < 1.5 and 0 <= cut["metric"] <= 1 for cut in found["cuts"])
    assert [saving["tolerance"] for saving in found["savings"]] == [0.005, 0.01, 0.02, 0.05]
    assert all(0 <= saving["at_least"] <= saving["at_most"] <= 1 for saving in found["savings"])
    assert not any(saving["certifiable"] for saving in found["savings"][:2])
    assert found["verdict"] in ("yes", "perhaps")
    assert "python -m planner dense.onnx --head simple --data data.npz" in err, "how the network is made is not lost"
    assert "warning" not in err
    for word in ("tolerance", "at least", "at most", "too few samples to certify", "verdict: "):
        assert word in err


def test_without_labels_agreement_is_what_is_kept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["scout", "dense.onnx", "--data", "queries.npz", *QUICK, "--samples", "100", "--json", "out.json"]
    assert main([*words, "--run", "kept"]) == 0
    found = json.loads((place / "out.json").read_text())
    assert (found["samples"], found["labelled"], found["full_metric"], found["chance"]) == (100, False, None, None)
    assert {cut["metric"] for cut in found["cuts"]} == {None}
    assert "agreement kept" in capsys.readouterr().out
    assert (place / "kept/model/model.json").is_file()
    assert main(["scout", "--run", "kept", "--data", "data.npz", *QUICK]) == 0
    assert "100 samples" not in capsys.readouterr().out
    assert {path.name for path in (place / "kept").iterdir()} <= {"engines", "model", ".lock"}


def test_a_network_at_chance_is_said_to_be(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(place / "data.npz") as data:
        np.savez(place / "wrong.npz", images=data["images"], labels=np.roll(data["labels"], 1))
    assert main(["scout", "dense.onnx", "--data", "wrong.npz", *QUICK]) == 0
    assert "the network itself is right on" in (said := capsys.readouterr().err)
    assert "warning: " in said


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["dense.onnx", "--samples", "0"], 2, "--samples 0"),
        (["absent.onnx"], 2, "there is no such file"),
        (["dense.onnx"], 2, "name your data with --data"),
        (["dense.onnx", "--data", "few.npz"], 1, "at least 40 are needed"),
        (["dense.onnx", "--data", "data.npz", "--engine", "onnxruntim"], 2, "Did you mean 'onnxruntime'"),
    ],
)
def test_what_cannot_be_scouted_is_named(
    place: Path, words: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(place / "data.npz") as data:
        np.savez(place / "few.npz", images=data["images"][:40], labels=data["labels"][:40])
    assert main(["scout", *words]) == code
    assert message in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_a_network_without_cuts_has_nothing_to_gain(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.export.export_graphs import GraphBuilder

    graph = GraphBuilder()
    value = graph.add("Flatten", graph.input("x", 1, 8, 8))
    graph.save(place / "one.onnx", graph.add("MatMul", value, graph.weight(64, 3), output="logits"))
    assert main(["scout", "one.onnx", "--data", "data.npz", *QUICK]) == 1
    assert "no cuts" in capsys.readouterr().err


def test_slow_networks_are_timed_at_smaller_batches() -> None:
    assert choose_timing(32, None).batch_sizes == (1, 4, 8, 16, 32)
    for network_s, sizes in ((0.01, (1, 4, 8, 16, 32)), (0.15, (1, 32)), (0.5, (1, 8)), (9.0, (1, 4))):
        assert choose_timing(32, Pace(reading_s=0, network_s=network_s, samples=16)).batch_sizes == sizes
    assert choose_timing(2, Pace(reading_s=0, network_s=9.0, samples=16)).batch_sizes == (1, 2)


def test_cuts_are_spread_over_measured_time() -> None:
    from artifacts import Cut, GraphSpec, InferenceTimeMatrix, ModelSpec, TensorSpec

    cuts = tuple(Cut(name=f"c{i}", main=TensorSpec(name=f"c{i}", dtype="float32", row_shape=(1,))) for i in range(41))
    full = GraphSpec(name="full", file="full.onnx", inputs=(), outputs=())

    class _Model:
        spec = ModelSpec(name="m", family="onnx", task="none", full=full, cuts=cuts)

    times = {f"segment_{i:02d}": (10.0 if i < 10 else 0.1,) for i in range(41)}
    itm = InferenceTimeMatrix(
        backend="fake", threads=1, batch_sizes=(8,), median_ms=times, spread_ms=times, fixed=False, environment={}
    )
    chosen = [cut.name for cut in choose_cuts(_Model(), itm)]
    assert len(chosen) <= 16
    assert chosen[:10] == [f"c{i}" for i in range(10)], "where the time goes, every cut is probed"
    assert chosen[-1] == "c39"


def test_samples_are_drawn_from_what_is_not_tested_on(place: Path) -> None:
    from calibration import image_input, load_samples

    samples = load_samples(place / "data.npz", image_input((1, 8, 8), name="x"))
    drawn = draw_samples(samples, 50, seed=0)
    assert len(drawn) == 50
    assert set(drawn) <= set(samples.indices_of("calibrate"))
    many = len(samples.indices_of("calibrate")) + 20
    more = draw_samples(samples, many, seed=0)
    assert len(set(more)) == many
    assert set(samples.indices_of("calibrate")) < set(more)
    assert not set(more) & set(samples.indices_of("test"))
    none = np.arange(0)
    with pytest.raises(InputError, match="has 0 samples to train and calibrate with"):
        draw_samples(replace(samples, parts=dict.fromkeys(samples.parts, none)), 5, seed=0)

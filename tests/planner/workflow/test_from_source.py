"""From a network and its data to a bundle: the command and the function, what they say, reuse and refuse."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from artifacts import PameError, RunFolder, UsageError, recorded_command
from calibration import CalibrationOptions, FrozenConfig
from planner import PlanConfig, TimingConfig, plan_network
from planner.commands.main import main
from planner.workflow.pace import Pace, about
from tests.planner.source_worlds import QUICK, write_dense_file, write_labels, write_right_data

for _name in ("torch", "onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(_name, reason="exports and trains a network: pip install 'pame[train]'")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_right_data(write_dense_file(folder), folder / "data.npz")
    return folder


@pytest.fixture
def place(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def steps(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("step ")]


@pytest.mark.slow
def test_one_command_leads_to_a_bundle_and_the_next_reuses_all_of_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dense.onnx", "--data", "data.npz", "--tolerance", "0.1", *QUICK, "--json"]
    assert main([*words, "first.json"]) == 0
    said = capsys.readouterr().err
    assert [line[:12] for line in steps(said)] == [f"step {step} of 5:" for step in range(1, 6)]
    assert "ms to run through the network, measured on 16" in said
    assert "training 2 exit heads" in said
    assert all("seconds" in line or "about" in line for line in steps(said)[1:])
    assert "python -m runtime.bench --run runs/dense" in said
    first = json.loads((place / "first.json").read_text())
    assert (first["run"], first["reused"]) == ("runs/dense", False)
    assert (place / "runs/dense/bundle/bundle.json").is_file()
    run = RunFolder(root=Path("runs/dense"))
    assert recorded_command(run.model) == f"python -m export {place}/dense.onnx --segments --run runs/dense"
    for made in (run.trace, run.itm, run.plan, run.bundle):
        assert recorded_command(made) == f"python -m planner {' '.join(words)} first.json"

    assert main([*words, "second.json"]) == 0
    said = capsys.readouterr().err
    assert "measured on" not in said, "nothing is measured where nothing is done"
    assert all("there already" in line for line in steps(said)[1:])
    second = json.loads((place / "second.json").read_text())
    assert second == {**first, "reused": True}

    assert main(["dense.onnx", "--data", "data.npz", "--tolerance", "0.1", *QUICK[:-1], "7"]) == 0
    assert "they were trained with epochs 1, and are kept" in capsys.readouterr().err


@pytest.mark.slow
def test_a_folder_without_labels_leads_to_a_bundle_too(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load("data.npz") as data:
        np.savez("queries.npz", images=data["images"])
        count = len(data["images"])
    words = ["dense.onnx", "--data", "queries.npz", "--risk", "agreement", "--tolerance", "0.2", *QUICK]
    assert main([*words, "--json", "first.json"]) == 0
    said = capsys.readouterr().err
    assert "by the answers of the full network, since there are no labels" in said
    assert (place / "runs/dense/bundle/bundle.json").is_file()
    with np.load("runs/dense/trace/indices.npz") as parts:
        train, calibrate = set(parts["train"].tolist()), set(parts["calibrate"].tolist())
        assert len(train) == round(0.4 * count)
        assert not train & calibrate, "nothing is calibrated on what exits learned from"
    assert main(words) == 0
    assert all("there already" in line for line in steps(capsys.readouterr().err)[1:])


@pytest.mark.slow
def test_what_was_done_before_a_failure_is_kept(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PameError("the disk is full")

    words = ["dense.onnx", "--data", "data.npz", "--tolerance", "0.1", *QUICK]
    with monkeypatch.context() as patched:
        patched.setattr("planner.workflow.from_source.ensure_itm", fail)
        assert main(words) == 1
    said = capsys.readouterr().err
    again = f"python -m planner {' '.join(words)}"
    assert f"what is done is kept in runs/dense. Once that is mended, this goes on: {again}" in said
    assert said.endswith("error: the disk is full\n")
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "training 2 exit heads" not in said
    assert re.search(r"step 3 of 5: the trace of \d+ samples: it is there already", said)


def test_nothing_is_said_to_be_kept_where_nothing_is(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["absent.onnx", "--data", "data.npz"]) == 2
    assert "kept" not in capsys.readouterr().err
    assert not (place / "runs").exists()


@pytest.mark.slow
def test_another_network_does_not_take_the_run_of_the_first(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "other").mkdir()
    write_dense_file(place / "other")
    config = PlanConfig(batch_size=2, timing=TimingConfig(batch_sizes=(1, 2), rounds=1, warm_up=0))
    quiet = CalibrationOptions(report=lambda _: None)
    training = FrozenConfig(epochs=1, batch_size=32, head_share=1)
    result = plan_network("dense.onnx", data="data.npz", config=config, training=training, options=quiet)
    assert result.bundle == Path("runs/dense/bundle")
    with pytest.raises(
        UsageError, match=r"runs/dense holds the network .*/dense\.onnx, not .*/other/dense\.onnx.*--name"
    ):
        plan_network("other/dense.onnx", data="data.npz", config=config, options=quiet)
    assert main(["other/dense.onnx", "--data", "data.npz", "--name", "second", *QUICK]) == 0
    assert (place / "runs/second/bundle/bundle.json").is_file()
    capsys.readouterr()


@pytest.mark.slow
def test_another_preprocessing_is_advised_for_the_same_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["dense.onnx", "--data", "data.npz", "--preprocess", "raw", *QUICK]
    with np.load(place / "data.npz") as data:
        write_labels(place / "dense.onnx", data["images"], place / "data.npz", scale=1 / 127.5, shift=1)
    with np.load(place / "data.npz") as data:  # a train part large enough to tell preparations apart
        arrays, split = dict(data), np.resize(["train", "train", "train", "calibrate", "test"], len(data["labels"]))
    np.savez(place / "data.npz", **arrays, split=split)
    assert main(words) == 1
    said = capsys.readouterr().err
    (advised,) = re.findall(r"Say so: python -m planner (.*?)\. To go on", said)
    assert shlex.split(advised)[:-2] == ["dense.onnx", "--data", "data.npz", *QUICK]
    assert f"python -m planner {' '.join(words)} --force" in said
    assert main(shlex.split(advised)) == 0
    assert "is made anew with the flags of now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["dense.onx"], "unknown family 'dense.onx'"),
        (["data.npz"], "expected a file that ends in .onnx"),
        (["dense.onnx", "--sweep"], "--sweep looks at a run"),
        (["dense.onnx", "--weights", "w.pth"], "has its own weights"),
        (["dense.onnx", "--data", "data.npz", "--risk", "mean"], "invalid choice"),
        (["--epochs", "3"], "--epochs goes with a network to start from"),
        (["--every", "2"], "--every goes with a network to start from"),
        (["dense.onnx", "--backbone-epochs", "1"], "--backbone-epochs goes with --train joint"),
        (["dense.onnx", "--name", "a/b"], "a plain name"),
        (["dense.onnx", "--data", "data.npz", "--preprocess", "imagnet"], "Did you mean 'imagenet'"),
        (["dense.onnx", "--data", "data.npz", "--preprocess", "no/such.json"], "there is no such file"),
        (["dense.onnx", "--data", "data.npz", "--parts", "calibrate=tests:0.5"], "Did you mean 'test'"),
        (["dense.onnx", "--data", "absent:Samples"], "No module named 'absent'"),
        (["resnet", "--data", "data.npz", "--train", "joint", "--input", "uint8"], "--train joint works on floats"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    place: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(words)
    except SystemExit as end:  # argparse's own refusals
        code = end.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_data_that_is_not_there_is_refused_before_any_work(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dense.onnx", "--data", "imags", *QUICK]) == 1
    assert "--data imags: there is nothing of that name" in capsys.readouterr().err
    assert not (place / "runs").exists()


def test_a_run_is_planned_with_force_where_its_network_is_at_chance(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from export import ExportOptions, export_model

    with np.load(place / "data.npz") as data:
        np.savez(place / "wrong.npz", images=data["images"], labels=np.roll(data["labels"], 1))
    export_model(RunFolder(root=place / "runs" / "dense"), ExportOptions(source="dense.onnx"))
    words = ["--run", "runs/dense", "--data", "wrong.npz", *QUICK[:8], "--tolerance", "0.5"]
    assert main(words) == 1
    assert "--force" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    assert "warning: the network itself" in capsys.readouterr().err


def test_a_risk_that_needs_labels_is_refused_before_training(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_right_data(place / "dense.onnx", place / "queries.npz", labelled=False)
    assert main(["dense.onnx", "--data", "queries.npz", *QUICK]) == 2
    said = capsys.readouterr().err
    assert "--risk agreement" in said
    assert "training 2 exit heads" not in said


def test_times_come_from_measurements_and_in_round_numbers() -> None:
    pace = Pace(reading_s=0.001, network_s=0.01, samples=16)
    assert pace.passing_s(1000) == pytest.approx(11)
    config = PlanConfig(timing=TimingConfig(batch_sizes=(1, 32), rounds=10, warm_up=1, budget_s=2))
    assert pace.timing_s(config) == pytest.approx(0.66 + 2)
    assert pace.measuring_s(config) == config.measure.budget_s
    assert [about(s) for s in (3, 42, 89, 150, 3000, 9000)] == [
        "a few seconds", "about 40 s", "about 90 s", "about 2 min", "about 50 min", "about 2.5 h",
    ]  # fmt: skip

"""From a network in float32 to a certified bundle in int8: export, heads, trace with the reference, plan, benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from artifacts import TRACE_NPZ, ExitPlan, RunFolder, Trace, open_model, read_json
from export.cli import main as export_main
from planner.commands.main import main
from runtime.bench.command import main as bench_main
from tests.planner.source_worlds import QUICK, SHAPE, write_conv_file

for _name in ("torch", "onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(_name, reason="exports and trains a network: pip install 'pame[train]'")

SAMPLES, LOOSE = 600, ("--certify", "none", "--stay-allowance", "20", "--tail-allowance", "20")


def write_data(folder: Path) -> None:
    """Writes images with one of three strong patterns each, and which it is."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, SAMPLES)
    patterns = random.integers(0, 256, (3, *SHAPE))
    mixed = 0.7 * patterns[labels] + 0.3 * random.integers(0, 256, (SAMPLES, *SHAPE))
    np.savez(folder / "data.npz", images=mixed.astype(np.uint8), labels=labels)


@pytest.mark.slow
def test_a_network_is_quantised_planned_and_measured_against_itself_in_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_conv_file(tmp_path)
    write_data(tmp_path)
    assert export_main(["conv.onnx", "--segments", "--precision", "int8", "--data", "data.npz", "--json", "-"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["precision"] == "int8"
    assert shown["parity"]["int8"]["rows"] == 120
    assert export_main(["conv.onnx", "--data", "data.npz"]) == 2
    assert "--data data.npz: an export reads data for --precision int8 alone" in capsys.readouterr().err

    words = ["conv.onnx", "--precision", "int8", "--data", "data.npz", "--tolerance", "0.3", "--force", *QUICK, *LOOSE]
    assert main([*words, "--risk", "agreement"]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert "is up to date" in said.err
    assert "asked for 70.00% of the network in fp32" in said.out
    run = RunFolder(root=Path("runs/conv"))
    model = open_model(run.model, remedy="")
    assert {cut.main.dtype for cut in model.spec.cuts} == {"uint8"}
    assert {tensor.dtype for head in model.spec.heads.values() for tensor in head.outputs} == {"float32"}
    trace = Trace.load(run.trace / TRACE_NPZ)
    assert trace.reference is not None
    assert trace.reference.agreement.shape == trace.agreement.shape
    plan = read_json(run.plan / "exit_plan.json", ExitPlan)
    assert (plan.against, plan.full_metric) == ("fp32", 1.0)

    assert bench_main(["--samples", "40", "--rounds", "1", "--json", "bench.json"]) == 0
    measured = json.loads(Path("bench.json").read_text())
    assert (measured["precision"], measured["full_precision"]) == ("int8", "fp32")
    assert 0.7 <= measured["agreement"] <= 1

    capsys.readouterr()
    assert main(["--run", "runs/conv", "--risk", "agreement", "--reference", "self", *QUICK[:4], "--batch-size", "4",
                 "--contenders", "1", "--tolerance", "0.3", *LOOSE]) == 0  # fmt: skip
    again = read_json(run.plan / "exit_plan.json", ExitPlan)
    assert again.against == ""
    assert "of the network in fp32" not in capsys.readouterr().out

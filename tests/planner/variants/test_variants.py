"""Variants: their list, the time that is expected of them, and the command that plans the fastest of several."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from artifacts import PameError, Reference, RunFolder, UsageError
from planner import NetworkCosts, PlanConfig
from planner.commands.main import main
from planner.config import CertifyConfig
from planner.search.rules import SlowBatchRule
from planner.variants.comparison import read_comparison
from planner.variants.expecting import expect_variant
from planner.variants.listing import list_variants
from tests.planner.planning_worlds import make_costs, make_trace
from tests.planner.source_worlds import QUICK, write_conv_file
from tests.planner.workflow.test_int8_run import LOOSE, write_data

RUN = RunFolder(root=Path("runs/net"))


def test_every_engine_in_every_precision_once_and_what_there_is_none_of() -> None:
    variants, left_out = list_variants(RUN, ["onnxruntime", "openvino"], ["fp32", "int8", "bf16"])
    assert [(variant.label, variant.backend, variant.graph) for variant in variants] == [
        ("onnxruntime fp32", "onnxruntime", "fp32"), ("onnxruntime int8", "onnxruntime", "int8"),
        ("openvino fp32", "openvino", "fp32"), ("openvino int8", "openvino", "int8"),
        ("openvino bf16", "openvino-bf16", "fp32"),
    ]  # fmt: skip
    assert [item.label for item in left_out] == ["onnxruntime bf16"]
    assert "onnxruntime does not compute in it" in left_out[0].reason
    assert variants[-1].run.root == Path("runs/net/variants/openvino-bf16")
    again, _ = list_variants(RUN, ["openvino", "openvino-bf16"], ["fp32", "bf16"])
    assert [variant.label for variant in again] == ["openvino fp32", "openvino bf16"]


@pytest.mark.parametrize(
    ("engines", "precisions", "words"),
    [
        (["onxruntime"], ["fp32"], "unknown engine backend.*Did you mean 'onnxruntime'"),
        (["onnxruntime"], ["int4"], "unknown precision .--precisions.*'int4'"),
        (["onnxruntime"], ["bf16"], "there is nothing to plan for"),
    ],
)
def test_names_that_there_are_none_of_are_refused(engines: list[str], precisions: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        list_variants(RUN, engines, precisions)


def config(**settings: object) -> PlanConfig:
    rule = SlowBatchRule(share=0.0, stay_allowance=None)
    return PlanConfig(tolerance=0.1, batch_size=8, timing=replace(PlanConfig().timing, batch_sizes=(1, 8)), tail=rule,
                      confidence="max-softmax", **settings)  # type: ignore[arg-type]  # fmt: skip


def costs() -> NetworkCosts:
    return make_costs(0, exits=3, head=0.01)


def test_the_samples_of_the_test_do_not_choose_the_variant() -> None:
    trace = make_trace(0, samples=400)
    before = expect_variant(trace, costs(), config())
    order = np.random.default_rng(0).permutation(400)
    metric = trace.metric.copy()
    metric[:, order[200:]] = 0  # as planner.certify splits them with seed 0
    after = expect_variant(replace(trace, metric=metric), costs(), config())
    assert (after.ms, after.exits) == (before.ms, before.exits)
    assert before.ms is not None
    assert before.ms < costs().full_ms


def test_a_variant_that_loses_too_much_by_itself_is_not_expected_to_serve() -> None:
    trace = make_trace(1, samples=400)
    reference = Reference(metric=np.ones(400, np.float32), agreement=trace.agreement.astype(np.float32))
    late = replace(trace, reference=reference)
    assert late.full_metric == 1
    found = expect_variant(late, make_costs(0, exits=3, head=9.0), config())
    assert found.ms is None
    assert found.full_metric < 0.9
    alone = expect_variant(late, costs(), config(certify=CertifyConfig(reference="self")))
    assert alone.ms is not None


@pytest.mark.slow
def test_the_fastest_of_several_is_planned_and_the_others_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("torch", "onnx", "onnx_ir", "onnxruntime"):
        pytest.importorskip(name, reason="exports and trains a network: pip install 'pame[train]'")
    monkeypatch.chdir(tmp_path)
    write_conv_file(tmp_path)
    write_data(tmp_path)
    words = ["conv.onnx", "--data", "data.npz", "--tolerance", "0.3", "--risk", "agreement", "--force", *QUICK, *LOOSE]
    asked = ["--engines", "onnxruntime", "--precisions", "fp32,int8,bf16"]
    monkeypatch.setattr(
        "planner.variants.comparing.time_whole_networks", lambda networks, *_: [50.0, 0.001][: len(networks)]
    )
    assert main([*words, *asked, "--json", "plan.json"]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert "left out: onnxruntime bf16: --precision bf16: onnxruntime does not compute in it" in said.err
    assert "onnxruntime int8 is expected to be the fastest" in said.err
    plan = json.loads(Path("plan.json").read_text())
    assert (plan["run"], plan["plan"]["against"]) == ("runs/conv/variants/onnxruntime-int8", "fp32")
    run = RunFolder(root=Path("runs/conv"))
    found = read_comparison(run)
    assert [(variant.label, variant.chosen) for variant in found.variants] == [
        ("onnxruntime int8", True), ("onnxruntime fp32", False),
    ]  # fmt: skip
    assert not (run.root / "variants/onnxruntime-fp32/plan").exists(), "the certificate is spent on one alone"
    assert main(["compare", "--run", "runs/conv", "--plot", "variants.png"]) == 0
    shown = capsys.readouterr()
    assert "onnxruntime int8 *" in shown.out
    assert Path("variants.png").stat().st_size > 10_000
    assert main([*words, *asked, "--sweep"]) == 2
    with pytest.raises(PameError, match="--engines onnxruntime,openvino --precisions fp32,int8"):
        read_comparison(RunFolder(root=tmp_path / "none"))

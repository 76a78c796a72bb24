"""Variants: their list, the time that is expected of them, and the command that plans the fastest of several."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from artifacts import PameError, Reference, RunFolder, UsageError, new_artifact
from planner import NetworkCosts, PlanConfig
from planner.commands.main import main
from planner.config import CertifyConfig
from planner.measure.reference_times import ReferenceTimes, VariantRecord, find_variant, write_variant
from planner.predict.matrices import keep_rows, scale_times
from planner.search.rules import SlowBatchRule
from planner.variants.comparison import read_comparison
from planner.variants.expecting import expect_variant
from planner.variants.listing import list_variants
from planner.workflow.inputs import settle_engine
from tests.planner.planning_worlds import make_costs, make_itm, make_trace
from tests.planner.source_worlds import QUICK, write_conv_file
from tests.planner.workflow.test_int8_run import LOOSE, write_data

RUN = RunFolder(root=Path("runs/net"))


def test_every_engine_in_every_precision_once_and_what_there_is_none_of() -> None:
    variants, left_out = list_variants(RUN, ["onnxruntime", "openvino"], ["fp32", "int8", "bf16"])
    assert [(variant.label, variant.backend, variant.graph) for variant in variants] == [
        ("onnxruntime fp32", "onnxruntime", "fp32"), ("onnxruntime int8", "onnxruntime", "int8"),
        ("openvino fp32", "openvino", "fp32"), ("openvino int8", "openvino", "int8"),
        ("openvino bf16", "openvino-bf16", "fp32"), ("openvino int8+bf16", "openvino-bf16", "int8"),
    ]  # fmt: skip
    assert [item.label for item in left_out] == ["onnxruntime bf16"]
    assert "onnxruntime does not compute in it" in left_out[0].reason
    assert variants[-1].run.root == Path("runs/net/variants/openvino-int8+bf16")
    mixed, none = list_variants(RUN, ["onnxruntime", "openvino"], ["int8+bf16"])
    assert [variant.label for variant in mixed] == ["openvino int8+bf16"]
    assert [item.label for item in none] == ["onnxruntime int8+bf16"]
    again, _ = list_variants(RUN, ["openvino", "openvino-bf16"], ["fp32", "bf16"])
    assert [variant.label for variant in again] == ["openvino fp32", "openvino bf16"]


@pytest.mark.parametrize(
    ("engines", "precisions", "words"),
    [
        (["onxruntime"], ["fp32"], "unknown engine backend.*Did you mean 'onnxruntime'"),
        (["onnxruntime"], ["int4"], "unknown precision .--precisions.*'int4'"),
        (["openvino"], ["int8-dynamic"], "dynamic quantisation .* answer would depend on its neighbours. Use int8"),
        (["openvino"], ["fp32+bf16"], "unknown precision .--precisions.*'fp32.bf16'"),
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


def slower(costs: NetworkCosts, factor: float) -> NetworkCosts:
    """Costs whose slow batches are compared with the same network, ``factor`` times as slow."""
    itm = scale_times(keep_rows(costs.itm, ("full", "serving")), factor)
    return replace(costs, reference=replace(costs, itm=itm))


def test_slow_batches_are_compared_with_the_reference() -> None:
    trace = make_trace(0, samples=400)
    itself = make_costs(0, exits=3, head=0.3)
    rules = replace(config(), tail=SlowBatchRule(share=0.5, allowance=0.0, stay_allowance=0.0))
    assert expect_variant(trace, itself, rules).exits == (), "every exit has a head that costs something"
    found = expect_variant(trace, slower(itself, 3.0), rules)
    free = expect_variant(trace, itself, config())
    assert (found.ms, found.exits) == (free.ms, free.exits), "with three times the time, nothing is slow"
    assert expect_variant(trace, slower(itself, 0.9), config()).exits == free.exits, "these rules allow all"
    assert expect_variant(trace, slower(itself, 0.9), rules).exits == ()
    for factor in (1.05, 1.2, 1.5):
        costs = slower(itself, factor)
        exits = expect_variant(trace, costs, rules).exits
        assert costs.stay_ms(exits) <= factor * itself.full_ms + 1e-9


def times(label: str = "onnxruntime fp32", **changes: object) -> ReferenceTimes:
    return ReferenceTimes(label=label, itm=replace(make_itm(0), **changes))  # type: ignore[arg-type]


def test_times_of_another_kind_are_not_held_against_each_other() -> None:
    own = make_itm(1)
    assert times().why_unusable(own) is None
    assert times(environment={"timing_rounds": "7"}).why_unusable(own) is None
    assert times(threads=2).why_unusable(own) == "they are of 2 threads, not 1"
    assert "batches of 1, 2, 4, 8" in str(times().why_unusable(make_itm(1, sizes=(1, 2, 4, 8, 16))))
    assert "another machine" in str(times(environment={"cpu": "Z80"}).why_unusable(own))


def test_a_variant_keeps_its_engine(tmp_path: Path) -> None:
    run, said = RunFolder(root=tmp_path), list[str]()
    assert settle_engine(None, None, run, said.append) == ("onnxruntime", None)
    assert settle_engine("openvino", "bf16", run, said.append) == ("openvino-bf16", None)
    with new_artifact(run.trace, kind="trace", parameters={"backend": "openvino"}):
        pass
    assert said == []
    assert settle_engine(None, None, run, said.append) == ("openvino", None)
    assert settle_engine(None, "bf16", run, said.append) == ("openvino-bf16", None)
    assert said == ["engine: openvino, as the run's trace was collected on it"]
    assert settle_engine("onnxruntime", None, run, said.append) == ("onnxruntime", None)
    record = VariantRecord(engine="openvino", precision="int8", backend="openvino", reference=times())
    write_variant(run, record, inputs={})
    assert settle_engine(None, "int8", run, said.append) == ("openvino", "int8")
    for engine, precision in (("onnxruntime", None), (None, "bf16"), ("openvino-bf16", "int8")):
        with pytest.raises(UsageError, match="is the variant openvino int8, and holds a trace and times of openvino"):
            settle_engine(engine, precision, run, said.append)
    found = find_variant(run)
    assert found is not None
    assert found[1] == record


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
        "planner.variants.comparing.time_whole_networks", lambda networks, *_: [50.0, 0.001, 50.0][: len(networks)]
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
    assert plan["reference"]["label"] == "onnxruntime fp32"
    assert found.reference is not None
    assert found.reference.whole_ms == 50.0
    assert found.variants[0].stay_reference_ratio == pytest.approx(
        plan["reference"]["own_ratio"] * found.variants[0].stay_ratio, rel=1e-6
    )
    assert "slow batches are compared with onnxruntime fp32" in said.err
    alone = [
        "--run",
        plan["run"],
        "--data",
        "data.npz",
        "--tolerance",
        "0.3",
        "--risk",
        "agreement",
        *QUICK[:8],
        *LOOSE,
    ]
    assert main(alone) == 0, capsys.readouterr().err
    assert "nothing has changed" in capsys.readouterr().err, "alone, it is judged by the same network"
    assert main([*alone, "--reference", "self"]) == 0
    assert "compared with" not in capsys.readouterr().err
    assert main(["compare", "--run", "runs/conv", "--plot", "variants.png"]) == 0
    shown = capsys.readouterr()
    assert "onnxruntime int8 *" in shown.out
    assert Path("variants.png").stat().st_size > 10_000
    assert main([*words, *asked, "--sweep"]) == 2
    with pytest.raises(PameError, match="--engines onnxruntime,openvino --precisions fp32,int8"):
        read_comparison(RunFolder(root=tmp_path / "none"))

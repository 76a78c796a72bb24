"""Certified plans of a small real run through the real engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts import BUNDLE_JSON, BundleSpec, RunFolder, read_json
from tests.planner.dense_worlds import CERTIFIED, plan

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("heavy_end")
def test_a_certified_plan_carries_its_certificate(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = plan(run, tmp_path, "--tolerance", "0.9", *CERTIFIED)
    assert code == 0
    out = capsys.readouterr().out
    assert "certificate: relative loss of the metric at most 0.9, except with probability 0.4" in out
    shipped = found["plan"]
    certificate = shipped["certificate"]
    assert (shipped["delta"], certificate["delta"], certificate["bound"]) == (0.4, 0.4, 0.9)
    assert certificate["p_value"] <= 0.4
    assert certificate["tuning_digest"] != certificate["certification_digest"]
    spec = read_json(run.bundle / BUNDLE_JSON, BundleSpec)
    assert spec.plan.certificate is not None
    assert shipped["exits"]
    passed = [tested for tested in found["certification"]["sequence"] if tested["certified"]]
    assert [exit_["cut"] for exit_ in shipped["exits"]] in [tested["exits"] for tested in passed]
    for considered in found["considered"]:
        assert considered["certified"] is considered["allowed"]
    code, again = plan(run, tmp_path, "--tolerance", "0.9", *CERTIFIED)
    assert (code, again["reused"], again["certification"]) == (0, True, found["certification"])


@pytest.mark.usefixtures("heavy_end")
def test_too_few_samples_ship_the_network_without_exits_and_say_so(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = plan(run, tmp_path, "--tolerance", "0.01", "--certify", "ltt")
    assert code == 0
    assert found["plan"]["exits"] == []
    assert found["plan"]["certificate"]["method"] == "no exits"
    captured = capsys.readouterr()
    assert "certificate: without exits nothing is lost" in captured.out
    assert "can be certified" in found["certification"]["note"]
    assert found["certification"]["note"] in captured.err


@pytest.mark.usefixtures("heavy_end")
def test_agreement_certifies_without_the_labels(run: RunFolder, tmp_path: Path) -> None:
    code, found = plan(run, tmp_path, "--tolerance", "0.9", "--risk", "agreement", *CERTIFIED)
    assert code == 0
    assert found["plan"]["exits"]
    assert found["plan"]["full_metric"] == 1
    assert found["plan"]["certificate"]["risk"] == "agreement"

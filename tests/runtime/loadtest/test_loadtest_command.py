"""``python -m runtime.loadtest`` on a real bundle: its table, its picture and its JSON object; and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import TRACE_NPZ, Trace, new_artifact
from runtime.loadtest.command import main

pytestmark = pytest.mark.slow


@pytest.fixture
def traced(toy_run: Any) -> Any:
    """The toy run with a trace, which the simulation takes exits from."""
    if not (toy_run.root / "trace").exists():
        sure = np.random.default_rng(0).random((2, 100), np.float32)
        same = np.ones((2, 100), np.float32)
        with new_artifact(toy_run.root / "trace", kind="trace") as staging:
            Trace(exits=("cut_0",), confidence=sure, metric=same, agreement=same).save(staging / TRACE_NPZ)
    return toy_run


def test_policies_are_loaded_in_turns_and_compared(traced: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("matplotlib", reason="draws the picture: pip install 'pame[report]'")
    target, picture = tmp_path / "out.json", tmp_path / "goodput.png"
    code = main([
        "--run", str(traced.root), "--data", str(traced.data), "--slo-ms", "500,900",
        "--policies", "full,auto", "--samples", "64",
        "--seconds", "0.1", "--repeats", "3", "--steps", "2", "--threads", "1",
        "--plot", str(picture), "--json", str(target),
    ])  # fmt: skip
    assert code == 0
    result = json.loads(target.read_text())
    assert [entry["slo_ms"] for entry in result["bounds"]] == [500, 900]
    assert picture.stat().st_size > 5000
    for entry in result["bounds"]:
        full, auto = entry["contenders"]
        assert (full["policy"], full["runs"], auto["runs"]) == ("full", "one engine", "stages")
        for found in (full, auto):
            assert 2 <= found["streams"] <= 7
            assert 0 <= found["stood_still"] <= found["streams"]
            assert isinstance(found["converged"], bool)
            assert found["simulated_per_s"] > 0
        if full["goodput_per_s"]:
            assert full["agreement"] == 1
            assert full["exit_fractions"] == [1.0]
        if auto["goodput_per_s"]:
            assert len(auto["exit_fractions"]) == 2
    said = capsys.readouterr().out
    assert "99 % are answered within 500 ms" in said
    assert "auto" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--slo-ms", "ten"), "--slo-ms"),
        (("--slo-ms", "-1"), "positive"),
        (("--policies", "best"), "--policies"),
        (("--seconds", "0"), "--seconds"),
        (("--steps", "0"), "--steps"),
        (("--repeats", "0"), "--repeats"),
        (("--arrivals", "posison"), "poisson"),
    ],
)
def test_flags_that_cannot_be_are_refused_before_anything_is_opened(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(["--run", "nowhere", *flags]) in (1, 2)
    assert message in capsys.readouterr().err

"""Exit candidates: few, spread over measured time, with heads that cost little of what lies behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import GraphError, UsageError
from calibration.training import candidates
from calibration.training.candidates import CandidateRules, settle_candidates
from calibration.training.config import FrozenConfig
from engines import run_graph
from export import ExportOptions, build_missing_heads, ensure_model
from tests.calibration.training.chain_worlds import ENGINE, export_chain

TEN_MS = dict.fromkeys((*(f"segment_{index:02d}" for index in range(20)), "final_head"), 10.0)


def times_of(table: dict[str, float], heads: dict[int, float]) -> Any:
    """Returns a clock in place of the engines': milliseconds by the name of a part; of heads by their rung."""

    def time_parts(parts: list[tuple[Path, Any]], cache: Path, engine: Any) -> list[float]:
        rung = int(cache.parent.name.removeprefix("heads_")) if cache.parent.name.startswith("heads") else 0
        return [heads[rung] if graph.name.startswith("exit_") else table.get(graph.name, 1.0) for _, graph in parts]

    return time_parts


def test_candidates_are_spread_over_time_and_the_network_stays_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model = export_chain(tmp_path)
    cuts = [cut.name for cut in model.spec.cuts]
    assert len(cuts) > 7, "the network has many cuts"
    slow = {model.spec.segments[5].name: 30.0, model.spec.segments[6].name: 30.0}
    monkeypatch.setattr(candidates, "time_parts", times_of(slow, {0: 0.01}))
    said: list[str] = []
    found = settle_candidates(run, model, ENGINE, CandidateRules(most=2), report=said.append)
    assert [cut.name for cut in found.spec.cuts] == [cuts[4], cuts[5], cuts[-1]], "around the slow segments"
    assert "2 of" in said[-1]
    rows = {"images": np.random.default_rng(0).random((3, 1, 8, 8), np.float32)}
    tensors = dict(rows)
    for part in (*found.spec.segments, found.spec.final_head):
        tensors |= run_graph(found.path(part), {item.name: tensors[item.name] for item in part.inputs})
    whole = run_graph(tmp_path / "chain.onnx", rows)
    np.testing.assert_allclose(tensors["logits"], whole["logits"], rtol=1e-5, atol=1e-6)
    again = settle_candidates(run, found, ENGINE, CandidateRules(most=5), report=said.append)
    assert again.digest == found.digest, "chosen once"
    same = ensure_model(run, ExportOptions(source=str(tmp_path / "chain.onnx")))
    assert same.digest == found.digest, "exporting the same file does not undo the choice"


def test_a_head_that_is_dear_gives_way_to_a_smaller_one_or_to_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, model = export_chain(tmp_path)
    costs = (7.0, 6.5, 4.5, 3.5, 2.5)
    monkeypatch.setattr(candidates, "time_parts", times_of(TEN_MS, dict(enumerate(costs))))
    said: list[str] = []
    found = settle_candidates(run, model, ENGINE, CandidateRules(head_share=0.1), report=said.append)
    behind = 10.0 * (len(model.spec.segments) - np.arange(len(model.spec.cuts) - 1))
    wanted = [next((rung for rung, ms in enumerate(costs) if ms <= 0.1 * left), None) for left in behind]
    kept = [cut.name for cut, rung in zip(model.spec.cuts, wanted, strict=False) if rung is not None]
    assert [cut.name for cut in found.spec.cuts[:-1]] == kept
    assert found.spec.settings["head_sizes"] == ",".join(str(rung) for rung in wanted if rung is not None)
    assert 0 < len(kept) < len(wanted), "some have none"
    assert any("takes more than 10% of the time behind it" in line for line in said)
    heads = build_missing_heads(found)
    assert list(heads) == kept
    sizes = [sum(p.numel() for p in head.parameters()) for head in heads.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_in_a_network_that_takes_no_time_every_head_is_cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, model = export_chain(tmp_path, layers=3)
    quick = {graph.name: 0.01 for graph in (*model.spec.segments, model.spec.final_head)}
    monkeypatch.setattr(candidates, "time_parts", times_of(quick, dict.fromkeys(range(5), 0.2)))
    found = settle_candidates(run, model, ENGINE, CandidateRules(), report=lambda _: None)
    assert found.spec.settings["head_sizes"] == ",".join("0" * (len(model.spec.cuts) - 1))


def test_where_every_head_is_too_dear_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, model = export_chain(tmp_path, layers=3)
    monkeypatch.setattr(candidates, "time_parts", times_of({}, dict.fromkeys(range(5), 9.0)))
    with pytest.raises(GraphError, match="--head-share"):
        settle_candidates(run, model, ENGINE, CandidateRules(), report=lambda _: None)


def test_real_engines_are_timed(tmp_path: Path) -> None:
    run, model = export_chain(tmp_path, layers=5)
    found = settle_candidates(run, model, ENGINE, CandidateRules(most=2, head_share=1.0), report=lambda _: None)
    assert len(found.spec.cuts) == 3
    assert list(run.training.iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize("wrong", [{"max_candidates": 0}, {"head_share": 0.0}, {"head_share": 1.5}, {"samples": 0}])
def test_rules_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"--{next(iter(wrong)).replace('_', '-')}"):
        FrozenConfig(**wrong)

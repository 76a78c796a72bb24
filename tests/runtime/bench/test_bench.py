"""``python -m runtime.bench`` on a run made by hand, and its statistics on small cases."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import BUNDLE_JSON, StaleArtifactError, new_artifact, read_json, write_json
from runtime import Runtime
from runtime.bench.command import main
from runtime.bench.contenders import WholeNetwork, until_exit
from runtime.bench.figures import (
    ContenderTimes,
    compare_times,
    describe_latencies,
    describe_times,
    paired_ratio,
    replay_mean_ms,
)
from runtime.bench.held_out import check_held_out
from runtime.bench.plot import label_exit, name_exit
from runtime.loading import without_leaving

CONTRACT = {
    "model", "engine", "batch_size", "samples", "tolerance", "delta", "exits", "thresholds", "full", "early_exit",
    "speedup_mean", "speedup_p99", "throughput_ratio", "metric_ratio", "exit_fractions", "engine_ms", "overhead_ratio",
    "predicted_mean_latency_ms", "oracle_mean_latency_ms", "environment",
}  # fmt: skip
SIDES = {"metric", "mean_latency_ms", "p50_ms", "p99_ms", "batch_ms", "throughput_per_s"}


def run_bench(toy: Any, folder: Path, *arguments: str) -> dict[str, Any]:
    target = folder / "bench.json"
    code = main(["--run", str(toy.root), "--data", str(toy.data), "--json", str(target), "--rounds", "2", *arguments])
    assert code == 0
    return json.loads(target.read_text())


def test_the_whole_contract(toy_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run_bench(toy_run, tmp_path, "--plot", str(tmp_path / "bench.png"))
    assert set(result) >= CONTRACT
    assert set(result["full"]) == set(result["early_exit"]) == SIDES
    logits = [toy_run.answer_by_numpy(toy_run.inputs, index)[0] for index in range(2)]
    early = toy_run.answer_by_numpy(toy_run.inputs, 0)[1] >= toy_run.threshold
    answers = np.where(early, logits[0].argmax(1), logits[1].argmax(1))
    assert result["samples"] == len(toy_run.inputs) == 300
    assert result["batch_size"] == 8
    assert result["exit_fractions"] == pytest.approx([early.mean(), 1 - early.mean()])
    assert result["full"]["metric"] == pytest.approx((logits[1].argmax(1) == toy_run.labels).mean())
    assert result["early_exit"]["metric"] == pytest.approx((answers == toy_run.labels).mean())
    assert result["agreement"] == pytest.approx((answers == logits[1].argmax(1)).mean())
    assert [exit_["count"] for exit_ in result["per_exit"]] == [early.sum(), (~early).sum()]
    assert result["test_data"] == "held out"
    assert result["predicted_mean_latency_ms"] == 1.0
    assert result["engine_ms"] < result["early_exit"]["batch_ms"]
    assert result["overhead_ratio"] > 1
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"
    out, err = capsys.readouterr()
    assert "mean latency, ms" in out
    assert "oracle" in out
    assert "bench.png" in err


def test_json_on_stdout_leaves_the_tables_to_stderr(toy_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(toy_run.root), "--data", str(toy_run.data), "--json", "-", "--samples", "9"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["samples"] == 9
    assert "mean latency, ms" in err


def test_a_smaller_batch_has_no_prediction(toy_run: Any, tmp_path: Path) -> None:
    result = run_bench(toy_run, tmp_path, "--batch-size", "3", "--samples", "20", "--threads", "1")
    assert result["predicted_mean_latency_ms"] is None
    assert (result["batch_size"], result["samples"], result["threads"]) == (3, 20, 1)


def test_a_bundle_finds_its_run(toy_run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--bundle", str(toy_run.bundle), "--data", str(toy_run.data), "--samples", "8"]) == 0
    assert "8 test samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--batch-size", "9"], 2, "planned for batches up to 8. Plan for larger ones with: python -m planner"),
        (["--rounds", "0"], 2, "--rounds 0: expected a number from 1"),
        (["--samples", "301"], 2, "has 300 test samples"),
        (["--plot", "bench.jpg"], 2, "name it bench.png"),
        (["--plot", "nowhere/bench.png"], 2, "there is no folder nowhere"),
        (["--bundle", "nowhere/bundle"], 1, "Make it with: python -m planner\n"),
    ],
)
def test_what_cannot_be_measured(
    arguments: list[str], code: int, message: str, toy_run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run", str(toy_run.root), "--data", str(toy_run.data), *arguments]) == code
    assert message in capsys.readouterr().err


def republish(toy: Any, folder: Path, *, parameters: dict[str, Any], plan: dict[str, Any] | None = None) -> Path:
    spec = read_json(toy.bundle / BUNDLE_JSON, dict)
    spec["plan"] |= plan or {}
    with new_artifact(folder / "bundle", kind="bundle", parameters=parameters) as staging:
        for name in ("engines", "stages"):
            shutil.copytree(toy.bundle / name, staging / name)
        write_json(staging / BUNDLE_JSON, spec)
    return folder / "bundle"


def test_a_bundle_of_another_model_is_refused(toy_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = republish(toy_run, tmp_path, parameters={}, plan={"model_digest": "f" * 64})
    assert main(["--run", str(toy_run.root), "--bundle", str(bundle)]) == 1
    assert "was planned for model ffffffffffff" in capsys.readouterr().err


def test_a_bundle_that_hides_its_data_is_refused(
    toy_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = republish(toy_run, tmp_path, parameters={})
    assert main(["--run", str(toy_run.root), "--bundle", str(bundle), "--data", str(toy_run.data)]) == 1
    assert "does not say which data" in capsys.readouterr().err


DIGESTS = {"images": "i", "labels": "l", "indices.train": "a", "indices.calibrate": "b", "indices.test": "c"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"indices.calibrate": "c"}, "used to calibrate"),
        ({"indices.train": "c"}, "used to train"),
        ({"indices.calibrate": "d"}, "another split"),
        ({"images": ""}, "does not say"),
    ],
)
def test_data_that_may_have_been_seen(changed: dict[str, str], message: str) -> None:
    with pytest.raises(StaleArtifactError, match=f"{message}.*python -m planner"):
        check_held_out(DIGESTS | changed, DIGESTS, where="bundle", remedy="python -m planner")


def test_data_that_was_not_seen() -> None:
    assert check_held_out(DIGESTS, DIGESTS, where="bundle", remedy="python -m planner") == "held out"
    assert (
        check_held_out(DIGESTS | {"images": "j"}, DIGESTS, where="bundle", remedy="python -m planner") == "other images"
    )


def test_figures_of_a_contender_and_their_ratios() -> None:
    full = ContenderTimes(latency_ms=np.full((2, 4), 10.0), batch_ms=np.full((2, 2), 10.0))
    early = ContenderTimes(
        latency_ms=np.array([[1.0, 2, 3, 10], [1, 2, 3, 10]]), batch_ms=np.array([[2.0, 10], [2, 10]])
    )
    figures = [describe_times(full, 0.8), describe_times(early, 0.6)]
    assert figures[0]["throughput_per_s"] == pytest.approx(200)
    assert (figures[1]["mean_latency_ms"], figures[1]["p50_ms"], figures[1]["batch_ms"]) == (4, 2.5, 6)
    ratios = compare_times(*figures)
    assert ratios == {
        "speedup_mean": pytest.approx(2.5),
        "speedup_p99": pytest.approx(1.0),
        "throughput_ratio": pytest.approx(40 / 24),
        "metric_ratio": pytest.approx(0.75),
    }
    assert compare_times({**figures[0], "metric": 0.0}, figures[1])["metric_ratio"] is None


def test_the_paired_ratio_shrugs_off_a_disturbed_batch() -> None:
    full = np.array([[10.0, 5.0, 10.0]])
    assert paired_ratio(np.array([[11.0, 5.5, 1000.0]]), full) == pytest.approx(1.1)


@settings(deadline=None)
@given(
    exits=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_replayed_latency_is_what_every_query_waits(exits: list[int], batch_size: int, seed: int) -> None:
    costs = [np.concatenate([[0.0], ms]) for ms in np.random.default_rng(seed).random((3, batch_size))]
    waits = []
    for start in range(0, len(exits), batch_size):
        batch = exits[start : start + batch_size]
        for leaves in batch:
            reached = [sum(other >= stage for other in batch) for stage in range(leaves + 1)]
            waits.append(sum(costs[stage][rows] for stage, rows in enumerate(reached)))
    assert replay_mean_ms(np.array(exits), costs, batch_size) == pytest.approx(np.mean(waits))


def test_histograms_hold_every_query() -> None:
    full = ContenderTimes(latency_ms=np.full((1, 2000), 10.0), batch_ms=np.ones((1, 1)))
    early = ContenderTimes(latency_ms=np.r_[np.full(1999, 2.0), 50.0][None], batch_ms=np.ones((1, 1)))
    histogram = describe_latencies(full, early)
    assert sum(histogram["full"]) == pytest.approx(1)
    assert sum(histogram["early_exit"]) == pytest.approx(1)
    assert histogram["edges_ms"][-1] == pytest.approx(10)


def test_bundles_without_leaving_and_cut_off(fake_net: Any) -> None:
    spec = fake_net(thresholds=(0.3, 0.6)).spec()
    assert [stage.threshold for stage in without_leaving(spec).stages] == [math.inf, math.inf, None]
    assert [stage.threshold for stage in until_exit(spec, 1).stages] == [math.inf, None]
    rest = {"stages": (), "plan": spec.plan}
    assert dataclasses.replace(until_exit(spec, 2), **rest) == dataclasses.replace(spec, **rest)
    for changed, exits in ((without_leaving(spec), 2), (until_exit(spec, 2), 2), (until_exit(spec, 1), 1)):
        early = [stage.threshold for stage in changed.stages[:-1]]
        assert [exit_.threshold for exit_ in changed.plan.exits] == early == [math.inf] * exits


def test_the_command(toy_run: Any) -> None:
    command = [sys.executable, "-m", "runtime.bench", "--run", str(toy_run.root), "--data", str(toy_run.data)]
    done = subprocess.run([*command, "--samples", "8"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "8 test samples in batches of 8" in done.stdout


def test_contenders_take_turns_in_alternating_order(
    toy_run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []
    full, early = WholeNetwork.run, Runtime.run

    def run_full(self: WholeNetwork, batch: Any) -> Any:
        turns.append("A")
        return full(self, batch)

    def run_early(self: Runtime, batch: Any) -> Any:
        turns.append("-" if self.spec.stages[0].threshold == math.inf else "B")
        return early(self, batch)

    monkeypatch.setattr(WholeNetwork, "run", run_full)
    monkeypatch.setattr(Runtime, "run", run_early)
    run_bench(toy_run, tmp_path, "--samples", "24")
    assert "".join(turns) == 3 * "AB-" + "AB-" + "-BA" + "AB-" + "-BA" + "AB-" + "-BA"


@pytest.mark.parametrize(
    ("share", "metric", "label"),
    [(0.834, 0.9549, "83.4% (accuracy 95.5%)"), (0.0, None, "0.0%"), (0.0001, 0.0, "0.0%"), (0.2, None, "20.0%")],
)
def test_an_exit_where_no_query_leaves_shows_its_share_alone(share: float, metric: float | None, label: str) -> None:
    assert label_exit({"share": share, "metric": metric}, "accuracy") == label


@pytest.mark.parametrize(
    ("name", "drawn"),
    [("final", "final head"), ("semifinal/Add", "semifinal/Add"), ("layer1.final", "layer1.final")],
)
def test_the_picture_names_a_cut_as_it_is_called(name: str, drawn: str) -> None:
    assert name_exit({"exit": name}) == drawn


def test_without_labels_an_exit_shows_how_often_it_agrees() -> None:
    assert label_exit({"share": 0.2, "metric": None, "agreement": 0.987}, "mIoU") == "20.0% (98.7% as the whole)"
    assert label_exit({"share": 0.2, "metric": 0.5, "agreement": 0.987}, "mIoU") == "20.0% (mIoU 50.0%)"


def test_queries_without_labels_have_an_agreement_and_no_metric(
    toy_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(toy_run.data) as known:
        np.savez(tmp_path / "queries.npz", images=known["images"], split=known["split"])
    labelled = run_bench(toy_run, tmp_path)
    target, queries = tmp_path / "out.json", str(tmp_path / "queries.npz")
    capsys.readouterr()
    words = ["--run", str(toy_run.root), "--data", queries, "--rounds", "1", "--json", str(target)]
    assert main([*words, "--plot", str(tmp_path / "bench.png")]) == 0
    result = json.loads(target.read_text())
    assert result["full"]["metric"] is result["early_exit"]["metric"] is result["metric_ratio"] is None
    assert {exit_["metric"] for exit_ in result["per_exit"]} == {None}
    assert result["agreement"] == labelled["agreement"]
    assert result["exit_fractions"] == labelled["exit_fractions"]
    assert set(result) >= CONTRACT
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("answers as the full")]
    assert row[-3:] == ["-", f"{result['agreement']:.4f}", "-"]
    assert (tmp_path / "bench.png").read_bytes()[:4] == b"\x89PNG"

"""Bad traces through the default way, the joint search with a certificate: a sound plan or a clear error, never a wrong
certificate. Refused values, holes in the times and unsorted exits are also tested in ``test_certified`` and
``test_importing``."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from artifacts import Trace
from calibration.certify.risk_tests import split_for_tuning
from planner import NO_EXITS, Exits, NetworkCosts, SlowBatchRule, evaluate_exits
from planner.certify.certified import CertifiedPlans, plan_certified
from planner.certify.evidence import metric_under
from planner.commands.main import main
from planner.config import CertifyConfig
from planner.predict.replay import expect_ms
from planner.search.searches import SEARCHES
from tests.planner.foreign.test_importing import EXITS, SIZES, SLOW, write_npz, write_times
from tests.planner.planning_worlds import make_costs, make_problem, make_trace

COSTS = make_costs(0, exits=2, head=0.01)
ANY_BATCHES = SlowBatchRule(share=0.0, stay_allowance=None)


def certified(
    trace: Trace, *, tolerance: float = 0.05, search: str = "joint", costs: NetworkCosts = COSTS, **settings: object
) -> CertifiedPlans:
    problem = make_problem(trace, costs, tolerance, slow_batches=ANY_BATCHES)
    return plan_certified(problem, SEARCHES[search], CertifyConfig(**settings))


def trace_of(confidence: np.ndarray, metric: np.ndarray) -> Trace:
    agreement = metric == metric[-1]
    return Trace(
        exits=tuple(f"cut{row}" for row in range(len(metric) - 1)), confidence=confidence.astype(np.float32),
        metric=metric.astype(np.float32), agreement=agreement,
    )  # fmt: skip


def loss_of(trace: Trace, plan: Exits) -> float:
    return 1 - float(metric_under(trace, plan).mean(dtype=float)) / trace.full_metric


SAMPLES = 1500


def good() -> Trace:
    return make_trace(3, exits=2, samples=SAMPLES)


def constant() -> Trace:
    return replace(good(), confidence=np.full((3, SAMPLES), 0.5, np.float32))


def one_class() -> Trace:
    """All exits are right about the only class that occurs."""
    return replace(good(), metric=np.ones((3, SAMPLES), np.float32))


def ties() -> Trace:
    return make_trace(3, exits=2, samples=SAMPLES, levels=1)


def copies() -> Trace:
    """One sample, many times: it is no evidence of more than itself, but the trace cannot tell."""
    return good().select(np.zeros(SAMPLES, np.int64) + int(good().metric[-1].argmax()))


def upside_down() -> Trace:
    """The surer, the more often wrong."""
    return replace(good(), confidence=1 - good().confidence)


def never_right() -> Trace:
    wrong = good().metric.copy()
    wrong[:-1] = 0
    return replace(good(), metric=wrong)


def better_early() -> Trace:
    """Exits that beat the final head, which loses nothing, whichever samples leave."""
    return replace(good(), metric=np.sort(good().metric, axis=0)[::-1].copy())


BAD = (constant, one_class, ties, copies, upside_down, never_right, better_early)


@pytest.mark.parametrize("risk", ["metric", "agreement"])
@pytest.mark.parametrize("make", BAD)
def test_joint_plans_of_bad_traces_are_sound(make: Callable[[], Trace], risk: str) -> None:
    """What the certificate says is true of the samples that it speaks of, and nothing slower ships."""
    trace = make()
    if risk == "agreement":
        trace = replace(trace, metric=trace.agreement.astype(np.float32))
    found = certified(trace, risk=risk)
    split = split_for_tuning(SAMPLES, seed=0)
    tuning, held_out = trace.select(split.tuning), trace.select(split.certification)
    for plan, certificate in found.certificates.items():
        assert certificate.bound in (0.0, 0.05)
        assert certificate.p_value <= certificate.delta
        assert certificate.observed == pytest.approx(loss_of(held_out, plan))
        assert certificate.observed <= 0.05
        assert expect_ms(tuning, plan, COSTS) <= expect_ms(tuning, NO_EXITS, COSTS)
    if make in (one_class, copies, better_early) and risk == "metric":
        assert evaluate_exits(trace, found.boldest).shares[-1] < 1


@pytest.mark.parametrize("samples", [2, 3, 10])
def test_a_handful_of_samples_certifies_nothing(samples: int) -> None:
    found = certified(one_class().select(np.arange(samples)), tolerance=0.01)
    assert list(found.certificates) == [NO_EXITS]
    assert found.shortage is None or found.shortage.least > samples


MANY = 6
MANY_COSTS = make_costs(0, exits=MANY, head=0.01)


def barely_bad(kind: str, samples: int = 4000, excess: float = 0.052) -> Trace:
    """A population in which every plan with exits loses ``excess`` at least, a little more than the tolerance of 0.05.

    The full network is right throughout. ``constant``: every sample that arrives at an exit leaves there. ``one
    class``: likewise, with confidence 1. ``ties``: two values, and the confident samples are wrong so often that they
    alone lose too much. Exits err on samples of their own, so that of several one always looks well on a tuning half.
    """
    random = np.random.default_rng(7)
    wrong, confidence = np.zeros((MANY, samples), bool), np.full((MANY + 1, samples), 0.5)
    sure = np.arange(samples)
    if kind == "one class":
        confidence[:] = 1
    if kind == "ties":
        confidence[:] = np.where(sure < samples // 2, 0.8, 0.4)
        sure = sure[: samples // 2]
    for row in wrong:
        row[random.choice(sure, round(excess * samples), replace=False)] = True
    return trace_of(confidence, np.concatenate([~wrong, np.ones((1, samples), bool)]))


@pytest.mark.parametrize("kind", ["constant", "one class", "ties"])
def test_certificates_of_bad_traces_fail_with_delta_at_most(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every plan with exits breaks the tolerance, by a hair: to certify any is to be wrong, which delta bounds."""
    for advice in ("count_needed", "find_tolerance"):  # what is said afterwards takes most of the time
        monkeypatch.setattr(f"planner.certify.certified.{advice}", lambda *_, **__: None)
    whole, random = barely_bad(kind), np.random.default_rng(11)
    for cut, row in zip(whole.exits, whole.confidence[:-1], strict=True):
        for threshold in np.unique(row).tolist():
            assert loss_of(whole, Exits(cuts=(cut,), thresholds=(threshold,))) > 0.05
    rounds, delta = 30, 0.1
    wrong = deceived = 0
    for seed in range(rounds):
        drawn = whole.select(random.integers(0, whole.sample_count, 400))
        found = certified(drawn, search="joint survey", costs=MANY_COSTS, delta=delta, seed=seed)
        wrong += max(loss_of(whole, plan) for plan in found.certificates) > 0.05
        deceived += len(found.sequence) > 0
    assert deceived / rounds > 0.9  # by the tuning half
    assert wrong / rounds <= delta + 3 * np.sqrt(delta * (1 - delta) / rounds)


def import_bad(tmp_path: Path, arrays: dict[str, np.ndarray], times: dict[str, object] | None = None) -> int:
    trace, itm = write_npz(tmp_path / "trace.npz", **arrays), write_times(tmp_path / "t.csv", times)
    return main(["import-trace", "--run", str(tmp_path / "run"), "--trace", str(trace), "--itm", str(itm)])


def plan_bad(tmp_path: Path, *words: str) -> tuple[int, dict]:
    target = tmp_path / "plan.json"
    loose = ("--stay-allowance", "9", "--tail-share", "0", "--batch-size", "8", "--json", str(target))
    code = main(["--run", str(tmp_path / "run"), *loose, *words])
    return code, json.loads(target.read_text()) if target.exists() else {}


def arrays_of(trace: Trace) -> dict[str, np.ndarray]:
    return {"confidence": trace.confidence, "correct": trace.metric, "exits": np.array(EXITS)}


@pytest.mark.parametrize("make", BAD)
def test_bad_traces_by_the_commands(make: Callable[[], Trace], tmp_path: Path) -> None:
    trace = make()
    assert import_bad(tmp_path, arrays_of(trace)) == 0
    code, found = plan_bad(tmp_path, "--tolerance", "0.05")
    plan = found["plan"]
    assert code == 0
    assert plan["certificate"]["observed"] <= 0.05
    chosen = Exits(
        cuts=tuple(f"cut{EXITS.index(exit_['cut'])}" for exit_ in plan["exits"]),
        thresholds=tuple(exit_["threshold"] for exit_ in plan["exits"]),
    )
    held_out = trace.select(split_for_tuning(SAMPLES, seed=0).certification)
    assert plan["certificate"]["observed"] == pytest.approx(loss_of(held_out, chosen))
    assert plan["predicted"]["mean_ms"] <= plan["predicted"]["full_ms"]


def test_values_that_are_none_and_unsorted_exits_end_the_import(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = arrays_of(good())
    holes = fine["confidence"].copy()
    holes[0, 3] = np.nan
    assert import_bad(tmp_path, {**fine, "confidence": holes}) == 1
    assert "confidence must be finite" in capsys.readouterr().err
    assert import_bad(tmp_path, {**fine, "exits": np.array(EXITS[::-1])}) == 1
    assert "put both in the order of the data flow" in capsys.readouterr().err
    assert import_bad(tmp_path, fine, {"head late": "1,,3"}) == 1
    assert "row 'head late' at batch size 4 holds ''" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_ten_samples_by_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_bad(tmp_path, arrays_of(one_class().select(np.arange(10)))) == 0
    code, found = plan_bad(tmp_path, "--tolerance", "0.01")
    said = capsys.readouterr().err
    assert (code, found["plan"]["exits"]) == (0, [])
    assert "never fewer than 399" in said
    assert "--certify none" in said


def test_a_network_that_is_never_right_has_no_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_bad(tmp_path, arrays_of(replace(good(), metric=np.zeros((3, SAMPLES), np.float32)))) == 0
    assert plan_bad(tmp_path, "--tolerance", "0.01")[0] == 3
    assert "no meaning" in capsys.readouterr().err


def test_noise_in_the_times_by_the_commands(tmp_path: Path) -> None:
    """Times that fall and rise with the batch make other plans, not other losses."""
    random = np.random.default_rng(0)
    noisy: dict[str, object] = {
        name: ",".join(f"{ms * (0.5 + size / 8) * random.uniform(0.2, 3):.4f}" for size in SIZES)
        for name, ms in SLOW.items()
    }
    assert import_bad(tmp_path, arrays_of(good()), noisy) == 0
    code, found = plan_bad(tmp_path, "--tolerance", "0.1")
    assert code == 0
    assert found["plan"]["certificate"]["observed"] <= 0.1
    assert found["plan"]["predicted"]["mean_ms"] <= found["plan"]["predicted"]["full_ms"]

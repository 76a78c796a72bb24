"""Timing of engines, with a clock that only work moves forward."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from artifacts import Cut, GraphSpec, ModelSpec, TensorSpec, UsageError
from engines import Device, FakeEngine
from planner import TimingConfig
from planner.config import DEFAULT_SIZES, batch_sizes_up_to
from planner.measure.timing import EngineSettings, TimedGraph, time_calls, time_graphs


class Clock:
    """Seconds that pass only in ``sleep``."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_rounds_are_interleaved_after_the_warm_up() -> None:
    clock, log = Clock(), []

    def call(name: str, seconds: float):
        return lambda: (log.append(name), clock.sleep(seconds))

    calls = {("a", 1): call("a", 1.0), ("b", 1): call("b", 2.0)}
    timings = time_calls(calls, TimingConfig(rounds=3, warm_up=2, budget_s=1000), clock=clock)
    assert "".join(log) == "aabb" + "ab" * 3
    assert timings.seconds == {("a", 1): (1.0,) * 3, ("b", 1): (2.0,) * 3}
    assert timings.rounds == 3


def test_short_calls_run_warm() -> None:
    """The first call after another row is slow here; from the second round on the call after it counts."""
    clock, log = Clock(), []

    def call(name: str):
        def run() -> None:
            clock.sleep(0.001 if log and log[-1] == name else 0.003)
            log.append(name)

        return run

    timings = time_calls({("a", 1): call("a"), ("b", 1): call("b")}, TimingConfig(rounds=4, warm_up=0), clock=clock)
    assert timings.seconds["a", 1] == pytest.approx((0.003, 0.001, 0.001, 0.001))
    assert "".join(log) == "ab" + "aabb" * 3


@pytest.mark.parametrize(("budget_s", "rounds"), [(0.001, 3), (45.0, 5), (1000.0, 20)])
def test_budget_ends_the_rounds_but_never_before_the_third(budget_s: float, rounds: int) -> None:
    clock = Clock()
    config = TimingConfig(rounds=20, warm_up=1, budget_s=budget_s)
    assert time_calls({("a", 1): lambda: clock.sleep(10)}, config, clock=clock).rounds == rounds


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [(1, (1,)), (3, (1, 2, 3)), (32, DEFAULT_SIZES), (100, (*DEFAULT_SIZES, 48, 64, 96, 100))],
)
def test_batch_sizes_are_cut_and_extended(batch_size: int, expected: tuple[int, ...]) -> None:
    assert batch_sizes_up_to(batch_size) == expected


def test_given_batch_sizes_are_cut_and_extended() -> None:
    assert batch_sizes_up_to(16, (1, 8, 32)) == (1, 8, 16)
    assert batch_sizes_up_to(32, (5,)) == (5, 7, 10, 15, 20, 30, 32)
    assert batch_sizes_up_to(5, (1,)) == (1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    "wrong", [{"batch_sizes": ()}, {"batch_sizes": (0, 1)}, {"batch_sizes": (2, 1)}, {"rounds": 0}, {"budget_s": 0}]
)
def test_config_checks_itself(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="--"):
        TimingConfig(**wrong)


X = TensorSpec(name="x", dtype="float32", row_shape=(3,))
H = TensorSpec(name="h", dtype="float32", row_shape=(2,))
Y = TensorSpec(name="y", dtype="float32", row_shape=(4,))
C = TensorSpec(name="c", dtype="float32", row_shape=())
SEGMENT = GraphSpec(name="segment_00", file="s.onnx", inputs=(X,), outputs=(H,))
HEAD = GraphSpec(name="exit_h", file="e.onnx", inputs=(H,), outputs=(Y, C), confidence="c", answers=("y",))
FULL = GraphSpec(name="full", file="f.onnx", inputs=(X,), outputs=(Y, C), confidence="c", answers=("y",))
SPEC = ModelSpec(name="net", family="fake", task="classification", full=FULL, cuts=(Cut(name="h", main=H),))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch):
    """Times a segment, a head and the whole network, all of them fakes; returns the matrix and the engines."""

    def run(config: TimingConfig, *, fixed: tuple[int, ...] = ()):
        clock, engines = Clock(), {}
        per_row = {"segment_00": 1.0, "exit_h": 0.5, "full": 2.0}

        def open_fake(folder: Path, graph: GraphSpec, *, threads: int, device: Device) -> FakeEngine:
            assert (threads, device.name) == (2, "cpu")
            ms = per_row[graph.name]
            engines[graph.name] = FakeEngine(
                graph,
                max_batch_size=config.batch_sizes[-1],
                batch_sizes=fixed,
                pause=lambda rows: clock.sleep((10 + ms * rows) / 1000),
            )
            return engines[graph.name]

        monkeypatch.setattr("planner.measure.timing.ensure_engine", lambda onnx, graph, cache, **_: cache / graph.name)
        monkeypatch.setattr("planner.measure.timing.open_engine", open_fake)
        graphs = [
            TimedGraph(row="segment_00", onnx=Path("s"), graph=SEGMENT),
            TimedGraph(row="exit_h", onnx=Path("e"), graph=HEAD, gather="h", carried=(H,)),
            TimedGraph(row="full", onnx=Path("f"), graph=FULL),
        ]
        settings = EngineSettings(backend="onnxruntime", threads=2)
        itm = time_graphs(graphs, SPEC, Path("cache"), config, settings, clock=clock)
        return itm, engines

    return run


def test_matrix_holds_the_times_of_the_clock(timed) -> None:
    itm, engines = timed(TimingConfig(batch_sizes=(1, 4, 8), rounds=4, warm_up=1))
    assert set(itm.median_ms) == {"segment_00", "exit_h", "gather_h", "full", "serving"}
    np.testing.assert_allclose(itm.row_ms("segment_00"), (11, 14, 18))
    np.testing.assert_allclose(itm.row_ms("exit_h"), (10.5, 12, 14))
    np.testing.assert_allclose(itm.row_ms("full"), (12, 18, 26))
    assert set(itm.spread_ms["full"]) == {0.0} or max(itm.spread_ms["full"]) < 1e-9
    assert (itm.backend, itm.threads, itm.fixed) == ("fake 1", 2, False)
    assert itm.environment["timing_rounds"] == "4"
    assert engines["full"].batches == [8, 4, 1] + [8, 4, 1] * 4


def test_engines_of_fixed_sizes_are_timed_at_theirs(timed) -> None:
    itm, _ = timed(TimingConfig(batch_sizes=(1, 4, 8), rounds=1, warm_up=0), fixed=(2, 8))
    assert (itm.batch_sizes, itm.fixed) == ((2, 8), True)


def test_engines_are_closed_afterwards(timed) -> None:
    _, engines = timed(TimingConfig(batch_sizes=(1,), rounds=1, warm_up=0))
    from artifacts import EngineError

    with pytest.raises(EngineError, match="closed"):
        engines["full"].bind({})


def test_gather_really_lets_half_of_the_rows_leave(timed, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines import HostDevice

    found = []
    split = HostDevice.split_rows

    def watch(self: HostDevice, count: int, **options: object):
        departure = split(self, count, **options)
        if options["carried"]:
            found.append((count, len(departure.left)))
        return departure

    monkeypatch.setattr(HostDevice, "split_rows", watch)
    timed(TimingConfig(batch_sizes=(1, 8), rounds=1, warm_up=0))
    assert set(found) == {(1, 1), (8, 4)}

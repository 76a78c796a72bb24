"""The chain of stages: where rows leave and with which answers, against a reference that takes one row at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import SchemaError, TensorSpec
from engines import EngineSet, FakeEngine, HostDevice, plan_covers
from runtime import Runtime

CONFIDENCES = (0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0, float("nan"))
THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.9, 1.0, 1.5)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    depth = draw(st.integers(1, 4))
    largest = draw(st.integers(1, 9))
    count = draw(st.integers(1, 3 * largest))
    seed = draw(st.integers(0, 2**32 - 1))
    confidence = draw(st.lists(st.sampled_from(CONFIDENCES), min_size=count * depth, max_size=count * depth))
    engines = []
    for _ in range(depth):
        sizes = draw(st.sets(st.integers(1, 9), min_size=1, max_size=4))
        times = draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
        engines.append((dict(zip(sorted(sizes), times, strict=True)), draw(st.booleans())))
    return {
        "thresholds": tuple(draw(st.lists(st.sampled_from(THRESHOLDS), min_size=depth - 1, max_size=depth - 1))),
        "largest": largest,
        "engines": engines,
        "confidence": np.array(confidence, np.float32).reshape(count, depth),
        "mask": np.random.default_rng(seed).random((count, 2)) < 0.5,
    }


@settings(deadline=None)
@given(case=cases())
def test_every_row_leaves_where_it_would_alone_with_the_answer_it_would_get_alone(
    case: dict[str, Any], fake_net: Any, stage_engines: Any
) -> None:
    engines = [stage_engines(median_ms=median_ms, fixed=fixed) for median_ms, fixed in case["engines"]]
    net = fake_net(thresholds=case["thresholds"], max_batch_size=case["largest"], engines=engines, check_finite=False)
    x, mask = net.batch(case["confidence"], mask=case["mask"])
    with net.open() as runtime:
        for _ in range(2):  # the second time over the buffers that the first one left behind
            result = runtime.run((x, mask))
            for row in range(len(x)):
                exit_index, confidence, answer = net.answer_row(x[row], mask[row])
                assert result.exit_index[row] == exit_index
                np.testing.assert_array_equal(result.confidence[row], confidence)
                np.testing.assert_array_equal(result.outputs[row], answer)


@settings(deadline=None)
@given(case=cases())
def test_a_stream_yields_every_row_once_in_the_order_in_which_they_leave(
    case: dict[str, Any], fake_net: Any, stage_engines: Any
) -> None:
    engines = [stage_engines(median_ms=median_ms, fixed=fixed) for median_ms, fixed in case["engines"]]
    net = fake_net(thresholds=case["thresholds"], max_batch_size=case["largest"], engines=engines, check_finite=False)
    x, mask = net.batch(case["confidence"], mask=case["mask"])
    with net.open() as runtime:
        result = runtime.run((x, mask))
        seen = []
        left_at = []
        for rows, outputs in runtime.stream((x, mask)):
            assert rows.dtype == np.int64
            assert len(rows) >= 1
            assert len(set(rows.tolist())) == len(rows)
            np.testing.assert_array_equal(outputs, result.outputs[rows])
            part = set((rows // case["largest"]).tolist())
            stage = set(result.exit_index[rows].tolist())
            assert len(part) == len(stage) == 1
            left_at.append((part.pop(), stage.pop()))
            seen.extend(rows.tolist())
    assert sorted(seen) == list(range(len(x)))
    assert left_at == sorted(set(left_at))


def test_later_stages_run_over_the_survivors_alone(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5, 0.5), masked=False)
    confidence = np.zeros((8, 3))
    confidence[[0, 2, 3, 6, 7], 0] = 1
    confidence[[1, 5], 1] = 1
    with net.open() as runtime:
        result = runtime.run(net.batch(confidence))
    assert [fake.batches for fake in net.fakes] == [[8], [3], [1]]
    assert result.exit_index.tolist() == [0, 1, 0, 0, 2, 1, 0, 0]


def test_thresholds_are_compared_in_float32(fake_net: Any) -> None:
    confidence = np.zeros((2, 2))
    confidence[0, 0] = np.float32(0.9)  # in float64 less than the threshold
    assert confidence[0, 0] < 0.9
    net = fake_net(thresholds=(0.9,), masked=False)
    with net.open() as runtime:
        assert runtime.run(net.batch(confidence)).exit_index.tolist() == [0, 1]


def test_a_chain_ends_where_the_last_row_leaves(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5, 0.5), masked=False)
    with net.open() as runtime:
        assert runtime.run(net.batch(np.ones((3, 3)))).exit_index.tolist() == [0, 0, 0]
    assert [fake.batches for fake in net.fakes] == [[3], [], []]


def test_every_run_is_bound_once_whatever_the_number_of_rows(
    fake_net: Any, stage_engines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = []
    bind = EngineSet.bind

    def counting(engines: EngineSet, run: Any, buffers: Any) -> Any:
        bound.append((engines.graph.name, run))
        return bind(engines, run, buffers)

    monkeypatch.setattr(EngineSet, "bind", counting)
    engines = [stage_engines(median_ms={8: 1.0}), stage_engines(median_ms={4: 1.0}, fixed=True)]
    net = fake_net(thresholds=(0.5,), masked=False, engines=engines)
    with net.open() as runtime:
        for count in (8, 3, 8, 4, 3):
            runtime.run(net.batch(np.zeros((count, 2))))
    runs = [(name, run.start, run.batch_size) for name, run in bound]
    assert sorted(runs) == [
        ("stage_0", 0, 3), ("stage_0", 0, 4), ("stage_0", 0, 8), ("stage_1", 0, 4), ("stage_1", 4, 4),
    ]  # fmt: skip


def test_a_stage_reads_the_newest_tensor_of_a_name(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5, 0.5), masked=False)
    spec = net.spec()
    first, second, third = (stage.graph for stage in spec.stages)
    named_x = first.inputs[0]
    graphs = [
        first,
        dataclasses.replace(second, outputs=(named_x, *second.outputs[1:])),
        dataclasses.replace(third, inputs=(named_x,)),
    ]

    def pass_on(add: float) -> Any:
        def outputs(values: Any) -> Any:
            x = next(iter(values.values())) + np.float32(add)
            zero = np.zeros(len(x), np.float32)
            return {"x": x, "h1": x, "skip": zero, "answer": x[:, :2], "confidence": zero}

        return outputs

    sets = [
        EngineSet(FakeEngine(graph, outputs=pass_on(add)), plan_covers({8: 1.0}, largest=8, fixed=False))
        for graph, add in zip(graphs, (1, 10, 100), strict=True)
    ]
    stages = tuple(dataclasses.replace(stage, graph=graph) for stage, graph in zip(spec.stages, graphs, strict=True))
    with Runtime(dataclasses.replace(spec, stages=stages), sets, HostDevice()) as runtime:
        assert runtime.run(np.zeros((3, 4), np.float32)).outputs.tolist() == [[111, 111]] * 3


def _misfits(net: Any) -> dict[str, Any]:
    spec = net.spec()
    first, last = spec.stages
    stranger = TensorSpec(name="elsewhere", dtype="float32", row_shape=(3,))
    long_answer = TensorSpec(name="answer", dtype="float32", row_shape=(3,))
    return {
        "0 stages": dataclasses.replace(spec, stages=()),
        "elsewhere": dataclasses.replace(
            spec, stages=(first, dataclasses.replace(last, graph=dataclasses.replace(last.graph, inputs=(stranger,))))
        ),
        "answers": dataclasses.replace(
            spec,
            stages=(
                dataclasses.replace(
                    first,
                    graph=dataclasses.replace(
                        first.graph, outputs=(*first.graph.outputs[:-2], long_answer, first.graph.outputs[-1])
                    ),
                ),
                last,
            ),
        ),
        "later stages read": dataclasses.replace(
            spec,
            stages=(
                first,
                dataclasses.replace(last, graph=dataclasses.replace(last.graph, inputs=(first.graph.outputs[-2],))),
            ),
        ),
        "no confidence": dataclasses.replace(
            spec, stages=(dataclasses.replace(first, graph=dataclasses.replace(first.graph, confidence=None)), last)
        ),
        "one float32 per row": dataclasses.replace(
            spec, stages=(dataclasses.replace(first, graph=dataclasses.replace(first.graph, confidence="answer")), last)
        ),
        "has threshold None": dataclasses.replace(spec, stages=(dataclasses.replace(first, threshold=None), last)),
        "has threshold 0.5": dataclasses.replace(spec, stages=(first, dataclasses.replace(last, threshold=0.5))),
        "at most 8 of 9 rows": dataclasses.replace(spec, max_batch_size=9),
        "has threshold 0.7, but the exit plan 0.5 at 'cut_0'": dataclasses.replace(
            spec, stages=(dataclasses.replace(first, threshold=0.7), last)
        ),
        "2 exits, but the bundle 2 stages": dataclasses.replace(
            spec, plan=dataclasses.replace(spec.plan, exits=net.__class__(thresholds=(0.5, 0.5)).spec().plan.exits)
        ),
        "0 exits, but the bundle 2 stages": dataclasses.replace(spec, plan=dataclasses.replace(spec.plan, exits=())),
    }


@pytest.mark.parametrize(
    "why",
    [
        "0 stages", "elsewhere", "answers", "later stages read", "no confidence", "one float32 per row",
        "has threshold None", "has threshold 0.5", "at most 8 of 9 rows",
        "has threshold 0.7, but the exit plan 0.5 at 'cut_0'", "2 exits, but the bundle 2 stages",
        "0 exits, but the bundle 2 stages",
    ],
)  # fmt: skip
def test_stages_that_do_not_fit_together_are_refused(why: str, fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    with pytest.raises(SchemaError, match=f"(?s){why}.*python -m planner"):
        Runtime(_misfits(net)[why], net.engine_sets(), HostDevice())


def test_exits_in_another_order_than_the_stages_are_refused(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5, 0.7))
    spec = net.spec()
    swapped = dataclasses.replace(spec, plan=dataclasses.replace(spec.plan, exits=spec.plan.exits[::-1]))
    with pytest.raises(SchemaError, match="'stage_0' has threshold 0.5, but the exit plan 0.7 at 'cut_1'"):
        Runtime(swapped, net.engine_sets(), HostDevice())
    first = spec.plan.exits[0]
    twice = dataclasses.replace(spec.plan, exits=(first, dataclasses.replace(first, threshold=0.7)))
    with pytest.raises(SchemaError, match=r"two exits at one cut \(cut_0, cut_0\)"):
        Runtime(dataclasses.replace(spec, plan=twice), net.engine_sets(), HostDevice())


def test_padding_and_splits_stay_inside_the_buffers(fake_net: Any, stage_engines: Any) -> None:
    engines = [stage_engines(median_ms={4: 1.0}, fixed=True), stage_engines(median_ms={3: 1.0}, fixed=True)]
    net = fake_net(thresholds=(0.5,), max_batch_size=7, engines=engines, masked=False)
    assert plan_covers({3: 1.0}, largest=7, fixed=True).buffer_rows == 9
    confidence = np.zeros((7, 2))
    confidence[2, 0] = 1
    with net.open() as runtime:
        assert runtime.run(net.batch(confidence)).exit_index.tolist() == [1, 1, 0, 1, 1, 1, 1]
    assert [fake.batches for fake in net.fakes] == [[4, 4], [3, 3]]

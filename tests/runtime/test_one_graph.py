"""A bundle with one graph: whole batches go through it, everything else goes stage by stage, and rows cannot tell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import BundleSpec, EngineError, GraphSpec, OneGraphSpec, SchemaError, TensorSpec
from engines import FakeEngine, HostDevice
from runtime import Runtime, RuntimeOptions, without_leaving


def describe_graph(net: Any) -> GraphSpec:
    outputs = (
        TensorSpec(name="logits", dtype="float32", row_shape=(2,)),
        TensorSpec(name="exit_index", dtype="int64", row_shape=()),
        TensorSpec(name="confidence", dtype="float32", row_shape=()),
    )
    return GraphSpec(
        name="one_graph", file="stages/one_graph.onnx", inputs=net.inputs, outputs=outputs, confidence="confidence",
        answers=("logits",),
    )  # fmt: skip


def open_net(net: Any, *, faults: dict[int, Exception] | None = None, **options: Any) -> tuple[Runtime, list[int]]:
    """Opens a net with a fake of all its stages; also returns the sizes of the batches that went through that one."""
    runs: list[int] = []

    def answer(values: Any) -> dict[str, np.ndarray]:
        rows = [net.answer_row(x, mask) for x, mask in zip(values["x"], values["mask"], strict=True)]
        runs.append(len(rows))
        places, confidences, answers = zip(*rows, strict=True)
        return {"logits": np.stack(answers), "exit_index": np.array(places, np.int64),
                "confidence": np.array(confidences, np.float32)}  # fmt: skip

    graph = describe_graph(net)
    engine = FakeEngine(graph, max_batch_size=net.max_batch_size, outputs=answer, faults=faults or {})
    spec = replace(net.spec(), one_graph=OneGraphSpec(graph=graph, engine="engines/one_graph"))
    chosen = RuntimeOptions(check_finite=net.check_finite, **options)
    return Runtime(spec, net.engine_sets(), HostDevice(), chosen, engine), runs


@settings(deadline=None)
@given(count=st.integers(1, 17), depth=st.integers(2, 4), seed=st.integers(0, 99))
def test_rows_get_the_answers_of_the_stages(count: int, depth: int, seed: int, fake_net: Any) -> None:
    random = np.random.default_rng(seed)
    net = fake_net(thresholds=(0.5,) * (depth - 1))
    batch = net.batch(random.random((count, depth), np.float32), mask=random.random((count, 2)) < 0.5)
    with net.open() as stages:
        wanted = stages.run(batch)
        counted = stages.stats()
    runtime, runs = open_net(net)
    with runtime:
        assert runtime.chain_captured
        found = runtime.run(batch)
        again = runtime.stats()
        assert sum(runs) == count
        streamed = np.full((count, 2), np.nan, np.float32)
        for rows, answers in runtime.stream(batch):
            streamed[rows] = answers
        assert sum(runs) == count  # a stream hands out answers as they leave, stage by stage
    np.testing.assert_array_equal(found.outputs, wanted.outputs)
    np.testing.assert_array_equal(found.exit_index, wanted.exit_index)
    np.testing.assert_array_equal(found.confidence, wanted.confidence)
    np.testing.assert_array_equal(streamed, wanted.outputs)
    assert [exit_.count for exit_ in again.exits] == [exit_.count for exit_ in counted.exits]
    for start in range(0, count, net.max_batch_size):
        assert len(set(found.latency_ms[start : start + net.max_batch_size].tolist())) == 1


def test_shadowed_batches_and_thresholds_of_nobody_go_stage_by_stage(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    batch = net.batch(np.tile(np.array([[0.9, 0.1], [0.1, 0.1]], np.float32), (4, 1)))
    runtime, runs = open_net(net, shadow_fraction=1.0)
    with runtime:
        assert runtime.run(batch).exit_index.tolist() == [0, 1] * 4
    assert runs == []
    spec = replace(net.spec(), one_graph=OneGraphSpec(graph=describe_graph(net), engine="e"))
    assert without_leaving(spec).one_graph is None


def test_a_failing_graph_is_that_calls_error(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    batch = net.batch(np.zeros((3, 2), np.float32))
    runtime, _ = open_net(net, faults={1: EngineError("out of order")})
    with runtime:
        assert runtime.run(batch).exit_index.tolist() == [1, 1, 1]
        with pytest.raises(EngineError, match="out of order"):
            runtime.run(batch)
        assert runtime.run(batch).exit_index.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"inputs": ()}, "'one_graph' reads"),
        ({"answers": ("exit_index",)}, "'one_graph' answers"),
        ({"confidence": None}, "'one_graph' computes no confidence"),
        ({"outputs": "two"}, "expected one int64 per row"),
    ],
)
def test_a_graph_that_does_not_fit_is_refused(change: dict[str, Any], why: str, fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    graph = describe_graph(net)
    if "outputs" in change:
        change = {"outputs": (graph.outputs[0], graph.outputs[2])}
    spec: BundleSpec = replace(net.spec(), one_graph=OneGraphSpec(graph=replace(graph, **change), engine="e"))
    with pytest.raises(SchemaError, match=why):
        Runtime(spec, net.engine_sets(), HostDevice())

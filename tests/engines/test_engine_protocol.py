"""The ``Engine`` protocol: fake and real engines, dynamic and fixed, through the same tests."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import EngineError, GraphSpec, InputError, UsageError
from engines import Engine, EngineSet, FakeEngine, HostDevice, Run, open_engine, plan_covers, run_graph

DEVICE = HostDevice()


def allocate(graph: GraphSpec, rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    buffers = {spec.name: DEVICE.allocate(spec, rows) for spec in (*graph.inputs, *graph.outputs)}
    rng = np.random.default_rng(seed)
    for spec in graph.inputs:
        DEVICE.upload(rng.standard_normal((rows, *spec.row_shape)).astype(spec.dtype), buffers[spec.name])
    return buffers


def test_a_run_writes_into_the_bound_buffers_each_time_anew(engine: Engine) -> None:
    buffers = allocate(engine.graph, 8)
    run = engine.bind(buffers)
    run()
    first = {spec.name: buffers[spec.name].copy() for spec in engine.graph.outputs}
    assert all(array.any() for array in first.values())
    assert ((first["confidence"] >= 0) & (first["confidence"] <= 1)).all()
    buffers["x"][...] = allocate(engine.graph, 8, seed=1)["x"]
    run()
    assert all((buffers[name] != array).any() for name, array in first.items())


def test_a_row_does_not_depend_on_its_neighbours(engine: Engine) -> None:
    buffers = allocate(engine.graph, 8)
    engine.bind(buffers)()
    alone = allocate(engine.graph, 8)
    alone["x"][4:] = 1e3  # other neighbours, as padding would be
    engine.bind(alone)()
    for spec in engine.graph.outputs:
        np.testing.assert_array_equal(alone[spec.name][:4], buffers[spec.name][:4])
    few = allocate(engine.graph, 2)
    few["x"][...] = buffers["x"][3:5]
    engine.bind(few)()
    for spec in engine.graph.outputs:
        np.testing.assert_allclose(few[spec.name], buffers[spec.name][3:5], rtol=1e-5, atol=1e-6)


def test_views_of_larger_buffers_are_bound_in_place(engine: Engine) -> None:
    buffers = allocate(engine.graph, 12)
    engine.bind({name: buffer[4:8] for name, buffer in buffers.items()})()
    assert buffers["confidence"][4:8].all()
    assert not buffers["confidence"][:4].any()
    assert not buffers["confidence"][8:].any()


def test_a_binding_keeps_its_buffers_alive(engine: Engine) -> None:
    buffers = allocate(engine.graph, 4)
    alive = {name: weakref.ref(buffer) for name, buffer in buffers.items()}
    run = engine.bind(buffers)
    del buffers
    run()
    assert all(reference() is not None for reference in alive.values())


def change(name: str, make: Callable[[np.ndarray], Any]) -> Callable[[dict[str, np.ndarray]], dict[str, Any]]:
    return lambda buffers: {**buffers, name: make(buffers[name])}


def read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda buffers: {"x": buffers["x"]}, r"missing buffers \['confidence', 'logits'\]"),
        (lambda buffers: {**buffers, "y": buffers["x"]}, r"unknown buffers \['y'\]"),
        (change("x", lambda array: array.astype(np.float64)), "'x' has dtype float64 .* expected float32"),
        (change("x", lambda array: array[:, :, :3]), r"'x' has dtype float32 and rows of \(1, 3, 6\)"),
        (change("x", lambda array: array.tolist()), "'x' is a list, expected a numpy array"),
        (change("logits", lambda array: array[:2]), "differ in their number of rows"),
        (change("x", lambda array: np.zeros((8, *array.shape[1:]), np.float32)[::2]), "'x' is not contiguous"),
        (change("logits", read_only), "'logits' is read-only"),
    ],
)
def test_wrong_buffers_are_refused(engine: Engine, damage: Callable[..., dict[str, Any]], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        engine.bind(damage(allocate(engine.graph, 4)))


@pytest.mark.parametrize("rows", [0, 3, 17])
def test_batch_sizes_out_of_range_are_refused(engine: Engine, rows: int) -> None:
    if rows == 3 and not engine.key.batch_sizes:
        engine.bind(allocate(engine.graph, rows))()
        return
    with pytest.raises(EngineError, match=f"not {rows}"):
        engine.bind(allocate(engine.graph, rows))


def test_a_closed_engine_runs_nothing_and_closes_twice(engine: Engine) -> None:
    run = engine.bind(allocate(engine.graph, 4))
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        run()
    with pytest.raises(EngineError, match="closed"):
        engine.bind(allocate(engine.graph, 4))


def test_bindings_run_in_several_threads(engine: Engine) -> None:
    expected = allocate(engine.graph, 8)
    engine.bind(expected)()

    def work(_: int) -> np.ndarray:
        buffers = allocate(engine.graph, 8)
        run = engine.bind(buffers)
        for _ in range(20):
            run()
        return buffers["logits"]

    with ThreadPoolExecutor(4) as pool:
        for logits in pool.map(work, range(8)):
            np.testing.assert_allclose(logits, expected["logits"], rtol=1e-5)


def test_a_real_engine_answers_as_its_graph(onnx_file: Path, graph: GraphSpec, ort_folder: Path) -> None:
    real = open_engine(ort_folder, graph, threads=1)
    for rows in (1, 3, 16):
        buffers = allocate(graph, rows)
        real.bind(buffers)()
        reference = run_graph(onnx_file, {"x": buffers["x"]}, threads=1)
        for name, array in reference.items():
            np.testing.assert_allclose(buffers[name], array, rtol=1e-5, atol=1e-6)
    real.close()


def test_an_engine_set_runs_its_covers(engine: Engine) -> None:
    sizes = engine.key.batch_sizes or (1, 16)
    engines = EngineSet(engine, plan_covers({size: 1.0 + size for size in sizes}, largest=11, fixed=bool(sizes)))
    buffers = allocate(engine.graph, engines.covers.buffer_rows)
    for run in engines.cover(11):
        engines.bind(run, buffers)()
    reference = allocate(engine.graph, 8)
    reference["x"][...] = buffers["x"][:8]
    engine.bind(reference)()
    np.testing.assert_allclose(buffers["logits"][:8], reference["logits"], rtol=1e-5, atol=1e-6)
    assert buffers["confidence"][:11].all()
    engines.close()
    with pytest.raises(EngineError, match="closed"):
        engines.bind(engines.cover(2)[0], buffers)


def test_an_engine_set_prefers_the_engine_made_for_the_size(graph: GraphSpec) -> None:
    small, any_size = FakeEngine(graph, batch_sizes=(4,)), FakeEngine(graph, max_batch_size=16)
    engines = EngineSet([any_size, small], plan_covers({4: 1.0, 16: 2.0}, largest=16, fixed=True))
    buffers = allocate(graph, 16)
    for n in (3, 16):
        for run in engines.cover(n):
            engines.bind(run, buffers)()
    assert (small.batches, any_size.batches) == ([4], [16])


def test_an_engine_set_refuses_what_cannot_run(graph: GraphSpec) -> None:
    covers = plan_covers({4: 1.0, 8: 1.5}, largest=8, fixed=True)
    with pytest.raises(EngineError, match="no engine takes batch size 8"):
        EngineSet(FakeEngine(graph, max_batch_size=4), covers)
    with pytest.raises(EngineError, match="at least one"):
        EngineSet([], covers)
    other = GraphSpec(name="other", file="o.onnx", inputs=graph.inputs, outputs=graph.outputs)
    with pytest.raises(EngineError, match=r"engines of several \(other, tiny\)"):
        EngineSet([FakeEngine(graph), FakeEngine(other)], covers)
    engines = EngineSet(FakeEngine(graph), covers)
    with pytest.raises(InputError, match="has 7 rows, the run needs 8"):
        engines.bind(Run(start=0, batch_size=8), allocate(graph, 7))


def test_a_fake_pauses_fails_and_answers_as_programmed(graph: GraphSpec) -> None:
    paused: list[int] = []
    fake = FakeEngine(
        graph,
        pause=paused.append,
        outputs=lambda inputs: {"logits": inputs["x"][:, 0, 0, :4] * 2, "confidence": np.full(len(inputs["x"]), 0.5)},
        faults={1: EngineError("the second run fails")},
    )
    buffers = allocate(graph, 3)
    run = fake.bind(buffers)
    run()
    np.testing.assert_array_equal(buffers["logits"], buffers["x"][:, 0, 0, :4] * 2)
    with pytest.raises(EngineError, match="the second run fails"):
        run()
    run()
    assert paused == [3, 3]
    assert fake.batches == [3, 3, 3]


def test_a_fake_refuses_nonsense(graph: GraphSpec) -> None:
    with pytest.raises(UsageError, match="within 1 to 8"):
        FakeEngine(graph, max_batch_size=8, batch_sizes=(9,))
    with pytest.raises(EngineError, match="lack 'logits'"):
        FakeEngine(graph, outputs=lambda inputs: {}).bind(allocate(graph, 1))()

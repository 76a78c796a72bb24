"""``Runtime`` as a guest in its host's process: ownership, threads, failures, closing."""

from __future__ import annotations

import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from artifacts import EngineError, UsageError


def random_confidence(count: int, depth: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((count, depth), np.float32)


def test_the_shape_of_a_result(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    with net.open() as runtime:
        assert runtime.stage_count == 2
        assert runtime.spec == net.spec()
        result = runtime.run(net.batch(random_confidence(5, 2, 0)))
    assert result.outputs.shape == (5, 2)
    assert (result.exit_index.dtype, result.exit_index.shape) == (np.dtype(np.int64), (5,))
    assert (result.confidence.dtype, result.confidence.shape) == (np.dtype(np.float32), (5,))
    assert (result.latency_ms.dtype, result.latency_ms.shape) == (np.dtype(np.float64), (5,))


def test_latency_runs_from_the_start_of_the_call_and_grows_with_the_exit_and_the_part(
    fake_net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("runtime.runtime.perf_counter", lambda: now[0])
    monkeypatch.setattr("engines.HostDevice.mark", staticmethod(lambda: now[0]))

    def second() -> None:
        now[0] += 1

    net = fake_net(thresholds=(0.5,), max_batch_size=2, hook=second)
    confidence = np.array([[1, 0], [0, 0], [1, 0], [1, 0], [0, 0]])
    with net.open() as runtime:
        result = runtime.run(net.batch(confidence))
    assert result.latency_ms.tolist() == [1000, 2000, 3000, 3000, 5000]
    assert result.engine_ms == 5000


def test_results_and_inputs_are_the_callers(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    batch = net.batch(random_confidence(8, 2, 1))
    copies = tuple(array.copy() for array in batch)
    with net.open() as runtime:
        first = runtime.run(batch)
        expected = first.outputs.copy(), first.exit_index.copy(), first.confidence.copy()
        for array in batch:
            array[:] = 0
        second = runtime.run(copies)
        for array in (first.outputs, first.exit_index, first.confidence, first.latency_ms):
            assert array.flags.writeable
            array[:] = 7
        third = runtime.run(copies)
    for result in (second, third):
        np.testing.assert_array_equal(result.outputs, expected[0])
        np.testing.assert_array_equal(result.exit_index, expected[1])
        np.testing.assert_array_equal(result.confidence, expected[2])


def test_a_stream_has_its_own_copy_of_the_batch(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,), max_batch_size=3, masked=False)
    (x,) = net.batch(random_confidence(8, 2, 2))
    with net.open() as runtime:
        expected = runtime.run(x).outputs
        got = np.empty_like(expected)
        stream = runtime.stream(x)
        x[:] = 0
        for rows, outputs in stream:
            got[rows] = outputs
            outputs[:] = 7
    np.testing.assert_array_equal(got, expected)


def test_memory_layout_does_not_matter(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,), masked=False)
    (x,) = net.batch(random_confidence(6, 2, 3))
    with net.open() as runtime:
        expected = runtime.run(x)
        for same in (np.asfortranarray(x), np.repeat(x, 2, axis=0)[::2], x[::-1].copy()[::-1]):
            np.testing.assert_array_equal(runtime.run(same).outputs, expected.outputs)
        x.flags.writeable = False
        np.testing.assert_array_equal(runtime.run(x).outputs, expected.outputs)


def test_a_mapping_and_a_sequence_are_the_same_batch(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    x, mask = net.batch(random_confidence(6, 2, 4))
    with net.open() as runtime:
        by_name = runtime.run({"mask": mask, "x": x})
        in_order = runtime.run([x, mask])
    np.testing.assert_array_equal(by_name.outputs, in_order.outputs)


def test_abandoned_and_nested_streams_block_no_other_call(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    batch = net.batch(np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]))
    with net.open() as runtime:
        expected = runtime.run(batch).outputs
        never_started = runtime.stream(batch)
        outer = runtime.stream(batch)
        rows, _ = next(outer)
        assert rows.tolist() == [0, 2]
        inner = runtime.stream(batch)
        next(inner)
        np.testing.assert_array_equal(runtime.run(batch).outputs, expected)
        inner.close()
        rows, answers = next(outer)
        assert rows.tolist() == [1]
        np.testing.assert_array_equal(answers, expected[rows])
        half_way = runtime.stream(batch)
        next(half_way)
        del half_way, never_started
        gc.collect()
        np.testing.assert_array_equal(runtime.run(batch).outputs, expected)


def test_an_abandoned_stream_gives_its_buffers_back(fake_net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    from runtime.chain import StageChain

    class Counted(StageChain):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            made.append(self)
            super().__init__(*arguments, **options)

    monkeypatch.setattr("runtime.runtime.StageChain", Counted)
    net = fake_net(thresholds=(0.5,), faults={0: EngineError("boom")})
    batch = net.batch(np.array([[1.0, 0.0], [0.0, 0.0]]))
    with net.open() as runtime:
        with pytest.raises(EngineError):
            runtime.run(batch)
        for _ in range(20):
            stream = runtime.stream(batch)
            next(stream)
            del stream
            runtime.run(batch)
    assert len(made) == 1


def test_a_failed_request_is_that_requests_error(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,), faults={1: EngineError("the engine broke"), 3: MemoryError("no memory")})
    batch = net.batch(np.array([[1.0, 0.0], [0.0, 0.0]]))
    with net.open() as runtime:
        expected = runtime.run(batch).outputs
        with pytest.raises(EngineError, match="the engine broke"):
            runtime.run(batch)
        np.testing.assert_array_equal(runtime.run(batch).outputs, expected)
        stream = runtime.stream(batch)
        assert next(stream)[0].tolist() == [0]
        with pytest.raises(MemoryError, match="no memory"):
            next(stream)
        np.testing.assert_array_equal(runtime.run(batch).outputs, expected)


def test_eight_threads_at_once(fake_net: Any) -> None:
    together = threading.Barrier(8)
    net = fake_net(thresholds=(0.4, 0.6), max_batch_size=5)

    def serve(seed: int) -> None:
        x, mask = net.batch(random_confidence(3 + seed, 3, seed))
        together.wait()
        for turn in range(30):
            x[:, 0] = 100 * seed + turn
            result = runtime.run((x, mask))
            for row in range(len(x)):
                exit_index, confidence, answer = net.answer_row(x[row], mask[row])
                assert result.exit_index[row] == exit_index
                assert result.confidence[row] == confidence
                np.testing.assert_array_equal(result.outputs[row], answer)

    with net.open() as runtime, ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(serve, seed) for seed in range(8)]:
            done.result()


def test_calls_at_the_same_time_do_not_wait_for_each_other(fake_net: Any) -> None:
    together = threading.Barrier(3, timeout=20)
    net = fake_net(thresholds=(), masked=False, hook=together.wait)
    with net.open() as runtime, ThreadPoolExecutor(3) as threads:
        batch = net.batch(np.zeros((2, 1)))
        for done in [threads.submit(runtime.run, batch) for _ in range(3)]:
            assert len(done.result().outputs) == 2


def test_a_closed_runtime_says_so(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    runtime = net.open()
    batch = net.batch(random_confidence(2, 2, 5))
    runtime.run(batch)
    runtime.close()
    runtime.close()
    for call in (runtime.run, runtime.stream):
        with pytest.raises(UsageError, match=r"closed.*Runtime\.load"):
            call(batch)
    assert all(fake._closed for fake in net.fakes)


def test_a_stream_that_started_before_close_ends_well_and_frees_the_engines(fake_net: Any) -> None:
    net = fake_net(thresholds=(0.5,))
    batch = net.batch(np.array([[1.0, 0.0], [0.0, 0.0]]))
    with net.open() as runtime:
        stream = runtime.stream(batch)
        next(stream)
        late = runtime.stream(batch)
    assert not any(fake._closed for fake in net.fakes)
    assert [rows.tolist() for rows, _ in stream] == [[1]]
    assert all(fake._closed for fake in net.fakes)
    with pytest.raises(UsageError, match="closed"):
        next(late)


def test_a_forked_process_is_told_to_open_its_own_runtime(fake_net: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = fake_net(thresholds=(0.5,))
    runtime, process = net.open(), os.getpid()
    monkeypatch.setattr("runtime.pool.os.getpid", lambda: process + 1)
    with pytest.raises(UsageError, match=f"opened in process {process}.*after the fork"):
        runtime.run(net.batch(random_confidence(3, 2, 0)))
    with pytest.raises(UsageError, match="after the fork"):
        runtime.stats()
    runtime.close()
    monkeypatch.undo()
    assert len(runtime.run(net.batch(random_confidence(3, 2, 0))).exit_index) == 3, (
        "what the child closes stays open in the parent"
    )
    runtime.close()

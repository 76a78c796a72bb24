"""A chain as one CUDA graph: the answers of the chain stage by stage, one launch and one wait per batch.

The engines here are copies on the device's stream, which can be captured; a row says itself how it is answered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from artifacts import EngineError, UsageError
from engines import DeviceArray, EngineSet, FakeEngine, HostDevice, plan_covers
from runtime import Runtime, RuntimeOptions

pytest.importorskip("cuda.bindings.driver", reason="drives a GPU: pip install 'pame[cuda]'")

from engines.gpu.chain.graph import index_branches
from engines.gpu.cuda_device import CudaDevice
from engines.gpu.driver import call, load_driver
from engines.gpu.graphs import run_and_capture
from tests.engines.gpu.driver_calls import record_calls

WAITS = {"cuEventSynchronize", "cuStreamSynchronize", "cuCtxSynchronize"}


class CopyEngine:
    """A stage of ``FakeNet`` whose confidence and answer stand in its input; each run is copies of a few bytes."""

    def __init__(
        self, fake: FakeEngine, device: CudaDevice, stage: int, *, refuses: bool = False, graphs: bool = False
    ) -> None:
        self.key, self.graph, self.close = fake.key, fake.graph, fake.close
        self._device, self._stage, self._refuses, self._graphs = device, stage, refuses, graphs
        self.runs = 0

    def bind(self, buffers: Mapping[str, DeviceArray]) -> Callable[[], None]:
        main = buffers[self.graph.inputs[0].name]
        copies = []
        for name, target in buffers.items():
            if name in {spec.name for spec in self.graph.outputs}:
                offset = 4 * (1 + self._stage) if name == "confidence" else 0
                size = target.row_bytes
                copies += [
                    (target.pointer + row * size, main.pointer + row * main.row_bytes + offset, size)
                    for row in range(len(main))
                ]

        def enqueue(stream: int) -> None:
            for target, source, size in copies:
                call("cuMemcpyDtoDAsync", target, source, size, load_driver().CUstream(stream))

        def execute() -> None:
            self.runs += 1
            if self._refuses and self.runs > 1:  # the first is the run before the capture
                raise EngineError("the engine allocates, which cannot be captured")
            enqueue(self._device.cuda.stream_handle)

        return CapturedRun(self._device, enqueue) if self._graphs else execute


class CapturedRun:
    """A run that was captured when it was bound, as those of real engines are."""

    def __init__(self, device: CudaDevice, enqueue: Callable[[int], None]) -> None:
        self.graph = run_and_capture(device.cuda, enqueue, what="copies")
        assert self.graph is not None

    def __call__(self) -> None:
        assert self.graph is not None
        self.graph.launch()


@pytest.fixture
def open_copies(fake_net: Any) -> Callable[..., Runtime]:
    def open_net(net: Any, *, captured: bool, refuses: bool = False, graphs: bool = False, **options: Any) -> Runtime:
        device, sets = CudaDevice(), []
        for stage in range(net.depth):
            chosen = net.engines[stage] if net.engines else None
            times = chosen.median_ms if chosen else {net.max_batch_size: 1.0}
            fixed = bool(chosen and chosen.fixed)
            fake = FakeEngine(net.graph(stage), max_batch_size=max(times), batch_sizes=tuple(times) if fixed else ())
            covers = plan_covers(times, largest=net.max_batch_size, fixed=fixed)
            sets.append(EngineSet(CopyEngine(fake, device, stage, refuses=refuses, graphs=graphs), covers))
        chosen_options = RuntimeOptions(check_finite=net.check_finite, chain_graph=captured, **options)
        runtime = Runtime(net.spec(), sets, device, chosen_options)
        assert runtime.chain_captured == (captured and not refuses)
        return runtime

    return open_net


def confidences(count: int, depth: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, depth)).astype(np.float32)


def agree(found: Any, wanted: Any) -> None:
    np.testing.assert_array_equal(found.outputs, wanted.outputs)
    np.testing.assert_array_equal(found.exit_index, wanted.exit_index)
    np.testing.assert_array_equal(found.confidence, wanted.confidence)


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("thresholds", [(0.5,), (0.7, 0.4, 0.2), (2.0, 0.5), (-1.0,), ()])
def test_every_row_is_answered_as_stage_by_stage(
    fake_net: Any, open_copies: Callable[..., Runtime], thresholds: tuple[float, ...], graphs: bool
) -> None:
    net = fake_net(thresholds=thresholds, masked=False)
    with open_copies(net, captured=True, graphs=graphs) as one, open_copies(net, captured=False) as many:
        for count in (1, 2, 7, 8, 19):
            (x,) = net.batch(confidences(count, net.depth, count))
            found = one.run((x,))
            agree(found, many.run((x,)))
            leaves = x[:, 1:] >= np.array([*thresholds, -np.inf], np.float32)
            np.testing.assert_array_equal(found.exit_index, leaves.argmax(axis=1))
            np.testing.assert_array_equal(found.outputs, x[:, :2])
            assert 0 <= found.engine_ms <= found.latency_ms.max() * 1.5


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_padded_and_split_covers(
    fake_net: Any, stage_engines: Any, open_copies: Callable[..., Runtime], graphs: bool
) -> None:
    engines = [
        stage_engines(median_ms={8: 1.0}, fixed=True),
        stage_engines(median_ms={2: 0.1, 5: 0.5}, fixed=True),
        stage_engines(median_ms={1: 0.1, 8: 1.0}),
    ]
    net = fake_net(thresholds=(0.6, 0.3), engines=engines, masked=False)
    with open_copies(net, captured=True, graphs=graphs) as one, open_copies(net, captured=False) as many:
        for seed in range(6):
            for count in (8, 5):
                batch = net.batch(confidences(count, 3, seed))
                agree(one.run(batch), many.run(batch))


@pytest.mark.gpu
def test_large_batches_take_few_branches(fake_net: Any, open_copies: Callable[..., Runtime]) -> None:
    net = fake_net(thresholds=(0.6, 0.3), max_batch_size=300, masked=False)
    with open_copies(net, captured=True) as one, open_copies(net, captured=False) as many:
        for count in (300, 299, 41, 1):
            batch = net.batch(confidences(count, 3, count))
            agree(one.run(batch), many.run(batch))


@pytest.mark.gpu
def test_nan_stays_to_the_end(fake_net: Any, open_copies: Callable[..., Runtime]) -> None:
    net = fake_net(thresholds=(0.5, 0.5), masked=False, check_finite=False)
    (x,) = net.batch(confidences(8, 3))
    x[[1, 6], 1:] = np.nan
    with open_copies(net, captured=True) as one:
        found = one.run((x,))
    assert found.exit_index[[1, 6]].tolist() == [2, 2]


@pytest.mark.gpu
def test_the_host_launches_once_and_waits_once(fake_net: Any, open_copies: Callable[..., Runtime]) -> None:
    net = fake_net(thresholds=(0.5, 0.5), masked=False)
    batch = net.batch(confidences(8, 3))
    with open_copies(net, captured=True) as one:
        for _ in range(3):
            one.run(batch)
        with record_calls() as seen:
            one.run(batch)
    assert [name for name in seen if name in WAITS] == ["cuEventSynchronize"]
    assert seen.count("cuGraphLaunch") == 1
    assert seen.count("cuLaunchKernel") == 1  # the answers' way to the host
    assert not [name for name in seen if "Alloc" in name or "Free" in name or "Create" in name]


@pytest.mark.gpu
def test_answers_stay_on_the_gpu(fake_net: Any, open_copies: Callable[..., Runtime]) -> None:
    net = fake_net(thresholds=(0.5,), masked=False)
    batch = net.batch(confidences(8, 2))
    other = CudaDevice()
    with open_copies(net, captured=True) as one:
        wanted = one.run(batch)
        kept = one.run(batch, on_device=True)
        one.run(net.batch(confidences(8, 2, 1)))
    np.testing.assert_array_equal(other.download(kept.outputs, range(8)), wanted.outputs)
    np.testing.assert_array_equal(kept.exit_index, wanted.exit_index)
    other.close()


@pytest.mark.gpu
def test_streams_shadows_and_threads_run_beside_it(fake_net: Any, open_copies: Callable[..., Runtime]) -> None:
    net = fake_net(thresholds=(0.6, 0.3), masked=False)
    batches = [net.batch(confidences(8, 3, seed)) for seed in range(4)]
    with open_copies(net, captured=True) as one, open_copies(net, captured=False) as many:
        wanted = [many.run(batch) for batch in batches]
        first = one.stream(batches[0])
        rows, outputs = next(first)
        agree(one.run(batches[1]), wanted[1])  # the stream holds the chain that was captured
        np.testing.assert_array_equal(outputs, wanted[0].outputs[rows])
        first.close()
        with ThreadPoolExecutor(4) as pool:
            for index, found in enumerate(pool.map(one.run, batches * 3)):
                agree(found, wanted[index % 4])
        with record_calls() as seen:
            agree(one.run(batches[2]), wanted[2])
        assert "cuGraphLaunch" in seen  # whichever chain came back last
        exits = np.bincount(np.concatenate([result.exit_index for result in wanted]), minlength=3)
        assert one.stats().queries == 8 * (1 + 12 + 1)
    assert exits.all()
    with open_copies(net, captured=True, shadow_fraction=1.0) as shadowed:
        agree(shadowed.run(batches[0]), wanted[0])


@pytest.mark.gpu
def test_what_cannot_be_captured_runs_stage_by_stage(
    fake_net: Any, open_copies: Callable[..., Runtime], caplog: pytest.LogCaptureFixture
) -> None:
    net = fake_net(thresholds=(0.5,), masked=False, max_batch_size=1)
    with caplog.at_level(logging.WARNING, "pame.runtime"), pytest.raises(EngineError, match="allocates"):
        one = open_copies(net, captured=True, refuses=True)
        with one:
            one.run(net.batch(confidences(1, 2)))
    assert "runs stage by stage and not as one CUDA graph: the engine allocates" in caplog.text


def test_the_processor_has_no_graphs(fake_net: Any, caplog: pytest.LogCaptureFixture) -> None:
    net = fake_net(thresholds=(0.5,))
    batch = net.batch(confidences(8, 2))
    with net.open(chain_graph=True) as one, net.open() as many:
        agree(one.run(batch), many.run(batch))
    assert "on an NVIDIA GPU only" in caplog.text
    with pytest.raises(EngineError, match="no CUDA graphs"):
        HostDevice().capture_chain((), (), 1)
    with pytest.raises(UsageError, match="expected True, False or 'chain'"):
        Runtime.load("nowhere", cuda_graphs="all")  # type: ignore[arg-type]


def test_branches_by_rows() -> None:
    assert index_branches([2, 5, 8], 8).tolist() == [3, 0, 0, 1, 1, 1, 2, 2, 2]

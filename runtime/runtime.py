"""``Runtime``: a bundle, opened, behind a few verbs: load, run, stream, close, and stats to look at."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np

from artifacts import BundleSpec, InputError, UsageError, find_task
from engines import Buffer, Device, DeviceOptions, EngineSet
from runtime.chain import Chain
from runtime.inputs import Batch, read_batch
from runtime.loading import open_bundle
from runtime.monitor.drift import DriftConfig
from runtime.monitor.stats import RuntimeStats, ShadowCounts, StatsCollector
from runtime.pool import ChainPool
from runtime.shadow import ShadowDraw, ShadowRows

Outputs = Any  # an array, or a tuple of arrays: numpy's, or ``engines.DeviceArray`` where that was asked for
_DRIFT = DriftConfig()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """The answers to a batch of B queries, in input order. All arrays belong to the caller.

    Attributes:
        outputs: one array (B, ...) for a network with one output, otherwise a tuple of them in the network's order.
            numpy's, or with ``on_device=True`` complete arrays on the GPU (``engines.DeviceArray``), which torch, CuPy
            and others read in place.
        exit_index: (B,) int64, where each query left: 0 .. E-1 an exit of the plan, E the final head.
        confidence: (B,) float32, with which it left.
        latency_ms: (B,) float64, from the start of the call until its answer had arrived. In a batch larger than
            ``max_batch_size`` the later parts wait for the earlier ones, and their waiting counts.
        engine_ms: time of the call that was spent inside engines.
    """

    outputs: Outputs
    exit_index: np.ndarray
    confidence: np.ndarray
    latency_ms: np.ndarray
    engine_ms: float


class Runtime:
    """Runs batches through the stages of a bundle; queries leave as soon as an exit is confident enough.

    Thread-safe: calls at the same time share the engines and have buffers of their own. A call that fails leaves the
    runtime as it was. Use it as a context manager or ``close`` it.
    """

    def __init__(
        self,
        spec: BundleSpec,
        engine_sets: Sequence[EngineSet],
        device: Device,
        *,
        check_finite: bool = True,
        stats: bool = True,
        drift: DriftConfig | None = _DRIFT,
        shadow_fraction: float = 0.0,
        shadow_seed: int | None = None,
    ) -> None:
        """Opens a runtime over engines that are open already; hosts' tests hand in ``engines.FakeEngine`` here.

        Args:
            spec: what the bundle is.
            engine_sets: one per stage. The runtime closes them.
            device: where their buffers live. The runtime closes it.
            check_finite: refuse rows with NaN or infinity.
            stats, drift, shadow_fraction, shadow_seed: as for ``load``.

        Raises:
            SchemaError: the stages do not fit together, or the reference of the exit plan is not of them.
            UsageError: the shadowing cannot be done.
        """
        self._spec = spec
        self._device = device
        self._check_finite = check_finite

        def free() -> None:
            with ExitStack() as stack:
                stack.callback(device.close)
                for engines in engine_sets:
                    stack.callback(engines.close)

        self._pool = ChainPool(lambda: Chain(spec, engine_sets, device), free)
        self._shadow = ShadowDraw(shadow_fraction, seed=shadow_seed) if shadow_fraction != 0 else None
        if self._shadow is not None:
            if not stats:
                raise UsageError(f"shadow_fraction={shadow_fraction} is for the statistics: open without stats=False")
            self._agree = find_task(spec.task).agreement
        self._stats = (
            StatsCollector(spec.plan, len(spec.stages), drift=drift, shadow_fraction=shadow_fraction) if stats else None
        )

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str],
        *,
        threads: int | None = None,
        device: int = 0,
        cuda_graphs: bool = True,
        kernel_folder: str | os.PathLike[str] | None = None,
        check_finite: bool = True,
        stats: bool = True,
        drift: DriftConfig | None = _DRIFT,
        shadow_fraction: float = 0.0,
        shadow_seed: int | None = None,
    ) -> Self:
        """Verifies a bundle byte by byte, vets its engines for this machine, and opens them.

        Args:
            bundle: the bundle's folder.
            threads: of each engine on the processor; default: as many as the plan was timed with.
            device: the ordinal of the GPU, for a bundle that was planned for one.
            cuda_graphs: whether engines on a GPU replay their work as CUDA graphs where they can.
            kernel_folder: where TensorRT-RTX keeps the kernels that it compiles for this GPU, so that the next process
                starts faster; default: nowhere.
            check_finite: refuse rows with NaN or infinity in ``run`` and ``stream``.
            stats: keep the running statistics that ``stats()`` returns.
            drift: when the statistics raise an alarm: it is logged once, as a warning on ``pame.runtime``, and stands
                in ``stats().alarm``. ``None``: never. Needs the reference in the exit plan, which plans of release
                0.1.0 do not carry.
            shadow_fraction: this share of the rows, drawn at random, is carried on to the end wherever it leaves, to
                see how often the final head answers otherwise. Nobody's answer changes, and a shadowed row's answer
                and latency remain those of its exit; but a batch with such rows takes longer: the later stages run
                over them too, even when nobody else is left, and whoever stays waits for that.
            shadow_seed: of the draw; ``None``: another one in every process.

        Raises:
            UsageError: ``threads`` is no positive number, there is no such GPU, ``shadow_fraction`` is no share, or
                shadowing is asked for without statistics or for a task whose agreement is not known.
            MissingArtifactError, CorruptArtifactError, SchemaError: no sound bundle of a known format there.
            StaleArtifactError: its engines were built for another backend version or another machine.
            MissingExtraError: the backend is not installed.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"threads={threads}: expected a number from 1, or None for the plan's own")
        folder = None if kernel_folder is None else Path(kernel_folder)
        options = DeviceOptions(index=device, cuda_graphs=cuda_graphs, kernel_folder=folder)
        opened = open_bundle(Path(bundle), threads=threads, device=options)
        with ExitStack() as unless_it_works:
            unless_it_works.callback(opened.device.close)
            for engines in opened.engine_sets:
                unless_it_works.callback(engines.close)
            runtime = cls(
                opened.spec, opened.engine_sets, opened.device, check_finite=check_finite,
                stats=stats, drift=drift, shadow_fraction=shadow_fraction, shadow_seed=shadow_seed,
            )  # fmt: skip
            unless_it_works.pop_all()
        return runtime

    @property
    def spec(self) -> BundleSpec:
        """What the bundle holds: inputs, outputs, stages and the exit plan."""
        return self._spec

    @property
    def stage_count(self) -> int:
        """The number of stages: the exits and the final head."""
        return len(self._spec.stages)

    def run(self, batch: Batch, *, stream: Any = None, on_device: bool = False) -> Result:
        """Answers a batch; when it returns, the answers are complete, wherever they lie.

        Args:
            batch: (B, ...) array for a network with one input; otherwise a mapping by input name, or a sequence in the
                order of ``spec.inputs``. Exactly the dtype and row shape of ``spec.inputs``, any memory layout, any
                B >= 1: what exceeds ``spec.max_batch_size`` runs in parts, one after the other. Where the runtime
                works on a GPU, also contiguous arrays on it, of anything with ``__dlpack__`` or
                ``__cuda_array_interface__``: they do not pass through the host.
            stream: where arrays on the GPU were made, if not on the stream that they name: a handle, an object with
                ``__cuda_stream__``, or a stream of torch, CuPy or PyCUDA.
            on_device: leave the outputs on the GPU.

        Raises:
            InputError: the batch is not as described, is empty, or has rows that are not finite.
            UsageError: the runtime is closed.
            EngineError: the backend failed; the next call starts afresh.
        """
        started = perf_counter()
        arrays = self._accept(batch, stream)
        if on_device and len(arrays[0]) > self._spec.max_batch_size:
            raise InputError(
                f"on_device=True takes at most {self._spec.max_batch_size} rows, got {len(arrays[0])}: parts that lie "
                "on the GPU are not joined. Pass the parts one by one"
            )
        chain = self._pool.take()
        try:
            parts = [self._answer_part(chain, part, started, on_device=on_device) for _, part in self._parts(arrays)]
        finally:
            self._pool.give_back(chain)
        return parts[0] if len(parts) == 1 else _join_parts(parts)

    def stream(self, batch: Batch, *, stream: Any = None) -> Generator[tuple[np.ndarray, Outputs], None, None]:
        """Answers a batch, handing out answers as queries leave.

        The batch is checked and copied before this returns. The stream may be dropped half-way; what it holds goes
        back when it is closed or finalised.

        Args:
            batch, stream: as for ``run``.

        Yields:
            (rows, outputs): positions in the batch, (L,) int64 in no order, and their answers as in ``Result.outputs``.
            Every row of the batch comes exactly once.

        Raises:
            As ``run``.
        """
        arrays = self._accept(batch, stream)
        return self._stream(tuple(self._device.copy(array) for array in arrays))

    def _stream(self, arrays: Sequence[np.ndarray | Buffer]) -> Generator[tuple[np.ndarray, Outputs], None, None]:
        chain = self._pool.take()
        try:
            for start, part in self._parts(arrays):
                shadow = self._draw_shadow(chain, len(part[0]))
                left: list[int] = []
                confidences: list[bytes] = []
                for leavers in chain.run(part, shadow):
                    confidence, answers = chain.answers(leavers.places)
                    left += [leavers.exit_index] * len(leavers.rows)
                    confidences.append(confidence.tobytes())
                    yield np.array(leavers.rows) + start, _as_outputs(answers)
                if self._stats is not None:
                    compared = () if shadow is None else self._compare(chain, shadow)
                    self._stats.add(left, b"".join(confidences), compared)
        finally:
            self._pool.give_back(chain)

    def stats(self) -> RuntimeStats:
        """Returns a snapshot of the running statistics; may be called from any thread, and after ``close``.

        Raises:
            UsageError: they are switched off.
        """
        return self._collector().snapshot()

    def reset_stats(self) -> None:
        """Starts the statistics again from nothing, the test for drift and its alarm included.

        Every reset gives the test a new chance of a false alarm.

        Raises:
            UsageError: they are switched off.
        """
        self._collector().reset()

    def close(self) -> None:
        """Frees the engines; may be called twice. Calls under way come to their end first and free them then."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self, batch: Batch, stream: Any) -> tuple[np.ndarray | Buffer, ...]:
        self._pool.check_open()
        return read_batch(batch, self._spec.inputs, self._device, check_finite=self._check_finite, stream=stream)

    def _collector(self) -> StatsCollector:
        if self._stats is None:
            raise UsageError("this runtime keeps no statistics; open it without stats=False")
        return self._stats

    def _draw_shadow(self, chain: Chain, count: int) -> ShadowRows | None:
        if self._shadow is None:
            return None
        chosen = self._shadow.draw(count)
        return chain.shadow(chosen) if chosen else None

    def _compare(self, chain: Chain, shadow: ShadowRows) -> ShadowCounts:
        """Returns exit and agreement of each row that was carried on."""
        if not shadow.finished:
            return ()
        _, early = chain.answers([row.place for row in shadow.finished])
        _, final = chain.answers([row.final_place for row in shadow.finished])
        agree = (self._agree(early, final) >= 1).tolist()
        return [(row.exit_index, same) for row, same in zip(shadow.finished, agree, strict=True)]

    def _answer_part(
        self, chain: Chain, arrays: Sequence[np.ndarray | Buffer], started: float, *, on_device: bool
    ) -> Result:
        count = len(arrays[0])
        shadow = self._draw_shadow(chain, count)
        places, left, latency_ms = [0] * count, [0] * count, [0.0] * count
        engine_s = 0.0
        for leavers in chain.run(arrays, shadow):
            left_ms = (perf_counter() - started) * 1e3
            engine_s += leavers.engine_s
            for row, place in zip(leavers.rows, leavers.places, strict=True):
                places[row], left[row], latency_ms[row] = place, leavers.exit_index, left_ms
        confidence, answers = chain.answers_on_device(places) if on_device else chain.answers(places)
        if shadow is not None:
            engine_s += shadow.engine_s
        if self._stats is not None:
            compared = () if shadow is None else self._compare(chain, shadow)
            self._stats.add(left, confidence.tobytes(), compared)
        return Result(
            outputs=_as_outputs(answers),
            exit_index=np.array(left),
            confidence=confidence,
            latency_ms=np.array(latency_ms),
            engine_ms=engine_s * 1e3,
        )

    def _parts(self, arrays: Sequence[np.ndarray | Buffer]) -> Iterator[tuple[int, Sequence[np.ndarray | Buffer]]]:
        """Yields a batch in parts of at most ``max_batch_size`` rows, each with the position of its first row."""
        count, largest = len(arrays[0]), self._spec.max_batch_size
        if count <= largest:
            yield 0, arrays
            return
        for start in range(0, count, largest):
            yield start, [array[start : start + largest] for array in arrays]


def _join_parts(parts: Sequence[Result]) -> Result:
    outputs = [part.outputs if isinstance(part.outputs, tuple) else (part.outputs,) for part in parts]
    return Result(
        outputs=_as_outputs(tuple(np.concatenate(arrays) for arrays in zip(*outputs, strict=True))),
        exit_index=np.concatenate([part.exit_index for part in parts]),
        confidence=np.concatenate([part.confidence for part in parts]),
        latency_ms=np.concatenate([part.latency_ms for part in parts]),
        engine_ms=sum(part.engine_ms for part in parts),
    )


def _as_outputs(arrays: tuple[Buffer, ...]) -> Outputs:
    return arrays[0] if len(arrays) == 1 else arrays

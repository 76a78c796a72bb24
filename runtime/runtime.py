"""``Runtime``: a bundle, opened, behind four verbs: load, run, stream, close."""

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

from artifacts import BundleSpec, InputError, UsageError
from engines import Buffer, Device, EngineSet
from runtime.batches import Batch, read_batch
from runtime.chain import Chain
from runtime.loading import open_bundle
from runtime.pool import ChainPool

Outputs = Any  # an array, or a tuple of arrays: numpy's, or ``engines.DeviceArray`` where that was asked for


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
        self, spec: BundleSpec, engine_sets: Sequence[EngineSet], device: Device, *, check_finite: bool = True
    ) -> None:
        """Opens a runtime over engines that are open already; hosts' tests hand in ``engines.FakeEngine`` here.

        Args:
            spec: what the bundle is.
            engine_sets: one per stage. The runtime closes them.
            device: where their buffers live. The runtime closes it.
            check_finite: refuse rows with NaN or infinity.

        Raises:
            SchemaError: the stages do not fit together.
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

    @classmethod
    def load(
        cls, bundle: str | os.PathLike[str], *, threads: int | None = None, device: int = 0, cuda_graphs: bool = True,
        kernel_folder: str | os.PathLike[str] | None = None, check_finite: bool = True,
    ) -> Self:  # fmt: skip
        """Verifies a bundle byte by byte, vets its engines for this machine, and opens them.

        Args:
            bundle: the bundle's folder.
            threads: of each engine on the processor; default: as many as the plan was timed with.
            device: the ordinal of the GPU, for a bundle that was planned for one.
            cuda_graphs: whether engines on a GPU replay their work as CUDA graphs where they can.
            kernel_folder: where TensorRT-RTX keeps the kernels that it compiles for this GPU, so that the next process
                starts faster; default: nowhere.
            check_finite: refuse rows with NaN or infinity in ``run`` and ``stream``.

        Raises:
            UsageError: ``threads`` is no positive number, or there is no such GPU.
            MissingArtifactError, CorruptArtifactError, SchemaError: no sound bundle of a known format there.
            StaleArtifactError: its engines were built for another backend version or another machine.
            MissingExtraError: the backend is not installed.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"threads={threads}: expected a number from 1, or None for the plan's own")
        opened = open_bundle(
            Path(bundle), threads=threads, device=device, cuda_graphs=cuda_graphs,
            kernel_folder=None if kernel_folder is None else Path(kernel_folder),
        )  # fmt: skip
        with ExitStack() as unless_it_works:
            unless_it_works.callback(opened.device.close)
            for engines in opened.engine_sets:
                unless_it_works.callback(engines.close)
            runtime = cls(opened.spec, opened.engine_sets, opened.device, check_finite=check_finite)
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
            parts = [_answer_part(chain, part, started, on_device=on_device) for _, part in self._parts(arrays)]
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
                for leavers in chain.run(part):
                    _, answers = chain.answers(leavers.places)
                    yield np.array(leavers.rows) + start, _as_outputs(answers)
        finally:
            self._pool.give_back(chain)

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

    def _parts(self, arrays: Sequence[np.ndarray | Buffer]) -> Iterator[tuple[int, Sequence[np.ndarray | Buffer]]]:
        """Yields a batch in parts of at most ``max_batch_size`` rows, each with the position of its first row."""
        count, largest = len(arrays[0]), self._spec.max_batch_size
        if count <= largest:
            yield 0, arrays
            return
        for start in range(0, count, largest):
            yield start, [array[start : start + largest] for array in arrays]


def _answer_part(chain: Chain, arrays: Sequence[np.ndarray | Buffer], started: float, *, on_device: bool) -> Result:
    count = len(arrays[0])
    places, exit_index, latency_ms = [0] * count, [0] * count, [0.0] * count
    engine_s = 0.0
    for leavers in chain.run(arrays):
        left_ms = (perf_counter() - started) * 1e3
        engine_s += leavers.engine_s
        for row, place in zip(leavers.rows, leavers.places, strict=True):
            places[row], exit_index[row], latency_ms[row] = place, leavers.exit_index, left_ms
    confidence, answers = chain.answers_on_device(places) if on_device else chain.answers(places)
    return Result(
        outputs=_as_outputs(answers),
        exit_index=np.array(exit_index),
        confidence=confidence,
        latency_ms=np.array(latency_ms),
        engine_ms=engine_s * 1e3,
    )


def _join_parts(parts: Sequence[Result]) -> Result:
    outputs = [part.outputs if isinstance(part.outputs, tuple) else (part.outputs,) for part in parts]
    return Result(
        outputs=_as_outputs(tuple(np.concatenate(arrays) for arrays in zip(*outputs, strict=True))),
        exit_index=np.concatenate([part.exit_index for part in parts]),
        confidence=np.concatenate([part.confidence for part in parts]),
        latency_ms=np.concatenate([part.latency_ms for part in parts]),
        engine_ms=sum(part.engine_ms for part in parts),
    )


def _as_outputs(arrays: tuple[np.ndarray, ...]) -> Outputs:
    return arrays[0] if len(arrays) == 1 else arrays

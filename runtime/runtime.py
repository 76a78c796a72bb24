"""``Runtime``: a bundle, opened, behind four verbs: load, run, stream, close."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Self

import numpy as np

from artifacts import BundleSpec, UsageError
from engines import Device, EngineSet, HostDevice
from runtime.batches import Batch, read_batch
from runtime.chain import Chain, Leavers
from runtime.loading import open_bundle
from runtime.pool import ChainPool

Outputs = np.ndarray | tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """The answers to a batch of B queries, in input order. All arrays belong to the caller.

    Attributes:
        outputs: one array (B, ...) for a network with one output, otherwise a tuple of them in the network's order.
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
        self._check_finite = check_finite

        def free() -> None:
            with ExitStack() as stack:
                stack.callback(device.close)
                for engines in engine_sets:
                    stack.callback(engines.close)

        self._pool = ChainPool(lambda: Chain(spec, engine_sets, device), free)

    @classmethod
    def load(cls, bundle: str | os.PathLike[str], *, threads: int | None = None, check_finite: bool = True) -> Self:
        """Verifies a bundle byte by byte, vets its engines for this machine, and opens them.

        Args:
            bundle: the bundle's folder.
            threads: of each engine; default: as many as the plan was timed with.
            check_finite: refuse rows with NaN or infinity in ``run`` and ``stream``.

        Raises:
            UsageError: ``threads`` is no positive number.
            MissingArtifactError, CorruptArtifactError, SchemaError: no sound bundle of a known format there.
            StaleArtifactError: its engines were built for another backend version or another machine.
            MissingExtraError: the backend is not installed.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"threads={threads}: expected a number from 1, or None for the plan's own")
        opened = open_bundle(Path(bundle), threads=threads)
        with ExitStack() as unless_it_works:
            for engines in opened.engine_sets:
                unless_it_works.callback(engines.close)
            runtime = cls(opened.spec, opened.engine_sets, HostDevice(), check_finite=check_finite)
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

    def run(self, batch: Batch) -> Result:
        """Answers a batch.

        Args:
            batch: (B, ...) array for a network with one input; otherwise a mapping by input name, or a sequence in the
                order of ``spec.inputs``. Exactly the dtype and row shape of ``spec.inputs``, any memory layout, any
                B >= 1: what exceeds ``spec.max_batch_size`` runs in parts, one after the other.

        Raises:
            InputError: the batch is not as described, is empty, or has rows that are not finite.
            UsageError: the runtime is closed.
            EngineError: the backend failed; the next call starts afresh.
        """
        started = perf_counter()
        arrays = self._accept(batch)
        count = len(arrays[0])
        outputs = tuple(np.empty((count, *spec.row_shape), spec.dtype) for spec in self._spec.outputs)
        exit_index = np.empty(count, np.int64)
        confidence = np.empty(count, np.float32)
        latency_ms = np.empty(count, np.float64)
        engine_s = 0.0
        with closing(self._serve(arrays)) as served:
            for rows, leavers in served:
                for output, answer in zip(outputs, leavers.answers, strict=True):
                    output[rows] = answer
                exit_index[rows] = leavers.exit_index
                confidence[rows] = leavers.confidence
                engine_s += leavers.engine_s
                latency_ms[rows] = (perf_counter() - started) * 1e3
        return Result(
            outputs=_as_outputs(outputs),
            exit_index=exit_index,
            confidence=confidence,
            latency_ms=latency_ms,
            engine_ms=engine_s * 1e3,
        )

    def stream(self, batch: Batch) -> Generator[tuple[np.ndarray, Outputs], None, None]:
        """Answers a batch, handing out answers as queries leave.

        The batch is checked and copied before this returns. The stream may be dropped half-way; what it holds goes
        back when it is closed or finalised.

        Args:
            batch: as for ``run``.

        Yields:
            (rows, outputs): positions in the batch, (L,) int64 ascending, and their answers as in ``Result.outputs``.
            Every row of the batch comes exactly once.

        Raises:
            As ``run``.
        """
        arrays = tuple(array.copy() for array in self._accept(batch))
        return ((rows, _as_outputs(leavers.answers)) for rows, leavers in self._serve(arrays))

    def close(self) -> None:
        """Frees the engines; may be called twice. Calls under way come to their end first and free them then."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self, batch: Batch) -> tuple[np.ndarray, ...]:
        self._pool.check_open()
        return read_batch(batch, self._spec.inputs, check_finite=self._check_finite)

    def _serve(self, arrays: Sequence[np.ndarray]) -> Generator[tuple[np.ndarray, Leavers], None, None]:
        """Yields whoever leaves, with positions in the whole batch."""
        with self._pool.chain() as chain:
            for start in range(0, len(arrays[0]), self._spec.max_batch_size):
                part = [array[start : start + self._spec.max_batch_size] for array in arrays]
                for leavers in chain.run(part):
                    yield leavers.rows + start, leavers


def _as_outputs(arrays: tuple[np.ndarray, ...]) -> Outputs:
    return arrays[0] if len(arrays) == 1 else arrays

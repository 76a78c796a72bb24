"""``Runtime``: an open bundle that answers batches: load, run, stream, stats, close."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np

from artifacts import BundleSpec, InputError, Task, UsageError
from engines import Buffer, Device, DeviceOptions, Engine, EngineSet, fit_length
from runtime.chain import StageChain
from runtime.checks import check_stages, check_task
from runtime.inputs import Batch, read_batch
from runtime.loading import open_bundle
from runtime.monitor.drift import DriftConfig
from runtime.monitor.response import ExitRule
from runtime.monitor.stats import RuntimeStats
from runtime.monitor.watch import StreamWatch
from runtime.options import RuntimeOptions
from runtime.pool import ChainPool
from runtime.results import Output, Outputs, Result, as_outputs, join_parts
from runtime.scheduling.batch_steps import BatchState, ShadowState
from runtime.shadow import ShadowDraw, read_inputs, read_seen_rows

_OPTIONS = RuntimeOptions()
_Entered = tuple[BatchState, ExitRule | None, Sequence[np.ndarray | Buffer]]


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
        options: RuntimeOptions = _OPTIONS,
        one_graph: Engine | None = None,
    ) -> None:
        """Opens a runtime over engines that are open already; hosts' tests pass ``engines.FakeEngine`` here.

        Args:
            spec: the bundle.
            engine_sets: one per stage. The runtime closes them.
            device: where their buffers live. The runtime closes it.
            options: what is checked, counted and shadowed.
            one_graph: the engine of the bundle's one graph, which ``run`` sends batches through where ``spec`` has one
                (``without_leaving`` has not); ``None``: the stages do. The runtime closes it.

        Raises:
            SchemaError: the stages do not fit together or do not follow the exit plan, or the plan's reference does not
                belong to its exits, or is missing where drift is to be answered.
            UsageError: shadowing is not possible as asked for.
        """
        check_stages(spec, engine_sets)
        self._spec = spec
        self._device = device
        self._check_finite = options.check_finite
        self._tokenizer: bytes | None = None

        def free() -> None:
            with ExitStack() as stack:
                stack.callback(device.close)
                for engines in engine_sets:
                    stack.callback(engines.close)
                if one_graph is not None:
                    stack.callback(one_graph.close)

        captured = iter([options.chain_graph])  # of the first chain alone: later ones are made while others run
        whole = None if spec.one_graph is None else one_graph
        self._pool = ChainPool(
            lambda: StageChain(spec, engine_sets, device, captured=next(captured, False), one_graph=whole), free
        )
        task = check_task(spec, options.task)
        self._draw = ShadowDraw(seed=options.shadow_seed)
        self._watch = StreamWatch(spec, options, task=task) if options.stats else None

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str],
        *,
        threads: int | None = None,
        device: int = 0,
        cuda_graphs: bool | Literal["chain"] = True,
        kernel_folder: str | os.PathLike[str] | None = None,
        check_finite: bool = True,
        stats: bool = True,
        drift: DriftConfig | None = _OPTIONS.drift,
        on_drift: str = _OPTIONS.on_drift,
        shadow_fraction: float = 0.0,
        shadow_seed: int | None = None,
        shadow_log: str | os.PathLike[str] | None = None,
        log_inputs: bool = False,
        task: Task | None = None,
        verify: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Verifies a bundle byte by byte, vets its engines for this machine, and opens them.

        Args:
            bundle: the bundle's folder.
            threads: of each engine on the processor; default: as many as the plan was timed with.
            device: the ordinal of the GPU, for a bundle that was planned for one.
            cuda_graphs: whether engines on a GPU replay their work as CUDA graphs where they can. ``"chain"``: all
                stages are one graph besides, which a batch launches once; the GPU itself counts the rows that stay, and
                the host waits once, for all answers. ``stream``, shadowed batches, and calls beyond the first at the
                same time run stage by stage. Where it is not possible, the reason is logged as a warning on
                ``pame.runtime`` and everything does. ONNX Runtime needs ``CUBLAS_WORKSPACE_CONFIG=:0:0`` in the
                environment that the process starts with.
            kernel_folder: where TensorRT-RTX keeps the kernels that it compiles for this GPU, so that the next process
                starts faster; default: nowhere.
            check_finite: refuse rows with NaN or infinity in ``run`` and ``stream``.
            stats: keep the running statistics that ``stats()`` returns.
            drift: when the statistics raise an alarm: it is logged once, as a warning on ``pame.runtime``, and stays
                in ``stats().alarm``. ``None``: never. Needs the reference in the exit plan, which a plan of release
                0.1.0 may lack.
            on_drift: what an alarm does: ``alarm``: no more than that; ``full``: no row leaves early from then on;
                ``tighten``: nor until enough rows were seen at every exit, then rows leave again, at thresholds that
                keep the plan's tolerance on those rows (docs/drift.md). Where all stages are one CUDA graph, they run
                stage by stage from then on.
            shadow_fraction: this share of the rows, drawn at random, is carried on to the end even if it leaves early,
                to see how often the final head answers otherwise. No answer changes, and a shadowed row's answer and
                latency remain those of its exit; but a batch with such rows takes longer: the later stages run over
                them too, even when no other row is left, and the rows that stay wait for that.
            shadow_seed: of the draw; ``None``: another one in every process.
            shadow_log: a folder for the rows that were seen at every exit, for ``python -m planner recalibrate``.
            log_inputs: write their inputs as well.
            task: your own task, where the network's is not one of ``artifacts.TASKS``; shadowing needs its
                ``agreement``. Its name must be the one that the bundle stores.
            verify: a PEM file with the public key, or the certificates, of whoever must have signed the bundle
                (``runtime.signatures``); ``None``: anybody.

        Raises:
            UsageError: ``threads`` is not a positive number, ``cuda_graphs`` is none of its values, there is no such
                GPU, ``shadow_fraction`` is not within [0, 1], shadowing is asked for without statistics or for an
                unknown task, or ``task`` is another one than the bundle's.
            MissingArtifactError, CorruptArtifactError, SchemaError: no sound bundle of a known format there, or not one
                that was signed by whom ``verify`` names.
            StaleArtifactError: its engines were built for another backend version or another machine.
            MissingExtraError: the backend is not installed.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"threads={threads}: expected a number from 1, or None for the plan's own")
        if cuda_graphs not in (True, False, "chain"):
            raise UsageError(f"cuda_graphs={cuda_graphs!r}: expected True, False or 'chain'")
        options = RuntimeOptions(
            check_finite=check_finite, stats=stats, drift=drift, on_drift=on_drift, shadow_fraction=shadow_fraction,
            shadow_seed=shadow_seed, shadow_log=None if shadow_log is None else Path(shadow_log), log_inputs=log_inputs,
            task=task, chain_graph=cuda_graphs == "chain",
        )  # fmt: skip
        folder = None if kernel_folder is None else Path(kernel_folder)
        where = DeviceOptions(index=device, cuda_graphs=bool(cuda_graphs), kernel_folder=folder)
        signer = None if verify is None else Path(verify)
        opened = open_bundle(Path(bundle), threads=threads, device=where, verify=signer)
        with ExitStack() as unless_it_works:
            unless_it_works.callback(opened.close)
            runtime = cls(opened.spec, opened.engine_sets, opened.device, options, opened.one_graph)
            if opened.spec.text is not None:
                runtime._tokenizer = opened.artifact.path(opened.spec.text.tokenizer).read_bytes()
            unless_it_works.pop_all()
        return runtime

    @property
    def tokenizer(self) -> bytes | None:
        """The content of the bundle's tokenizer.json, for ``prepare_texts``; ``None``: the network takes no texts."""
        return self._tokenizer

    @property
    def spec(self) -> BundleSpec:
        """The bundle: inputs, outputs, stages, the exit plan, and how the network wants its images."""
        return self._spec

    @property
    def chain_captured(self) -> bool:
        """Whether a batch runs as one piece of work: one CUDA graph, as ``cuda_graphs="chain"`` asks for, or the one
        graph of the bundle, which planning with ``--objective batch`` may choose."""
        return self._pool.captured

    @property
    def stage_count(self) -> int:
        """The number of stages: the exits and the final head."""
        return len(self._spec.stages)

    def run(self, batch: Batch, *, stream: Any = None, on_device: bool = False) -> Result:
        """Answers a batch; when it returns, the answers are complete, wherever they lie.

        Args:
            batch: (B, ...) array for a network with one input; otherwise a mapping by input name, or a sequence in the
                order of ``spec.inputs``. Exactly the dtype and row shape of ``spec.inputs``, any memory layout, any
                B >= 1: a batch of more than ``spec.max_batch_size`` rows runs in parts, one after the other. Where rows
                have several lengths (``spec.sequence``), padded to any length, with zeros in the mask: every part runs
                at the smallest length that holds its rows. Where the
                runtime works on a GPU, also contiguous arrays on it, of anything with ``__dlpack__`` or
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
        count, largest = len(arrays[0]), self._spec.max_batch_size
        if on_device and count > largest:
            raise InputError(
                f"on_device=True takes at most {largest} rows, got {count}: parts that lie on the GPU are not joined. "
                "Pass the parts one by one"
            )
        chain = self._pool.take()
        try:
            if count <= largest:
                return self._answer_part(chain, self._fit(arrays), started, on_device=on_device)
            return join_parts([self._answer_part(chain, part, started) for _, part in self._parts(arrays)])
        finally:
            self._pool.give_back(chain)

    def stream(self, batch: Batch, *, stream: Any = None) -> Generator[tuple[np.ndarray, Outputs], None, None]:
        """Answers a batch, handing out answers as queries leave.

        The batch is checked and copied before this returns. The stream may be dropped half-way; its buffers are
        reused once it is closed or finalised.

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
                state, rule = self._enter(len(part[0]))
                left: list[int] = []
                confidences: list[bytes] = []
                for leaving in chain.run(part, state, self._limits(rule)):
                    confidence, answers = chain.answers(leaving.places)
                    left += [leaving.exit_index] * len(leaving.rows)
                    confidences.append(confidence.tobytes())
                    yield np.array(leaving.rows) + start, as_outputs(answers)
                if self._watch is not None:
                    self._count(self._watch, chain, left, b"".join(confidences), (state, rule, part))
        finally:
            self._pool.give_back(chain)

    def stats(self) -> RuntimeStats:
        """Returns a snapshot of the running statistics; may be called from any thread, and after ``close``.

        Raises:
            UsageError: they are switched off.
        """
        return self._watched().snapshot()

    def reset_stats(self) -> None:
        """Starts the statistics again from nothing, the test for drift and its alarm included.

        Every reset gives the test a new chance of a false alarm.

        Raises:
            UsageError: they are switched off.
        """
        self._watched().reset()

    def close(self) -> None:
        """Frees the engines; may be called twice. Calls under way come to their end first and free them then."""
        self._pool.close()
        if self._watch is not None:
            self._watch.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self, batch: Batch, stream: Any) -> tuple[np.ndarray | Buffer, ...]:
        self._pool.check_open()
        return read_batch(batch, self._spec.inputs, self._device, check_finite=self._check_finite, stream=stream)

    def _watched(self) -> StreamWatch:
        self._pool.check_process()
        if self._watch is None:
            raise UsageError("this runtime keeps no statistics; open it without stats=False")
        return self._watch

    def _enter(self, count: int) -> tuple[BatchState, ExitRule | None]:
        """Returns the state of a batch of ``count`` rows, some of which may be drawn to be shadowed, and its rule."""
        if self._watch is None:
            return BatchState(list(range(count))), None
        rule = self._watch.rule
        shadowed = self._draw.draw(count, rule.seen_share)
        return BatchState(list(range(count)), ShadowState(shadowed) if shadowed else None), rule

    def _limits(self, rule: ExitRule | None) -> Sequence[float] | None:
        """Returns the thresholds of a rule that is not the plan's own."""
        return rule.thresholds if rule is not None and rule.number else None

    def _count(
        self, watch: StreamWatch, chain: StageChain, left: list[int], confidence: bytes, batch: _Entered
    ) -> None:
        """Lets the watch know of a batch: where its rows left, with which confidence, and which of them were seen."""
        state, rule, arrays = batch
        shadow = state.shadow
        if rule is None or shadow is None or not shadow.finished:
            watch.add(left, confidence, rule=rule or watch.rule)
            return
        rows = [row.row for row in shadow.finished]
        inputs = read_inputs(arrays, rows, self._spec.inputs, self._device) if watch.logs_inputs else ()
        seen = read_seen_rows(chain, shadow, watch.task, inputs)
        watch.add(left, confidence, seen.early, rule=rule)
        watch.see(seen, rule=rule)

    def _answer_part(
        self, chain: StageChain, arrays: Sequence[np.ndarray | Buffer], started: float, *, on_device: bool = False
    ) -> Result:
        count = len(arrays[0])
        state, rule = self._enter(count)
        limits = self._limits(rule)
        if chain.captured and state.shadow is None and limits is None:
            return self._answer_captured(chain, arrays, started, on_device=on_device)
        places, left, latency_ms = [0] * count, [0] * count, [0.0] * count
        for leaving in chain.run(arrays, state, limits):
            left_ms, exit_index = (perf_counter() - started) * 1e3, leaving.exit_index
            for row, place in zip(leaving.rows, leaving.places, strict=True):
                places[row], left[row], latency_ms[row] = place, exit_index, left_ms
        answers: tuple[Output, ...]
        confidence, answers = chain.answers_on_device(places) if on_device else chain.answers(places)
        if self._watch is not None:
            self._count(self._watch, chain, left, confidence.tobytes(), (state, rule, arrays))
        return Result(
            outputs=as_outputs(answers),
            exit_index=np.array(left, np.int64),
            confidence=confidence,
            latency_ms=np.array(latency_ms, np.float64),
            engine_ms=state.engine_s * 1e3,
        )

    def _answer_captured(
        self, chain: StageChain, arrays: Sequence[np.ndarray | Buffer], started: float, *, on_device: bool
    ) -> Result:
        found = chain.run_captured(arrays, on_device=on_device)
        latency_ms = (perf_counter() - started) * 1e3
        if self._watch is not None:
            self._watch.add(found.exits, found.confidence.tobytes(), rule=self._watch.rule)
        return Result(
            outputs=as_outputs(found.outputs),
            exit_index=np.array(found.exits, np.int64),
            confidence=found.confidence,
            latency_ms=np.full(len(arrays[0]), latency_ms),
            engine_ms=found.engine_s * 1e3,
        )

    def _parts(self, arrays: Sequence[np.ndarray | Buffer]) -> Iterator[tuple[int, Sequence[np.ndarray | Buffer]]]:
        """Yields a batch in parts of at most ``max_batch_size`` rows, each with the position of its first row."""
        count, largest = len(arrays[0]), self._spec.max_batch_size
        if count <= largest:
            yield 0, self._fit(arrays)
            return
        for start in range(0, count, largest):
            yield start, self._fit([array[start : start + largest] for array in arrays])

    def _fit(self, arrays: Sequence[np.ndarray | Buffer]) -> Sequence[np.ndarray | Buffer]:
        """Brings a part of a batch to the smallest length that holds its rows."""
        spec = self._spec
        return arrays if spec.sequence is None else fit_length(arrays, spec.inputs, spec.sequence)

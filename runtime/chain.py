"""The chain of stages over device buffers, for one batch in flight.

A batch enters at the top. After every stage the rows whose confidence reaches the threshold leave with their answers;
the others close ranks at the front of every buffer that a later stage still reads, and the next stage runs over
that many rows. The last stage lets everybody go::

    rows    0 1 2 3 4 5 6 7        stage 0 runs over 8 rows
            . 1 . . 4 5 . .        1, 4 and 5 are not sure; the others leave, the last survivors take their places
            4 1 5                  stage 1 runs over 3 rows
            4 . .
            4                      stage 2 runs over 1 row; it leaves, whatever its confidence

All buffers are allocated when the chain is made and engines are bound to them once per number of rows. The stages
answer into sections of one buffer per output, where an answer stays until the next batch enters: so the answers of a
batch, whoever gave them, are one read by place.

What Python does between two engines runs with cold caches, where every array call costs tens of microseconds, however
small the array. So rows are counted in plain lists.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from artifacts import BundleSpec, SchemaError, StageSpec, TensorSpec
from engines import Buffer, Device, EngineSet, Execution, Run
from runtime.loading import REMEDY
from runtime.shadow import ShadowRows

_CONFIDENCE = TensorSpec(name="confidence", dtype="float32", row_shape=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Leavers:
    """Rows that leave the batch after one stage.

    Attributes:
        exit_index: the stage after which they leave.
        rows: their positions in the batch, in no order; at least one.
        places: where their answers are, for ``Chain.answers``.
        engine_s: seconds spent inside engines since rows last left, or since the batch entered.
    """

    exit_index: int
    rows: list[int]
    places: list[int]
    engine_s: float


class Chain:
    """Stages bound to buffers of their own. Takes one batch at a time; several chains may share the engine sets."""

    def __init__(self, spec: BundleSpec, engine_sets: Sequence[EngineSet], device: Device) -> None:
        """Allocates every buffer: ``spec.max_batch_size`` rows and the padding that covers add to them.

        A stage reads the newest tensor of a name: an earlier stage's, or else the network's input.

        Raises:
            SchemaError: the stages do not fit together.
        """
        check_stages(spec, engine_sets)
        self._device = device
        rows = max(engines.covers.buffer_rows for engines in engine_sets)
        self._confidence = device.allocate(_CONFIDENCE, rows * len(spec.stages))
        self._decision: Buffer | None = None
        self._answers = tuple(device.allocate(tensor, rows * len(spec.stages)) for tensor in spec.outputs)
        self._answered = (self._confidence, *self._answers)
        newest = {tensor.name: device.allocate(tensor, rows) for tensor in spec.inputs}
        self._inputs = tuple(newest.values())
        self._stages: list[_BoundStage] = []
        for stage, engines in zip(spec.stages, engine_sets, strict=True):
            graph, start = stage.graph, rows * len(self._stages)
            inputs = {tensor.name: newest[tensor.name] for tensor in graph.inputs}
            answers = dict(zip(graph.answers, self._answers, strict=True)) | {str(graph.confidence): self._confidence}
            outputs = {
                tensor.name: answers[tensor.name][start : start + rows]
                if tensor.name in answers
                else device.allocate(tensor, rows)
                for tensor in graph.outputs
            }
            newest |= outputs
            self._stages.append(_BoundStage(stage, engines, inputs, outputs, first_place=start))
        for index, bound in enumerate(self._stages):
            there = {id(buffer) for buffer in self._inputs}
            there.update(id(buffer) for earlier in self._stages[: index + 1] for buffer in earlier.outputs)
            read = {id(buffer): buffer for later in self._stages[index + 1 :] for buffer in later.inputs}
            bound.carried = tuple(buffer for key, buffer in read.items() if key in there)
            if device.bind_early:
                bound.bind_all()

    def shadow(self, chosen: Collection[int]) -> ShadowRows:
        """Returns what ``run`` needs to carry these rows of the next batch on to the end, whether they leave or not."""
        if self._decision is None:
            self._decision = self._device.allocate(_CONFIDENCE, len(self._inputs[0]))
        return ShadowRows(chosen, self._device, self._decision)

    def run(self, inputs: Sequence[np.ndarray | Buffer], shadow: ShadowRows | None = None) -> Iterator[Leavers]:
        """Sends a batch through the stages.

        Args:
            inputs: one array (B, ...) per input of the network, 1 <= B <= ``max_batch_size``, of the host or adopted
                by the device.
            shadow: from ``shadow``; its rows have reached the end when this is exhausted.

        Yields:
            The rows that leave, stage by stage; together every row of the batch exactly once.
        """
        device = self._device
        for array, buffer in zip(inputs, self._inputs, strict=True):
            device.upload(array, buffer)
        rows = list(range(len(inputs[0])))
        engine_s = 0.0
        for index, stage in enumerate(self._stages):
            executions = stage.executions(len(rows))
            started = device.mark()
            for execute in executions:
                execute()
            ended = device.mark()
            first = stage.first_place
            if stage.threshold is None:
                engine_s += device.seconds_between(started, ended)
                last = range(len(rows)) if shadow is None else shadow.finish(rows, first_place=first)
                if last:
                    places = [first + row for row in last]
                    yield Leavers(exit_index=index, rows=[rows[row] for row in last], places=places, engine_s=engine_s)
                elif shadow is not None:
                    shadow.engine_s = engine_s
                return
            if shadow is None:
                departure = device.split_rows(
                    len(rows), confidence=stage.confidence, threshold=stage.threshold, carried=stage.carried
                )
            else:
                departure = shadow.split_rows(
                    rows, exit_index=index, first_place=first,
                    confidence=stage.confidence, threshold=stage.threshold, carried=stage.carried,
                )  # fmt: skip
            engine_s += device.seconds_between(started, ended)
            if not departure.left:
                continue
            yield Leavers(
                exit_index=index,
                rows=[rows[row] for row in departure.left],
                places=[first + row for row in departure.left],
                engine_s=engine_s,
            )
            if not departure.stayed:
                return
            rows, engine_s = [rows[row] for row in departure.stayed], 0.0

    def answers(self, places: Sequence[int]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Reads answers of rows that have left; they stay where they are until the next batch enters.

        Args:
            places: from ``Leavers.places``, of any stages, in any order.

        Returns:
            The confidences (len(places),) float32, and one array (len(places), ...) per answer. The caller owns them.
        """
        confidence, *answers = self._device.download_all(self._answered, places)
        return confidence, tuple(answers)

    def answers_on_device(self, places: Sequence[int]) -> tuple[np.ndarray, tuple[Buffer, ...]]:
        """As ``answers``, but the answers stay on the device; they are complete, and the caller owns them."""
        taken = self._device.take(self._answers, places)
        return self._device.download(self._confidence, places), taken  # the download waits, for what was taken as well


class _BoundStage:
    """One stage over the chain's buffers; ``carried`` are those that a later stage still reads, ``first_place`` is
    where its first row answers."""

    def __init__(
        self,
        spec: StageSpec,
        engines: EngineSet,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
        *,
        first_place: int,
    ) -> None:
        self._engines = engines
        self._buffers = {**inputs, **outputs}
        self._bound: dict[Run, Execution] = {}
        self._executions: dict[int, tuple[Execution, ...]] = {}
        self.inputs = tuple(inputs.values())
        self.outputs = tuple(outputs.values())
        self.threshold = None if spec.threshold is None else float(np.float32(spec.threshold))
        self.confidence = outputs[str(spec.graph.confidence)]
        self.first_place = first_place
        self.carried: tuple[Buffer, ...] = ()

    def executions(self, count: int) -> tuple[Execution, ...]:
        """Returns the engine calls that cover ``count`` rows; a run is bound when it is needed for the first time."""
        found = self._executions.get(count)
        if found is None:
            found = self._executions[count] = tuple(self._bind(run) for run in self._engines.cover(count))
        return found

    def bind_all(self) -> None:
        """Binds the runs of every number of rows that may come."""
        for count in range(1, self._engines.covers.largest + 1):
            self.executions(count)

    def _bind(self, run: Run) -> Execution:
        if run not in self._bound:
            self._bound[run] = self._engines.bind(run, self._buffers)
        return self._bound[run]


def check_stages(spec: BundleSpec, engine_sets: Sequence[EngineSet]) -> None:
    """Checks that every stage finds its inputs and its engines, answers what the bundle promises, and lets rows leave.

    Raises:
        SchemaError: they do not; says which stage and why.
    """
    known: dict[str, TensorSpec] = {tensor.name: tensor for tensor in spec.inputs}
    wanted = [(tensor.dtype, tensor.row_shape) for tensor in spec.outputs]
    if not spec.stages or len(spec.stages) != len(engine_sets):
        raise _misfit(spec, f"it has {len(spec.stages)} stages and engines for {len(engine_sets)}")
    for engines in engine_sets:
        if engines.covers.largest < spec.max_batch_size:
            covered = f"at most {engines.covers.largest} of {spec.max_batch_size} rows"
            raise _misfit(spec, f"the engines of '{engines.graph.name}' cover {covered}")
    for index, stage in enumerate(spec.stages):
        graph, last = stage.graph, index == len(spec.stages) - 1
        for tensor in graph.inputs:
            if known.get(tensor.name) != tensor:
                raise _misfit(spec, f"stage '{graph.name}' reads {tensor}, but there is {known.get(tensor.name)}")
        read = {tensor.name for later in spec.stages[index + 1 :] for tensor in later.graph.inputs}
        if again := sorted(read & {*graph.answers, graph.confidence}):
            raise _misfit(spec, f"later stages read {again}, which stage '{graph.name}' answers with")
        known |= {tensor.name: tensor for tensor in graph.outputs}
        answers = [(graph.output(name).dtype, graph.output(name).row_shape) for name in graph.answers]
        if answers != wanted:
            raise _misfit(spec, f"stage '{graph.name}' answers {answers}, expected {wanted}")
        if graph.confidence is None:
            raise _misfit(spec, f"stage '{graph.name}' computes no confidence")
        decision = graph.output(graph.confidence)
        if (decision.dtype, decision.row_shape) != ("float32", ()):
            raise _misfit(spec, f"the confidence of stage '{graph.name}' is {decision}, expected one float32 per row")
        if (stage.threshold is None) != last:
            raise _misfit(spec, f"stage '{graph.name}' has threshold {stage.threshold}; only the last stage has none")


def _misfit(spec: BundleSpec, why: str) -> SchemaError:
    return SchemaError(f"the stages of bundle '{spec.name}' do not fit together: {why}. Make it again with: {REMEDY}")

"""Buffers of a chain of stages: everything that is allocated for the batches that go through, and its layout.

All is allocated when the chain is made, and engines are bound to it once per number of rows. A stage reads the newest
tensor of a name: an earlier stage's, or else the network's input. The stages answer into sections of one buffer per
output, where an answer stays until the next batch enters: so the answers of a batch, from whichever stages, are one
read by place.

Which rows stand in the buffers is not known here; that is ``runtime.scheduling``'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from artifacts import BundleSpec, StageSpec, TensorSpec
from engines import Branch, Buffer, CapturedChain, Device, EngineSet, Execution, Run, StageWork, choose_branches

_BRANCHES = 16  # of a stage that is captured: each holds all its kernels once more
_CONFIDENCE = TensorSpec(name="confidence", dtype="float32", row_shape=())


class StageBuffers:
    """The buffers of one stage and its engines over them.

    Attributes:
        inputs, outputs: name -> buffer, as the stage's graph has them.
        threshold: rows with at least this confidence leave, a value of float32; ``None`` for the last stage.
        confidence: where the stage writes the confidences.
        first_answer: where the answer to its first row lies, for ``ChainBuffers.answers``.
        carried: after the stage has run, name -> buffer of everything that a later stage still reads.
    """

    def __init__(
        self,
        spec: StageSpec,
        engines: EngineSet,
        inputs: Mapping[str, Buffer],
        outputs: Mapping[str, Buffer],
        *,
        first_answer: int,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.threshold = None if spec.threshold is None else float(np.float32(spec.threshold))
        self.confidence = outputs[str(spec.graph.confidence)]
        self.first_answer = first_answer
        self.carried: dict[str, Buffer] = {}
        self.carried_buffers: tuple[Buffer, ...] = ()
        self._engines = engines
        self._buffers = {**inputs, **outputs}
        self._bound: dict[Run, Execution] = {}
        self._executions: dict[int, tuple[Execution, ...]] = {}

    def carry(self, carried: Mapping[str, Buffer]) -> None:
        """Sets the buffers that a later stage still reads."""
        self.carried = dict(carried)
        self.carried_buffers = tuple(self.carried.values())

    def executions(self, count: int) -> tuple[Execution, ...]:
        """Returns the engine calls that cover ``count`` rows; a run is bound when it is needed for the first time."""
        found = self._executions.get(count)
        if found is None:
            found = self._executions[count] = tuple(self._bind(run) for run in self._engines.cover(count))
        return found

    def bind_all(self) -> None:
        """Binds the runs of every number of rows."""
        for count in range(1, self._engines.covers.largest + 1):
            self.executions(count)

    def work(self, limit: int) -> StageWork:
        """Returns what a device needs to know to run the stage by itself, with at most ``limit`` branches."""
        rows = choose_branches(self._engines.covers, limit)
        return StageWork(
            branches=tuple(Branch(rows=count, executions=self.executions(count)) for count in rows),
            confidence=self.confidence, threshold=self.threshold, first_answer=self.first_answer,
            carried=self.carried_buffers,
        )  # fmt: skip

    def _bind(self, run: Run) -> Execution:
        if run not in self._bound:
            self._bound[run] = self._engines.bind(run, self._buffers)
        return self._bound[run]


class ChainBuffers:
    """The buffers of all stages, for one batch at a time; several may share the engine sets.

    Attributes:
        inputs: name -> buffer, of the network.
        stages: those of each stage, in the order of the data flow.
    """

    def __init__(self, spec: BundleSpec, engine_sets: Sequence[EngineSet], device: Device) -> None:
        """Allocates ``spec.max_batch_size`` rows of everything, and the padding that covers add to them.

        Args:
            spec: a bundle whose stages have passed ``check_stages``.
            engine_sets: one per stage.
            device: where the buffers live.
        """
        self._device = device
        self._largest = spec.max_batch_size
        self._rows = max(engines.covers.buffer_rows for engines in engine_sets)
        self._confidence = device.allocate(_CONFIDENCE, self._rows * len(spec.stages))
        self._answers = tuple(device.allocate(tensor, self._rows * len(spec.stages)) for tensor in spec.outputs)
        self._all_answers = (self._confidence, *self._answers)
        self._decision: Buffer | None = None
        newest = {tensor.name: device.allocate(tensor, self._rows) for tensor in spec.inputs}
        self.inputs = dict(newest)
        self.stages: list[StageBuffers] = []
        after: list[dict[str, Buffer]] = []
        for stage, engines in zip(spec.stages, engine_sets, strict=True):
            first = self._rows * len(self.stages)
            inputs = {tensor.name: newest[tensor.name] for tensor in stage.graph.inputs}
            outputs = self._allocate_outputs(stage, first)
            newest |= outputs
            after.append(dict(newest))
            self.stages.append(StageBuffers(stage, engines, inputs, outputs, first_answer=first))
        read: set[str] = set()
        for bound, present in zip(reversed(self.stages), reversed(after), strict=True):
            bound.carry({name: present[name] for name in present if name in read})
            read = (read - set(bound.outputs)) | set(bound.inputs)
            if device.bind_early:
                bound.bind_all()

    def _allocate_outputs(self, stage: StageSpec, first: int) -> dict[str, Buffer]:
        graph = stage.graph
        answers = dict(zip(graph.answers, self._answers, strict=True)) | {str(graph.confidence): self._confidence}
        return {
            tensor.name: answers[tensor.name][first : first + self._rows]
            if tensor.name in answers
            else self._device.allocate(tensor, self._rows)
            for tensor in graph.outputs
        }

    def fill(self, inputs: Sequence[np.ndarray | Buffer]) -> None:
        """Copies a batch into the first places: one array (B, ...) per input of the network."""
        for array, buffer in zip(inputs, self.inputs.values(), strict=True):
            self._device.upload(array, buffer)

    def capture(self) -> CapturedChain:
        """Makes one piece of work of the chain, over these buffers; errors as ``Device.capture_chain``."""
        work = [stage.work(_BRANCHES) for stage in self.stages]
        return self._device.capture_chain(work, self._all_answers, self._largest)

    @property
    def decision(self) -> Buffer:
        """A buffer of confidences to decide by, where those that a stage wrote are not the ones."""
        if self._decision is None:
            self._decision = self._device.allocate(_CONFIDENCE, self._rows)
        return self._decision

    def answers(self, places: Sequence[int]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Reads answers of rows that have left; they stay where they are until the next batch enters.

        Args:
            places: from ``LeavingRows.places``, of any stages, in any order.

        Returns:
            The confidences (len(places),) float32, and one array (len(places), ...) per answer. The caller owns them.
        """
        found = self._device.download_all(self._all_answers, places)
        return found[0], found[1:]

    def answers_on_device(self, places: Sequence[int]) -> tuple[np.ndarray, tuple[Buffer, ...]]:
        """As ``answers``, but the answers stay on the device; they are complete, and the caller owns them."""
        taken = self._device.take(self._answers, places)
        return self._device.download(self._confidence, places), taken  # the download waits, for the copies as well

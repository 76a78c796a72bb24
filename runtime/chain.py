"""The chain of stages: one batch through the engines, from stage to stage with the rows that stay.

The loop is ``StageChain.run``. What runs next and which rows leave is decided in ``runtime.scheduling.batch_steps``, on
plain lists; what is allocated, and where, is ``runtime.buffers``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from artifacts import BundleSpec, EngineError, GraphSpec, UsageError
from engines import Buffer, CapturedChain, Device, Engine, EngineSet, Execution, find_length
from runtime.buffers import ChainBuffers, StageBuffers
from runtime.scheduling.batch_steps import BatchState, LeavingRows, StageCall, StageOutcome, next_step, record_outcome

_log = logging.getLogger("pame.runtime")


@dataclass(slots=True)
class CapturedAnswers:
    """The answers to a batch that ran as one graph, in its order.

    Attributes:
        exits: the stage after which each row left.
        confidence: (B,) float32.
        outputs: one array (B, ...) per output of the network.
        engine_s: seconds from the graph's start to its end, by the device's own clock.
    """

    exits: list[int]
    confidence: np.ndarray
    outputs: tuple[np.ndarray | Buffer, ...]
    engine_s: float


class OneGraph:
    """A whole plan as one engine over buffers, which a batch goes through in a single call; a ``CapturedChain``.

    What a captured chain is on a GPU, this is on the processor: nothing of the host's runs between the stages, and all
    answers come together, in the order of the batch. It answers as the stages do, at the plan's own thresholds, which
    stand in the graph; for other thresholds, shadowed rows and streams the chain goes stage by stage. Several may share
    the engine.

    Attributes:
        collected: after a launch: the confidences, then one buffer per output of the network.
    """

    def __init__(self, engine: Engine, inputs: Mapping[str, Buffer], device: Device, rows: int) -> None:
        """Allocates the outputs.

        Args:
            engine: of a graph that has passed ``check_stages``.
            inputs: name -> buffer of at least ``rows`` rows, for every input of the network.
            device: where the buffers live.
            rows: of the largest batch.
        """
        graph = engine.graph
        outputs = {spec.name: device.allocate(spec, rows) for spec in graph.outputs}
        self._engine, self._device = engine, device
        self._buffers = {**{spec.name: inputs[spec.name] for spec in graph.inputs}, **outputs}
        self._exit_index = outputs[_name_exit_index(graph)]
        self._bound: dict[int, Execution] = {}
        self.collected = (outputs[str(graph.confidence)], *(outputs[name] for name in graph.answers))

    def launch(self, count: int) -> None:
        """Puts the first ``count`` rows of the inputs through all stages; bound when it is needed for the first time.

        Raises:
            EngineError: the backend failed.
        """
        execute = self._bound.get(count)
        if execute is None:
            buffers = {name: buffer[:count] for name, buffer in self._buffers.items()}
            execute = self._bound[count] = self._engine.bind(buffers)
        execute()

    def exits(self, count: int) -> list[int]:
        """Returns the stage after which each row left."""
        found: list[int] = self._device.download(self._exit_index, range(count)).tolist()
        return found

    def free(self) -> None:
        """Forgets its bindings; the engine is closed by whoever opened it."""
        self._bound.clear()


def _name_exit_index(graph: GraphSpec) -> str:
    """Returns the output that says where each row left: the one that is neither an answer nor the confidence."""
    (name,) = {spec.name for spec in graph.outputs} - {*graph.answers, graph.confidence}
    return name


class StageChain:
    """Stages over buffers of their own. Takes one batch at a time; several chains may share the engine sets."""

    def __init__(
        self, spec: BundleSpec, engine_sets: Sequence[EngineSet], device: Device, *, captured: bool = False,
        one_graph: Engine | None = None,
    ) -> None:  # fmt: skip
        """Allocates every buffer, for each length that rows may have.

        Args:
            spec: a bundle whose stages have passed ``check_stages``.
            engine_sets: one per stage.
            device: where the buffers live.
            captured: whether to make one graph of all stages, for ``run_captured``; nothing else may run on the device
                meanwhile. Where that is not possible the reason is logged as a warning.
            one_graph: the engine of ``spec.one_graph``, for ``run_captured``; ``None``: go stage by stage.
        """
        self._device = device
        self._inputs = spec.inputs
        views = {length: spec.at_length(length) for length in spec.lengths} or {0: spec}
        self._by_length = {
            length: ChainBuffers(view, [engines.at_length(length) for engines in engine_sets], device)
            for length, view in views.items()
        }
        self._buffers = self._by_length[max(self._by_length)]
        self._thresholds = [stage.threshold for stage in self._buffers.stages]
        self._captured = self._capture() if captured else None
        if one_graph is not None:  # of a bundle whose rows have one shape
            self._captured = {0: OneGraph(one_graph, self._buffers.inputs, device, spec.max_batch_size)}

    def run(
        self, inputs: Sequence[np.ndarray | Buffer], state: BatchState, thresholds: Sequence[float] | None = None
    ) -> Iterator[LeavingRows]:
        """Sends a batch through the stages.

        Args:
            inputs: one array (B, ...) per input of the network, 1 <= B <= ``max_batch_size``, of the host or adopted
                by the device; where rows have several lengths, of one of these (``engines.fit_length``).
            state: of a batch of B rows that has not entered yet; it is moved on, and says at the end how long engines
                took and which shadowed rows can be compared.
            thresholds: one per exit, values of float32, in place of the plan's; ``None``: the plan's.

        Yields:
            The rows that leave, stage by stage; together every row of the batch exactly once.
        """
        self._enter(inputs)
        stages = self._buffers.stages
        limits = self._thresholds if thresholds is None else [*thresholds, None]
        while (call := next_step(state, len(stages))) is not None:
            outcome = self._execute(call, limits[call.stage])
            leaving = record_outcome(state, outcome)
            if leaving is not None:
                yield leaving

    def answers(self, places: Sequence[int]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """As ``ChainBuffers.answers``, of the batch that entered last."""
        return self._buffers.answers(places)

    def answers_on_device(self, places: Sequence[int]) -> tuple[np.ndarray, tuple[Buffer, ...]]:
        """As ``ChainBuffers.answers_on_device``, of the batch that entered last."""
        return self._buffers.answers_on_device(places)

    def _enter(self, inputs: Sequence[np.ndarray | Buffer]) -> int:
        """Copies a batch into the buffers of its length, which it returns."""
        length = find_length(inputs, self._inputs)
        self._buffers = self._by_length[length]
        self._buffers.fill(inputs)
        return length

    @property
    def captured(self) -> bool:
        """Whether ``run_captured`` is possible."""
        return self._captured is not None

    def run_captured(self, inputs: Sequence[np.ndarray | Buffer], *, on_device: bool) -> CapturedAnswers:
        """Sends a batch through all stages at once; waits once, for its answers.

        Args:
            inputs: as for ``run``.
            on_device: leave the outputs on the device.

        Raises:
            UsageError: this chain is not captured.
        """
        if self._captured is None:
            raise UsageError("this chain was not captured; send the batch through run")
        device, count = self._device, len(inputs[0])
        graph = self._captured[self._enter(inputs)]
        started = device.mark()
        graph.launch(count)
        ended = device.mark()
        confidence: np.ndarray
        outputs: tuple[np.ndarray | Buffer, ...]
        if on_device:
            outputs = device.take(graph.collected[1:], range(count))
            confidence = device.download(graph.collected[0], range(count))  # waits, for the copies as well
        else:
            confidence, *arrays = device.download_all(graph.collected, range(count))
            outputs = tuple(arrays)
        return CapturedAnswers(graph.exits(count), confidence, outputs, device.seconds_between(started, ended))

    def _capture(self) -> dict[int, CapturedChain] | None:
        """Makes one graph per length; ``None`` where one of them cannot be."""
        try:
            return {length: buffers.capture() for length, buffers in self._by_length.items()}
        except EngineError as error:
            _log.warning("the chain runs stage by stage and not as one CUDA graph: %s", error)
            return None

    def _execute(self, call: StageCall, threshold: float | None) -> StageOutcome:
        """Runs the engines of a stage over the rows in its buffers and splits the rows by their confidence."""
        device, stage = self._device, self._buffers.stages[call.stage]
        executions = stage.executions(call.count)
        started = device.mark()
        for execute in executions:
            execute()
        ended = device.mark()
        left: Sequence[int]
        stayed: Sequence[int]
        if threshold is None:
            left, stayed = range(call.count), ()
        elif call.held:
            left, stayed = self._split_with_held(stage, call, threshold)
        else:
            departure = device.split_rows(
                call.count, confidence=stage.confidence, threshold=threshold, carried=stage.carried_buffers
            )
            left, stayed = departure.left, departure.stayed
        return StageOutcome(left, stayed, stage.first_answer, device.seconds_between(started, ended))

    def _split_with_held(
        self, stage: StageBuffers, call: StageCall, threshold: float
    ) -> tuple[Sequence[int], Sequence[int]]:
        """As ``Device.split_rows``, but held rows keep a place, even those that leave.

        The device decides by a copy of the confidences in which held rows have none.
        """
        decision = self._device.download(stage.confidence, range(call.count))
        confident = [place for place in call.held if decision[place] >= threshold]
        decision[call.held] = np.nan
        self._device.upload(decision, self._buffers.decision)
        departure = self._device.split_rows(
            call.count, confidence=self._buffers.decision, threshold=threshold, carried=stage.carried_buffers
        )
        return sorted([*departure.left, *confident]), departure.stayed

"""Arenas: the buffers of the stages' inputs, shared by the rows of several requests.

Every stage has an arena: one buffer for each tensor that it or a later stage reads. The rows that wait for the stage
stand in it from place 0 on, and the engines are bound to its first places, as those of a chain are to its buffers. So a
run reads its rows where they wait, and those that stay are copied once: straight to their places behind the rows that
wait for the next stage::

    arena 1   [ a0 a1 b0 | c0 ]      run over 3 rows: a1 leaves
    arena 2   [ d0 d1 .. ]           becomes [ d0 d1 a0 b0 ]

Which row stands where is not known here; that is ``runtime.scheduling``'s, which also says when to close gaps.

Where rows have several lengths, every length has arenas of its own. Rows come as long as their request's arrays are,
and are brought to the length of the run that they enter with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from artifacts import BundleSpec, StageSpec, TensorSpec
from engines import Buffer, Device, EngineSet, Execution, resize_rows
from runtime.buffers import StageBuffers

_SMALL_ROW_BYTES = 1 << 14  # rows up to this are joined on the host and then copied at once


@dataclass(slots=True)
class Piece:
    """Neighbouring rows of a request that run together.

    Attributes:
        arrays: of the request, one per input of the network.
        start, stop: its rows.
    """

    arrays: Sequence[np.ndarray | Buffer]
    start: int
    stop: int


class StageArenas:
    """The arenas of all stages, for rows of one length, and the engines over them. One run at a time.

    Attributes:
        length: of the rows; 0 where they have one shape.
    """

    def __init__(
        self, spec: BundleSpec, engine_sets: Sequence[EngineSet], device: Device, *, capacity: int, length: int = 0
    ) -> None:
        """Allocates everything and binds the engines where that takes long.

        Args:
            spec: a bundle whose stages have passed ``check_stages``.
            engine_sets: one per stage.
            device: where the buffers live.
            capacity: how many rows may wait for a stage, from ``Scheduler.capacity``.
            length: of the rows, where they have several.
        """
        self._device, self.length = device, length
        self._inputs = spec.inputs
        if spec.lengths:
            spec = spec.at_length(length)
            engine_sets = [engines.at_length(length) for engines in engine_sets]
        padded = max(engines.covers.buffer_rows for engines in engine_sets)
        needed = needed_tensors(spec.stages)
        self._input_names = [tensor.name for tensor in spec.inputs if tensor.name in needed[0]]
        self._input_places = [place for place, tensor in enumerate(spec.inputs) if tensor.name in needed[0]]
        self._arenas: list[dict[str, Buffer]] = []
        self._spare: list[dict[str, Buffer]] = []
        self._stages: list[StageBuffers] = []
        self._answers: list[tuple[Buffer, ...]] = []
        self._onward: list[tuple[Buffer, ...]] = []
        for stage, (tensors, engines) in enumerate(zip(needed, engine_sets, strict=True)):
            rows = padded if stage == 0 else max(capacity, padded)
            self._arenas.append({name: device.allocate(tensor, rows) for name, tensor in tensors.items()})
            spare = {} if stage == 0 else {name: device.allocate(tensor, rows) for name, tensor in tensors.items()}
            self._spare.append(spare)
            self._add_stage(spec.stages[stage], engines, padded)
        for stage, arena in enumerate(self._arenas[1:]):
            present = {**self._arenas[stage], **self._stages[stage].outputs}
            self._onward.append(tuple(present[name] for name in arena))
        if device.bind_early:
            for bound in self._stages:
                bound.bind_all()

    def _add_stage(self, spec: StageSpec, engines: EngineSet, rows: int) -> None:
        outputs = {tensor.name: self._device.allocate(tensor, rows) for tensor in spec.graph.outputs}
        inputs = {tensor.name: self._arenas[-1][tensor.name][:rows] for tensor in spec.graph.inputs}
        bound = StageBuffers(spec, engines, inputs, outputs, first_answer=0)
        self._stages.append(bound)
        self._answers.append((bound.confidence, *(outputs[name] for name in spec.graph.answers)))

    def warm_up(self, largest: int, rest: Callable[[float], None] = lambda _: None) -> None:
        """Runs every engine of every stage once, over whatever stands in the buffers, and every copy.

        Args:
            largest: of the batches.
            rest: called after every run with the seconds that it took; waits, where others shall run meanwhile.
        """
        for number, stage in enumerate(self._stages):
            seen: set[Execution] = set()
            for count in range(1, largest + 1):
                for execute in stage.executions(count):
                    if execute not in seen:
                        seen.add(execute)
                        started = perf_counter()
                        execute()
                        self._device.synchronize()
                        rest(perf_counter() - started)
            self.answers(number, [0])
            if number < len(self._onward):
                self.advance(number, [0], 0)
        self._device.synchronize()

    def arrange(self, stage: int, places: Sequence[int]) -> None:
        """Lets the rows at ``places`` stand at 0, 1, 2 ...; by way of the spare buffers where places overlap."""
        first = next((place for place, old in enumerate(places) if place != old), len(places))
        moved = places[first:]
        if not moved:
            return
        arena, spare = tuple(self._arenas[stage].values()), tuple(self._spare[stage].values())
        if min(moved) >= len(places):  # sources and targets have no place in common
            self._device.append_rows(arena, moved, arena, first)
            return
        self._device.append_rows(arena, moved, spare, 0)
        self._device.append_rows(spare, range(len(moved)), arena, first)

    def enter(self, pieces: Sequence[Piece]) -> None:
        """Copies rows of requests into the first places of the first stage, one behind the other."""
        for name, place in zip(self._input_names, self._input_places, strict=True):
            buffer, at = self._arenas[0][name], 0
            parts = [piece.arrays[place][piece.start : piece.stop] for piece in pieces]
            if self.length and self._inputs[place].length_axes:
                parts = [resize_rows(np.asarray(rows), self._inputs[place], self.length) for rows in parts]
            for rows in _join_small(parts):
                self._device.upload(rows, buffer[at : at + len(rows)])
                at += len(rows)

    def execute(self, stage: int, count: int) -> float:
        """Runs a stage over its first ``count`` rows; returns the seconds that the engines took, by the device's clock.

        Raises:
            EngineError: the backend failed.
        """
        device = self._device
        started = device.mark()
        for execute in self._stages[stage].executions(count):
            execute()
        return device.seconds_between(started, device.mark())

    def split(self, stage: int, count: int, threshold: float | None) -> tuple[list[int], list[int]]:
        """Returns the places of the rows that leave after the run, and of those that stay, both ascending.

        Args:
            stage: that has run.
            count: over how many rows.
            threshold: rows with at least this confidence leave; infinite: none does; ``None``: all do.
        """
        if threshold is None:
            return list(range(count)), []
        if threshold == math.inf:
            return [], list(range(count))
        left: list[int] = []
        stayed: list[int] = []
        confidence = self._device.download(self._stages[stage].confidence, range(count)).tolist()
        for place, value in enumerate(confidence):
            (left if value >= threshold else stayed).append(place)
        return left, stayed

    def advance(self, stage: int, stayed: Sequence[int], offset: int) -> None:
        """Copies the rows that stay, with every tensor that is still read, to the next stage's arena."""
        if stayed:
            self._device.append_rows(self._onward[stage], stayed, tuple(self._arenas[stage + 1].values()), offset)

    def answers(self, stage: int, places: Sequence[int]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Returns confidences (len(places),) and answers, one array (len(places), ...) each; the caller owns them."""
        found = self._device.download_all(self._answers[stage], places)
        return found[0], found[1:]


def needed_tensors(stages: Sequence[StageSpec]) -> list[Mapping[str, TensorSpec]]:
    """Returns for every stage the tensors that it or a later one reads and that are there before it runs."""
    needed: list[Mapping[str, TensorSpec]] = []
    later: dict[str, TensorSpec] = {}
    for stage in reversed(stages):
        made = {tensor.name for tensor in stage.graph.outputs}
        later = {name: tensor for name, tensor in later.items() if name not in made}
        later |= {tensor.name: tensor for tensor in stage.graph.inputs}
        needed.append(dict(later))
    return needed[::-1]


def _join_small(parts: list[np.ndarray | Buffer]) -> Sequence[np.ndarray | Buffer]:
    """Joins arrays of the host with small rows: a copy of a few kB costs less than a transfer of its own."""
    arrays = [part for part in parts if isinstance(part, np.ndarray)]
    if len(arrays) < 2 or len(arrays) < len(parts) or arrays[0][:1].nbytes > _SMALL_ROW_BYTES:
        return parts
    return [np.concatenate(arrays)]

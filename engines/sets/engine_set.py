"""``EngineSet``: the engines of one stage over all batch sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from artifacts import EngineError, EngineKey, GraphSpec, InputError
from engines.protocols import Buffer, Engine, Execution
from engines.sets.covers import Covers, Run


class EngineSet:
    """The engines of one stage, and the covers that choose the runs for n rows.

    Args:
        engine: an engine for all batch sizes, or several engines of the same graph, each for some of them.
        covers: from ``plan_covers``, over the measured times of these engines; at the largest length, where rows have
            several.
        shorter: length -> the covers for rows of that length, for every length but the largest.

    Raises:
        EngineError: no engines, engines of different graphs, or a cover needs a batch size that no engine takes.
    """

    def __init__(
        self, engine: Engine | Sequence[Engine], covers: Covers, shorter: Mapping[int, Covers] | None = None
    ) -> None:
        engines = tuple(engine) if isinstance(engine, Sequence) else (engine,)
        if not engines:
            raise EngineError("an engine set needs at least one engine")
        if any(other.graph != engines[0].graph for other in engines):
            names = ", ".join(sorted({other.graph.name for other in engines}))
            raise EngineError(f"an engine set holds engines of one graph, got engines of several ({names})")
        self._engines = engines
        self._graph = engines[0].graph
        self._covers = covers
        self._shorter = dict(shorter or {})
        self._by_size = {size: self._find_engine(size) for size in covers.batch_sizes}

    @property
    def graph(self) -> GraphSpec:
        return self._graph

    @property
    def key(self) -> EngineKey:
        """The key of the first engine; the keys of a set differ in their batch sizes at most."""
        return self._engines[0].key

    @property
    def covers(self) -> Covers:
        return self._covers

    def at_length(self, length: int) -> EngineSet:
        """Returns the same engines for batches whose rows are ``length`` long."""
        view = EngineSet(self._engines, self._shorter.get(length, self._covers))
        view._graph = self._graph.at_length(length)
        return view

    def cover(self, n: int) -> tuple[Run, ...]:
        """Returns the cheapest runs for ``n`` rows; raises ``InputError`` beyond ``covers.largest``."""
        return self._covers.runs(n)

    def bind(self, run: Run, buffers: Mapping[str, Buffer]) -> Execution:
        """Binds rows ``run.start`` to ``run.stop`` of every buffer and returns the call that runs them.

        Args:
            run: from ``cover``.
            buffers: name -> buffer for every input and output of the graph; ``covers.buffer_rows`` rows are enough.

        Raises:
            InputError: a buffer is too short for the run.
            EngineError: as ``Engine.bind``, or no engine takes the batch size.
        """
        for name, buffer in buffers.items():
            if len(buffer) < run.stop:
                raise InputError(
                    f"{self.graph.name}: buffer '{name}' has {len(buffer)} rows, the run needs {run.stop}; "
                    "allocate covers.buffer_rows of them"
                )
        engine = self._by_size.get(run.batch_size) or self._find_engine(run.batch_size)
        return engine.bind({name: buffer[run.start : run.stop] for name, buffer in buffers.items()})

    def close(self) -> None:
        """Closes every engine; may be called twice."""
        for engine in self._engines:
            engine.close()

    def _find_engine(self, size: int) -> Engine:
        """Returns the engine for a batch size, preferring an engine for exactly this size to one that takes any."""
        for engine in self._engines:
            if size in engine.key.batch_sizes:
                return engine
        for engine in self._engines:
            if not engine.key.batch_sizes and size <= engine.key.max_batch_size:
                return engine
        raise EngineError(
            f"{self.graph.name}: no engine takes batch size {size}; time the engines that are deployed, or build one "
            f"with batch_sizes=({size},)"
        )

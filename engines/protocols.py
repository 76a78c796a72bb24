"""The seams of this room: ``Engine``, ``EngineBuilder`` and ``Device``, and the ``Backend`` record that makes them.

``Engine``         a compiled graph, ready to run
``EngineBuilder``  what compiles one
``Device``         where the buffers of engines live
``Backend``        one line of the table of backends: how to find, build, open and describe its engines

A *buffer* is an array on the device with the batch as leading axis: a ``numpy.ndarray`` on the host, a ``DeviceArray``
on a GPU. Only its device reads or writes it; all others see what ``Buffer`` declares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from artifacts import Artifact, EngineKey, GraphSpec, TensorSpec
from engines.identity.description import EngineDescription
from engines.identity.keys import BackendIdentity
from engines.options import BuildOptions, DeviceOptions

Execution = Callable[[], None]
Mark: TypeAlias = object  # a moment in a device's own time; only the device that made it can read it


class Buffer(Protocol):
    """An array on a device, seen by everything but its device."""

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int:
        """Its rows."""

    def __getitem__(self, rows: slice, /) -> Buffer:
        """Returns a view of neighbouring rows."""


class Engine(Protocol):
    """A graph compiled by one backend, opened and ready to run."""

    @property
    def key(self) -> EngineKey: ...

    @property
    def graph(self) -> GraphSpec: ...

    def bind(self, buffers: Mapping[str, Buffer]) -> Execution:
        """Binds inputs and outputs once and returns the call that runs the engine over them.

        Args:
            buffers: name -> buffer for every input and output, all with the same number of rows, which must be one of
                ``key.batch_sizes`` or, when those are empty, 1 to ``key.max_batch_size``. They must outlive the call.

        Raises:
            EngineError: a name is missing, or a shape or dtype is not the one of ``graph``.
        """

    def close(self) -> None:
        """Frees the engine; may be called twice."""


class EngineBuilder(Protocol):
    """Compiles graphs for one backend, with the ``BuildOptions`` that it was made with."""

    @property
    def backend(self) -> str: ...

    def key(self, onnx: Path) -> EngineKey:
        """Returns the key of the engine that ``build`` would make, without building it.

        Raises:
            UsageError: a batch size is out of range.
            EngineError: ``onnx`` is no ONNX graph.
        """

    def build(self, onnx: Path, folder: Path, key: EngineKey) -> None:
        """Compiles ``onnx`` into files in ``folder`` (a staging folder of the store).

        Raises:
            EngineError: the backend refuses the graph; the message says which node and why.
        """


@dataclass(slots=True)
class Departure:
    """The result of ``Device.split_rows``; plain lists, because a batch has few rows and a cold array call costs 20 us,
    and not frozen, because that takes five times as long to make.

    Attributes:
        left: the rows that leave, ascending.
        stayed: row ``i`` of every carried buffer is now the one that was at ``stayed[i]``.
    """

    left: list[int]
    stayed: list[int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Branch:
    """What a stage runs over up to ``rows`` rows: engine calls, over the first places of its buffers."""

    rows: int
    executions: tuple[Execution, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageWork:
    """What a device needs to know of a stage to run a chain without the host.

    Attributes:
        branches: by rows, ascending; the last takes the largest batch.
        confidence: where the stage writes its confidences, float32.
        threshold: rows with at least this confidence leave, a value of float32; ``None`` for the last stage.
        first_answer: where the answer to its first row lies.
        carried: every buffer that a later stage reads.
    """

    branches: tuple[Branch, ...]
    confidence: Buffer
    threshold: float | None
    first_answer: int
    carried: tuple[Buffer, ...]


class CapturedChain(Protocol):
    """All stages of a chain as one piece of work; made by ``Device.capture_chain``."""

    @property
    def collected(self) -> tuple[Buffer, ...]:
        """One buffer per answer: after a launch, the answers in the order of the batch."""

    def launch(self, count: int) -> None:
        """Puts a batch of ``count`` rows, which stand in the chain's buffers, through all stages; does not wait.

        The batch before must be complete.
        """

    def exits(self, count: int) -> list[int]:
        """Returns the stage after which each row left; the caller has waited for the launch, e.g. for its answers."""

    def free(self) -> None:
        """Frees it; it must no longer run. May be called twice."""


class Device(Protocol):
    """Where buffers live, and the operations that multi-exit serving adds: rows leave, and rows of batches are joined.

    Operations run in the order in which they are issued, possibly asynchronously: a GPU works while the host goes on.
    Only ``split_rows``, the downloads, ``find_nonfinite``, ``seconds_between`` and ``synchronize`` wait.
    """

    @property
    def name(self) -> str:
        """For messages, e.g. ``cpu`` or ``cuda:0``."""

    @property
    def index(self) -> int:
        """The ordinal of the GPU; 0 on the host."""

    @property
    def bind_early(self) -> bool:
        """Whether binding an engine takes so long here that it must not happen in the middle of a batch."""

    def allocate(self, spec: TensorSpec, rows: int) -> Buffer:
        """Returns a zeroed buffer of ``rows`` rows."""

    def adopt(self, value: Any, *, stream: Any = None) -> Buffer:
        """Returns a view of an array that another library has on this device, for ``upload``.

        Args:
            value: has ``__dlpack__`` or ``__cuda_array_interface__``.
            stream: the stream of the caller's on which it was made.

        Raises:
            InputError: it is not on this device.
        """

    def copy(self, array: Buffer) -> Buffer:
        """Returns a copy of an array of the host, or of an adopted one, in the same memory as the original."""

    def find_nonfinite(self, array: Buffer) -> list[int]:
        """Returns the rows of an array of floating numbers that hold NaN or infinity."""

    def upload(self, array: Buffer, buffer: Buffer) -> None:
        """Copies an array of the host, or an adopted one, into the first rows of a buffer."""

    def split_rows(self, count: int, *, confidence: Buffer, threshold: float, carried: Sequence[Buffer]) -> Departure:
        """Lets rows leave and gathers the survivors at the front of every carried buffer, in the order that it returns.

        Args:
            count: how many leading rows are real; the rest is padding.
            confidence: float32, one per row.
            threshold: rows with at least this confidence leave; a value of float32.
            carried: every buffer that a later stage reads.
        """

    def append_rows(self, source: Sequence[Buffer], rows: Sequence[int], target: Sequence[Buffer], offset: int) -> None:
        """Copies the given rows of each source buffer to its target buffer, from row ``offset`` on.

        So rows of several batches are joined in the input of one stage. The other rows of the targets stay as they are.

        Args:
            source: buffers with the same number of rows.
            rows: rows of the sources, in any order.
            target: one buffer per source, of the same dtype and row shape, in other memory.
            offset: the row of every target at which the first of them goes.

        Raises:
            InputError: the buffers do not match, a source has no such row, or a target has too few rows.
        """

    def capture_chain(self, stages: Sequence[StageWork], answers: Sequence[Buffer], rows: int) -> CapturedChain:
        """Makes one piece of work of a whole chain, in which the host no longer has a part.

        Nothing else may run on the device meanwhile; every branch runs once, over whatever stands in the buffers.

        Args:
            stages: in the order of the data flow.
            answers: where the stages' answers lie, stage behind stage.
            rows: of the largest batch.

        Raises:
            EngineError: the device cannot, or the engines' work cannot be captured; the message says why.
        """

    def download(self, buffer: Buffer, rows: Sequence[int]) -> np.ndarray:
        """Returns a fresh host array (len(rows), *row_shape) with the given rows of a buffer, in that order."""

    def download_all(self, buffers: Sequence[Buffer], rows: Sequence[int]) -> tuple[np.ndarray, ...]:
        """As ``download`` of each buffer, but all of them at once: the host waits for a GPU a single time."""

    def take(self, buffers: Sequence[Buffer], rows: Sequence[int]) -> tuple[Buffer, ...]:
        """As ``download_all``, but the fresh arrays stay on the device, and the host does not wait."""

    def synchronize(self) -> None:
        """Waits until everything that was issued so far is done."""

    def mark(self) -> Mark:
        """Marks this moment in the device's own time, behind everything that was issued so far."""

    def seconds_between(self, start: Mark, end: Mark) -> float:
        """Returns the seconds from one mark to a later one. Each mark is good for one call."""

    def close(self) -> None:
        """Frees all buffers; may be called twice."""


ModelLoader: TypeAlias = Callable[[], bytes]
"""Returns a serialized ONNX model."""
MakeRunner: TypeAlias = Callable[[ModelLoader, str], Any]
"""Makes one of Polygraphy's runners for a model and a label."""


class OpenEngine(Protocol):
    """Opens an engine of one backend."""

    def __call__(
        self, artifact: Artifact, key: EngineKey, graph: GraphSpec, *, threads: int, device: Device | None
    ) -> Engine:
        """Opens a verified engine whose key was vetted; arguments and errors as those of ``open_engine``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One backend: its name, and its factories, none of which loads a library before it is called.

    Attributes:
        name: in engine keys and for ``--engine``; also the name of the extra that installs it.
        packages: the distributions whose versions an environment records for it.
        identify: ordinal of the GPU, where one is used, to version and device on this machine.
        open: opens an engine.
        builder: returns a builder; refuses options that the backend does not have.
        fixed_batch_sizes: the batch sizes of some options to build for, () where one engine takes any.
        vet: refuses an engine that was not built for this machine, as opening does, as far as that is possible without
            its graph; returns what could not be verified here, ``None`` where everything was.
        describe: vets an engine likewise and describes it.
        device: opens the device that its engines run on.
        tensors: makes what runs a graph with any of its tensors as outputs, to compare them; ``None``: nothing does.
    """

    name: str
    packages: tuple[str, ...]
    identify: Callable[[int], BackendIdentity]
    open: OpenEngine
    builder: Callable[[BuildOptions], EngineBuilder]
    fixed_batch_sizes: Callable[[BuildOptions], tuple[int, ...]]
    vet: Callable[[Artifact, EngineKey], str | None]
    describe: Callable[[Artifact, EngineKey], EngineDescription]
    device: Callable[[DeviceOptions], Device]
    tensors: MakeRunner | None = None

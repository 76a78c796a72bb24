"""``ChainGraph``: all stages of a chain as one CUDA graph, launched once per batch; the host waits once, for answers.

::

    enter_chain                    the number of rows of the batch; sets the first switch
    switch 0 over row counts       one body per branch: the engine runs of stage 0, then leave_rows, which splits the
                                   rows, closes ranks, and sets the next switch
    switch 1                       likewise, for as many rows as have stayed; no body where none has
    ...
    collect_rows                   answers, from wherever they lie, into the order of the batch

The switches are conditional nodes (CUDA Programming Guide, "Conditional Graph Nodes"; SWITCH needs CUDA 12.8). A body
holds the work of one branch: of an engine call that was captured before, that graph as a child; of any other, what it
enqueues on the device's stream. So a graph is made when nothing else of its device runs; launching it is safe like
every other work on that stream.

A body may hold kernels, copies, memory sets and child graphs only; the driver refuses any other, with ``EngineError``,
and the chain runs stage by stage instead. Programmatic dependencies, by which libraries let a kernel start before the
one before it has ended, become plain ones in a body.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np

from artifacts import EngineError, TensorSpec
from engines.gpu.arrays import DeviceArray
from engines.gpu.chain.kernels import CHAIN_KERNELS, CHAIN_SOURCE, Collected, Leaving
from engines.gpu.context import CudaContext, Parameters, undo_calls
from engines.gpu.driver import call, load_driver
from engines.gpu.graphs import CapturedGraph
from engines.gpu.kernels import BLOCK, MAX_CARRIED, MAX_GATHERED, Carried, compile_kernels, slice_count, split_grid
from engines.protocols import Branch, Device, StageWork

SWITCH_CUDA = 12080


class ChainGraph:
    """A captured chain; made by ``CudaDevice.capture_chain``.

    Attributes:
        collected: one buffer per answer, (rows, ...) each: after a launch, the answers in the order of the batch.
    """

    def __init__(
        self,
        context: CudaContext,
        device: Device,
        stages: Sequence[StageWork],
        answers: Sequence[DeviceArray],
        rows: int,
    ) -> None:
        """Captures; nothing else may run on the device meanwhile.

        Every branch runs once, over whatever stands in the buffers.

        Args:
            context: where it will be launched.
            device: the device of that context, where everything lies.
            stages: in the order of the data flow.
            answers: where the stages' answers lie.
            rows: of the largest batch.

        Raises:
            EngineError: the driver has no switches, or refuses the graph: the engines' work cannot be captured.
        """
        context.enter()
        _prepare(context)
        self._context = context
        self._host = context.allocate_pinned(4 * (1 + rows))
        self._request = ctypes.c_int.from_address(self._host.pointer)
        self._exits = (ctypes.c_int * rows).from_address(self._host.pointer + 4)
        self._state = _State(device, stages, rows, exits=self._host.pointer + 4)
        self.collected: tuple[Any, ...] = tuple(
            device.allocate(TensorSpec(name="answer", dtype=str(answer.dtype), row_shape=answer.shape[1:]), rows)
            for answer in answers
        )
        device.synchronize()
        graph = call("cuGraphCreate", 0)
        try:
            self._build(graph, stages, answers, rows)
            self._executable = _instantiate(graph)
        finally:
            call("cuGraphDestroy", graph)
        self._finalizer = weakref.finalize(
            self, undo_calls, context.primary, [("cuGraphExecDestroy", self._executable)]
        )
        self._finalizer.atexit = False
        call("cuGraphUpload", self._executable, context.stream)

    def launch(self, count: int) -> None:
        """Puts a batch of ``count`` rows, which stand in the chain's buffers, through all stages; does not wait.

        The batch before must be complete.
        """
        self._request.value = count
        call("cuGraphLaunch", self._executable, self._context.stream)

    def exits(self, count: int) -> list[int]:
        """Returns the stage after which each row left; the caller has waited for the launch."""
        return self._exits[:count]

    def free(self) -> None:
        """Frees the graph; it must no longer run. May be called twice."""
        self._finalizer()

    def _build(self, graph: Any, stages: Sequence[StageWork], answers: Sequence[DeviceArray], rows: int) -> None:
        context, state = self._context, self._state
        handles = [
            call("cuGraphConditionalHandleCreate", graph, context.primary, len(stage.branches), 1)  # 1: at each launch
            for stage in stages
        ]
        first = (
            ctypes.c_void_p(self._host.pointer), ctypes.c_void_p(state.count(0)), ctypes.c_void_p(state.rows(0)),
            ctypes.c_void_p(state.branch_of[0].pointer), ctypes.c_uint64(int(handles[0])),
        )  # fmt: skip
        _capture(context, graph, [], lambda: context.launch("enter_chain", (1, 1, 1), BLOCK, Parameters(*first)))
        (node,), _ = call("cuGraphGetNodes", graph, 1)
        for index, stage in enumerate(stages):
            node, bodies = _add_switch(context, graph, handles[index], len(stage.branches), node)
            following = int(handles[index + 1]) if index + 1 < len(stages) else 0
            for branch, body in zip(stage.branches, bodies, strict=True):
                after = _add_engines(context, body, branch)
                _capture(context, body, after, partial(self._leave, index, stage, branch.rows, following))
                _make_edges_plain(body)
        _capture(context, graph, [node], lambda: self._collect(answers, rows))

    def _leave(self, index: int, stage: StageWork, rows: int, following: int) -> None:
        """Enqueues the kernel that splits up to ``rows`` rows behind a stage's engines."""
        leaving = self._state.leaving(index, stage, following)
        full: list[Any] = [buffer for buffer in stage.carried if buffer.nbytes]
        for start in range(0, max(1, len(full)), MAX_CARRIED):
            group, carried = full[start : start + MAX_CARRIED], Carried()
            for place, buffer in enumerate(group):
                carried.base[place], carried.row_bytes[place] = buffer.pointer, buffer.row_bytes
            leaving.reports = int(start == 0)
            grid = split_grid(rows, [buffer.row_bytes for buffer in group])
            self._context.launch("leave_rows", grid, BLOCK, Parameters(leaving, carried))

    def _collect(self, answers: Sequence[DeviceArray], rows: int) -> None:
        pairs = [(source, target) for source, target in zip(answers, self.collected, strict=True) if source.row_bytes]
        places = self._state.places.pointer
        for start in range(0, len(pairs), MAX_GATHERED):
            group, table = pairs[start : start + MAX_GATHERED], Collected()
            for place, (source, target) in enumerate(group):
                table.source[place], table.target[place] = source.pointer, target.pointer
                table.row_bytes[place] = source.row_bytes
            grid = (rows, len(group), slice_count([source.row_bytes for source, _ in group]))
            parameters = Parameters(ctypes.c_void_p(self._state.count(0)), ctypes.c_void_p(places), table)
            self._context.launch("collect_rows", grid, BLOCK, parameters)


class _State:
    """The numbers that the kernels hand on, on the GPU; the layout is at the top of ``chain_kernels``."""

    def __init__(self, device: Device, stages: Sequence[StageWork], rows: int, *, exits: int) -> None:
        def numbers(size: int) -> Any:
            return device.allocate(TensorSpec(name="numbers", dtype="int32", row_shape=()), size)

        self._rows, self._exits = rows, exits
        self._counts, self._at = numbers(len(stages) + 1), numbers((len(stages) + 1) * rows)
        self.places, self._scratch = numbers(rows), numbers(2 * rows)
        self.branch_of = [numbers(rows + 1) for _ in stages]
        for table, stage in zip(self.branch_of, stages, strict=True):
            device.upload(index_branches([branch.rows for branch in stage.branches], rows), table)

    def count(self, index: int) -> int:
        """Returns the address of the number of rows that enter a stage."""
        return int(self._counts.pointer) + 4 * index

    def rows(self, index: int) -> int:
        """Returns the address of the rows that stand at its places."""
        return int(self._at.pointer) + 4 * index * self._rows

    def leaving(self, index: int, stage: StageWork, handle: int) -> Leaving:
        confidence: Any = stage.confidence
        last = stage.threshold is None
        return Leaving(
            confidence=confidence.pointer, count=self.count(index), rows=self.rows(index),
            next_count=self.count(index + 1), next_rows=self.rows(index + 1), exits=self._exits,
            places=self.places.pointer, holes=self._scratch.pointer,
            movers=self._scratch.pointer + 4 * self._rows,
            branch_of=0 if last else self.branch_of[index + 1].pointer, handle=handle,
            threshold=0.0 if stage.threshold is None else stage.threshold, exit_index=index,
            first_answer=stage.first_answer, last=int(last),
        )  # fmt: skip


def index_branches(most: Sequence[int], rows: int) -> np.ndarray:
    """Returns, for every number of rows, the branch that runs.

    Args:
        most: the most rows that each branch takes, ascending; the last takes ``rows``.
        rows: of the largest batch.

    Returns:
        (rows + 1,) int32; ``len(most)``, which is no branch, for no row at all.
    """
    found = np.searchsorted(np.asarray(most), np.arange(rows + 1)).astype(np.int32)
    found[0] = len(most)
    return found


def _prepare(context: CudaContext) -> None:
    """Loads the kernels, unless they are loaded.

    Raises:
        EngineError: the driver is too old, or the kernels cannot be compiled.
    """
    version = int(call("cuDriverGetVersion"))
    if version < SWITCH_CUDA:
        raise EngineError(
            f"the driver is one for CUDA {version // 1000}.{version % 1000 // 10}, and a chain as one graph needs "
            "conditional nodes of CUDA 12.8; install a newer driver"
        )
    if CHAIN_KERNELS[0] not in context.kernels:
        cubin = compile_kernels("sm_{}{}".format(*context.gpu.capability), CHAIN_SOURCE)
        context.load_kernels(cubin, CHAIN_KERNELS)


def _capture(context: CudaContext, graph: Any, after: list[Any], enqueue: Callable[[], None]) -> None:
    """Adds to a graph what is put on the device's stream meanwhile, behind some of its nodes.

    Relaxed, since the libraries beneath an engine may ask the driver for something that has nothing to do with it.
    """
    mode = load_driver().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    call("cuStreamBeginCaptureToGraph", context.stream, graph, after, None, len(after), mode)
    captured = False
    try:
        enqueue()
        captured = True
    finally:
        if not captured:
            with suppress(EngineError):  # the first error is the one that says why
                call("cuStreamEndCapture", context.stream)
    call("cuStreamEndCapture", context.stream)


def _add_engines(context: CudaContext, body: Any, branch: Branch) -> list[Any]:
    """Puts a branch's engine calls into a body, one behind the other; returns the last node, if there is any."""
    after: list[Any] = []
    for execute in branch.executions:
        execute()  # that is when a backend allocates and chooses kernels
        context.synchronize()
        captured = getattr(execute, "graph", None)
        if isinstance(captured, CapturedGraph):
            _refuse_allocations(captured.template)
            clone = call("cuGraphClone", captured.template)
            try:
                _make_edges_plain(clone)
                after = [call("cuGraphAddChildGraphNode", body, after, len(after), clone)]
            finally:
                call("cuGraphDestroy", clone)
        else:
            _capture(context, body, after, execute)
            after = _last_nodes(body)
    return after


def _refuse_allocations(graph: Any) -> None:
    """Refuses work that allocates memory, as cuBLAS does for its workspace while it is captured.

    cuBLAS reads once per process whether it may; changing its environment later has no effect (seen with CUDA 13.0).
    """
    kinds = {call("cuGraphNodeGetType", node).name for node in _ask_for_all("cuGraphGetNodes", graph, lists=1)[0]}
    if allocating := sorted(kind for kind in kinds if "MEM_" in kind):
        raise EngineError(
            f"an engine's work allocates memory as it runs ({', '.join(allocating)}), which no part of a graph may do. "
            "cuBLAS does it for its workspace; start the process with CUBLAS_WORKSPACE_CONFIG=:0:0 in its environment"
        )


def _last_nodes(graph: Any) -> list[Any]:
    """Returns the nodes that no other depends on."""
    nodes = _ask_for_all("cuGraphGetNodes", graph, lists=1)[0]
    followed = {int(node) for node in _ask_for_all("cuGraphGetEdges", graph, lists=3)[0]}
    return [node for node in nodes if int(node) not in followed]


def _make_edges_plain(graph: Any) -> None:
    """Replaces dependencies that are met before a node has ended by such that are not."""
    sources, targets, data = _ask_for_all("cuGraphGetEdges", graph, lists=3)
    for source, target, how in zip(sources, targets, data, strict=True):
        if int(how.type) or how.from_port or how.to_port:
            call("cuGraphRemoveDependencies", graph, [source], [target], [how], 1)
            call("cuGraphAddDependencies", graph, [source], [target], None, 1)


def _ask_for_all(name: str, graph: Any, *, lists: int) -> list[list[Any]]:
    """Asks for lists of unknown length, as the driver wants it: first how many, then all of them."""
    count = call(name, graph, 0)[-1]
    return [list(found) for found in call(name, graph, count)[:lists]] if count else [[] for _ in range(lists)]


def _instantiate(graph: Any) -> Any:
    """Makes a graph executable; an error says which node the driver does not take, and why, as far as it tells."""
    parameters = load_driver().CUDA_GRAPH_INSTANTIATE_PARAMS()
    try:
        return call("cuGraphInstantiateWithParams", graph, parameters)
    except EngineError as error:
        node = ""
        if int(parameters.hErrNode_out):
            with suppress(EngineError):
                node = f", node {call('cuGraphNodeGetType', parameters.hErrNode_out).name}"
        raise EngineError(f"{error} ({parameters.result_out.name}{node})") from error


def _add_switch(context: CudaContext, graph: Any, handle: Any, branches: int, after: Any) -> tuple[Any, list[Any]]:
    """Adds a conditional node; returns it and the graphs of its bodies, which are empty."""
    driver = load_driver()
    parameters = driver.CUgraphNodeParams()
    parameters.type = driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_CONDITIONAL
    parameters.conditional.handle = handle
    parameters.conditional.type = driver.CUgraphConditionalNodeType.CU_GRAPH_COND_TYPE_SWITCH
    parameters.conditional.size = branches
    parameters.conditional.ctx = context.primary
    node = call("cuGraphAddNode", graph, [after], None, 1, parameters)
    return node, [parameters.conditional.phGraph_out[index] for index in range(branches)]

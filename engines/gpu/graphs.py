"""``CapturedGraph``: the work that an engine enqueues, captured once as a CUDA graph and launched with a single call.

A graph fixes shapes, addresses and the block that the engine works in, so it belongs to one binding. Before the capture
the engine runs once without it, which lets the backend allocate and choose kernels, neither of which may happen
inside a capture. Capturing takes place on a stream of its own: other threads go on using the device's stream.
``RELAXED`` mode leaves their calls alone, and lets a library ask the driver for what is no part of the work, as cuDNN
does.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable

from artifacts import EngineError
from engines.gpu.context import CudaContext, undo_calls
from engines.gpu.driver import call, load_driver

Enqueue = Callable[[int], None]
log = logging.getLogger("pame.engines")


class CapturedGraph:
    """Captured work, ready to be launched any number of times.

    Attributes:
        template: the driver's graph, to be put into another one.
    """

    def __init__(self, context: CudaContext, enqueue: Enqueue) -> None:
        """Captures the work; it must have run once before.

        Args:
            context: where it will be launched.
            enqueue: puts the work on the stream whose handle it gets.

        Raises:
            EngineError: the work cannot be captured, or fails.
        """
        self._context = context
        driver = load_driver()
        with context.capture_lock:
            call(
                "cuStreamBeginCapture", context.capture_stream,
                driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED,
            )  # fmt: skip
            captured = False
            try:
                enqueue(int(context.capture_stream))
                captured = True
            finally:
                if not captured:
                    _end_failed_capture(context)
            self.template = call("cuStreamEndCapture", context.capture_stream)
        undo: list[tuple[object, ...]] = [("cuGraphDestroy", self.template)]
        self._finalizer = weakref.finalize(self, undo_calls, context.primary, undo)
        self._finalizer.atexit = False
        self._executable = call("cuGraphInstantiate", self.template, 0)
        undo.append(("cuGraphExecDestroy", self._executable))

    def launch(self) -> None:
        """Puts the work on the device's stream."""
        call("cuGraphLaunch", self._executable, self._context.stream)

    def free(self) -> None:
        """Frees the graph; it must no longer run. May be called twice."""
        self._finalizer()


def _end_failed_capture(context: CudaContext) -> None:
    """Ends a capture that failed, so that the stream can be used again."""
    try:
        graph = call("cuStreamEndCapture", context.capture_stream)
    except EngineError:  # the driver has dropped it already
        return
    call("cuGraphDestroy", graph)


def run_and_capture(context: CudaContext, enqueue: Enqueue, *, what: str) -> CapturedGraph | None:
    """Runs some work, waits for it, and captures it.

    Args:
        context: where.
        enqueue: puts the work on the stream whose handle it gets.
        what: for the log, e.g. "stage_00 with 8 rows".

    Returns:
        The graph, or ``None`` where the driver or the engine refuses capture; the reason is logged as a warning.

    Raises:
        EngineError: the work failed when it ran.
    """
    enqueue(context.stream_handle)
    context.synchronize()
    return capture_or_warn(context, enqueue, what=what)


def capture_or_warn(context: CudaContext, enqueue: Enqueue, *, what: str) -> CapturedGraph | None:
    """Captures some work that has run before; arguments and result as those of ``run_and_capture``."""
    try:
        return CapturedGraph(context, enqueue)
    except EngineError as error:
        log.warning("%s runs without a CUDA graph: %s", what, error)
        return None

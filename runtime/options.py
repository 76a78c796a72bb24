"""``RuntimeOptions``: how a runtime checks its input, watches its rows, and runs."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.monitor.options import WatchOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeOptions(WatchOptions):
    """Options of a runtime, those of watching among them; ``Runtime.load`` takes them one by one.

    Attributes:
        check_finite: refuse rows with NaN or infinity.
        chain_graph: make one CUDA graph of all stages, where the device can.
    """

    check_finite: bool = True
    chain_graph: bool = False

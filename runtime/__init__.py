"""What a production host embeds: load a bundle, run batches through its chain of stages, get answers in input order.

``import runtime`` needs numpy alone, starts nothing and reads nothing; ``Runtime.load`` needs the bundle's backend.
"""

from __future__ import annotations

from runtime.inputs import Batch
from runtime.monitor.drift import DriftAlarm, DriftConfig, DriftState
from runtime.monitor.stats import ExitStats, RuntimeStats
from runtime.runtime import Outputs, Result, Runtime

__all__ = [
    # the whole of it
    "Result", "Runtime",
    # watching it
    "DriftAlarm", "DriftConfig", "DriftState", "ExitStats", "RuntimeStats",
    # for annotations
    "Batch", "Outputs",
]  # fmt: skip

"""Runtime: the part that a production host embeds. It loads a bundle, runs batches through its chain of stages, and
returns answers in input order.

``import runtime`` needs numpy alone, starts nothing and reads nothing; ``Runtime.load`` needs the bundle's backend.
What serves requests from an event loop is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from runtime.inputs import Batch
from runtime.loading import OpenBundle, open_bundle, without_leaving
from runtime.monitor.drift import DriftAlarm, DriftConfig, DriftState
from runtime.monitor.drift_events import CONFIDENCE_BINS, count_cells
from runtime.monitor.response import ResponseState
from runtime.monitor.shadow_log import LoggedRows, read_shadow_log
from runtime.monitor.stats import ExitStats, RuntimeStats
from runtime.options import RuntimeOptions
from runtime.preprocess import prepare_images
from runtime.results import Outputs, Result
from runtime.runtime import Runtime
from runtime.texts import prepare_texts

if TYPE_CHECKING:
    from runtime.hosting.async_runtime import AsyncRuntime, HostSnapshot
    from runtime.hosting.options import HostOptions

_HOMES = {
    "AsyncRuntime": "hosting.async_runtime",
    "HostSnapshot": "hosting.async_runtime",
    "HostOptions": "hosting.options",
}

__all__ = [
    # the whole of it
    "Result", "Runtime", "RuntimeOptions",
    # requests that come one by one
    "AsyncRuntime", "HostOptions", "HostSnapshot",
    # what goes into it
    "prepare_images", "prepare_texts",
    # watching it
    "DriftAlarm", "DriftConfig", "DriftState", "ExitStats", "ResponseState", "RuntimeStats",
    # for annotations
    "Batch", "Outputs",
    # for planning: open bundles, and counting as the statistics do
    "CONFIDENCE_BINS", "LoggedRows", "OpenBundle", "count_cells", "open_bundle", "read_shadow_log", "without_leaving",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'runtime' has no attribute '{name}'")
    return getattr(importlib.import_module(f"runtime.{_HOMES[name]}"), name)

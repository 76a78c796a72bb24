"""Runtime: the part that a production host embeds. It loads a bundle, runs batches through its chain of stages, and
returns answers in input order.

``import runtime`` needs numpy alone, starts nothing and reads nothing; ``Runtime.load`` needs the bundle's backend.
"""

from __future__ import annotations

from runtime.inputs import Batch
from runtime.loading import OpenBundle, open_bundle, without_leaving
from runtime.monitor.drift import DriftAlarm, DriftConfig, DriftState
from runtime.monitor.stats import CONFIDENCE_BINS, ExitStats, RuntimeStats, count_cells
from runtime.options import RuntimeOptions
from runtime.preprocess import prepare_images
from runtime.runtime import Outputs, Result, Runtime
from runtime.texts import prepare_texts

__all__ = [
    # the whole of it
    "Result", "Runtime", "RuntimeOptions",
    # what goes into it
    "prepare_images", "prepare_texts",
    # watching it
    "DriftAlarm", "DriftConfig", "DriftState", "ExitStats", "RuntimeStats",
    # for annotations
    "Batch", "Outputs",
    # for planning: open bundles, and counting as the statistics do
    "CONFIDENCE_BINS", "OpenBundle", "count_cells", "open_bundle", "without_leaving",
]  # fmt: skip

"""Data, exit-head training, traces, task metrics. Importing this package loads neither torch nor onnx."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import MissingExtraError
from calibration.certify.binomials import binomial_pmf, log_factorial
from calibration.certify.pvalues import lower_share, upper_share
from calibration.certify.risk_tests import (
    RISKS,
    RiskTest,
    TuningSplit,
    check_labels,
    choose_test,
    count_in_all,
    count_needed,
    count_tuning,
    find_tolerance,
    least_samples,
    run_sequence,
    split_for_tuning,
    tests_for,
)
from calibration.certify.set_metrics import COUNTED as COUNTED_METRICS
from calibration.certify.set_metrics import SET_METRICS
from calibration.data.arrays import ArrayImages
from calibration.data.batches import BatchReader
from calibration.data.files import FileImages
from calibration.data.image_input import image_input
from calibration.data.loading import load_samples
from calibration.data.samples import PARTS, Batch, ImageSamples, Samples, as_batch
from calibration.data.sources import DATA_HELP, DataSource, check_source, load_run_data, source_name
from calibration.data.splits import PartShare
from calibration.options import CalibrationOptions
from calibration.tracing.kept_engine import traced_backend
from calibration.training.config import FrozenConfig, JointConfig

if TYPE_CHECKING:
    from calibration.cli import add_calibration_flags, read_training
    from calibration.tracing.all_exits import EngineChoice, SegmentRunner
    from calibration.tracing.network_check import ask_network
    from calibration.tracing.training_rows import rows_of
    from calibration.tracing_flow import ensure_trace, is_trace_current, missing_heads, trace_model
    from calibration.training.training_flow import retrain_jointly, train_missing

_HOMES = {
    "EngineChoice": "tracing.all_exits",
    "SegmentRunner": "tracing.all_exits",
    "add_calibration_flags": "cli",
    "ask_network": "tracing.network_check",
    "ensure_trace": "tracing_flow",
    "is_trace_current": "tracing_flow",
    "missing_heads": "tracing_flow",
    "read_training": "cli",
    "retrain_jointly": "training.training_flow",
    "rows_of": "tracing.training_rows",
    "trace_model": "tracing_flow",
    "train_missing": "training.training_flow",
}

__all__ = [
    # data
    "DATA_HELP", "PARTS", "ArrayImages", "Batch", "BatchReader", "DataSource", "FileImages", "ImageSamples",
    "PartShare", "Samples", "as_batch", "check_source", "image_input", "load_run_data", "load_samples", "rows_of",
    "source_name",
    # certified tolerances
    "COUNTED_METRICS", "RISKS", "SET_METRICS", "RiskTest", "TuningSplit", "binomial_pmf", "check_labels", "choose_test",
    "count_in_all", "count_needed", "count_tuning", "find_tolerance", "least_samples", "log_factorial", "lower_share",
    "run_sequence", "split_for_tuning", "tests_for", "upper_share",
    # training and traces
    "CalibrationOptions", "EngineChoice", "FrozenConfig", "JointConfig", "SegmentRunner", "ask_network",
    "ensure_trace", "is_trace_current", "missing_heads", "retrain_jointly", "trace_model", "traced_backend",
    "train_missing",
    # flags of the command line, for commands that calibrate among other things
    "add_calibration_flags", "read_training",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'calibration' has no attribute '{name}'")
    try:
        return getattr(importlib.import_module(f"calibration.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if (Path(__file__).parent.parent / package).is_dir():
            raise
        raise MissingExtraError(package, "train") from error

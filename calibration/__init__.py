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
    Halves,
    RiskTest,
    check_labels,
    choose_test,
    count_needed,
    find_tolerance,
    least_samples,
    run_sequence,
    split_halves,
)
from calibration.certify.set_metrics import SET_METRICS
from calibration.data.datasets import Dataset, load_dataset
from calibration.data.sources import load_run_data

if TYPE_CHECKING:
    from calibration.flow import EngineChoice, ensure_trace, retrain_jointly, trace_model, train_missing
    from calibration.training.end_to_end import JointConfig
    from calibration.training.frozen import FrozenConfig

_HOMES = {
    "EngineChoice": "flow",
    "FrozenConfig": "training.frozen",
    "JointConfig": "training.end_to_end",
    "ensure_trace": "flow",
    "retrain_jointly": "flow",
    "trace_model": "flow",
    "train_missing": "flow",
}

__all__ = [
    # data
    "Dataset", "load_dataset", "load_run_data",
    # certified tolerances
    "RISKS", "SET_METRICS", "Halves", "RiskTest", "binomial_pmf", "check_labels", "choose_test", "count_needed",
    "find_tolerance", "least_samples", "log_factorial", "lower_share", "run_sequence", "split_halves", "upper_share",
    # training and traces
    "EngineChoice", "FrozenConfig", "JointConfig", "ensure_trace", "retrain_jointly", "trace_model", "train_missing",
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

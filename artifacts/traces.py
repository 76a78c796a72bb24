"""The trace: the answer of every exit to every sample, as confidence, metric and agreement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.confidences import FEATURES, LearnedConfidence
from artifacts.errors import CorruptArtifactError, InputError
from artifacts.graphs import FINAL_HEAD
from artifacts.store import load_arrays, save_arrays

TRACE_NPZ = "trace.npz"
_ROUNDING = 1e-6  # a softmax in float32 may end one unit in the last place above 1
_ARRAYS = ("confidence", "metric", "agreement")
_OPTIONAL = ("predictions", "counts", "labels", "features", "lengths")
_SAMPLE_AXIS = {"labels": 0, "lengths": 0}  # of every other array it is the second
_REFERENCE = "reference_"  # how the names of its arrays begin


def find_first_true(flags: np.ndarray) -> np.ndarray:
    """Returns (N,) int64: for each column of (K, N) bool the first row that is true, K where there is none.

    With ``flags[k]`` for "may leave at exit k", that is where each sample leaves; K is the final head.
    """
    first = np.full(flags.shape[1], len(flags), np.int64)
    for row in range(len(flags) - 1, -1, -1):
        first[flags[row]] = row
    return first


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """The answers of the network that a tolerance refers to, where that is not the traced network itself.

    A quantised network is traced, for instance, and what it loses counts as loss, like what its exits lose.

    Attributes:
        metric: (N,) float32 in [0, 1], as that of a trace.
        agreement: (E + 1, N) float32 in [0, 1]: agreement of each exit's answer with that of the reference.
        predictions: (N,) int32, the class that it answers, where the task has classes.
        counts: (N, k) float64, where the task's metric is made of counts.
    """

    metric: np.ndarray
    agreement: np.ndarray
    predictions: np.ndarray | None = None
    counts: np.ndarray | None = None

    def select(self, samples: np.ndarray) -> Reference:
        """Returns the answers to some samples: (n,) indices."""
        return Reference(
            metric=self.metric[samples],
            agreement=self.agreement[:, samples],
            predictions=None if self.predictions is None else self.predictions[samples],
            counts=None if self.counts is None else self.counts[samples],
        )

    def check(self, shape: tuple[int, int]) -> None:
        """Raises ``InputError`` unless the answers are to the samples of a trace of a shape (E + 1, N)."""
        for name, array, expected in (
            ("metric", self.metric, shape[1:]), ("agreement", self.agreement, shape),
            ("predictions", self.predictions, shape[1:]),
        ):  # fmt: skip
            if array is not None and array.shape != expected:
                raise InputError(f"trace: {name} of the reference has shape {array.shape}, expected {expected}")
        for name, array in (("metric", self.metric), ("agreement", self.agreement)):
            if not np.isfinite(array).all() or array.min(initial=0) < 0 or array.max(initial=0) > 1 + _ROUNDING:
                raise InputError(f"trace: {name} of the reference must be finite and within [0, 1]")
        if self.counts is not None and (self.counts.ndim != 2 or len(self.counts) != shape[1]):
            raise InputError(f"trace: counts of the reference have shape {self.counts.shape}, expected ({shape[1]}, k)")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """Per exit and sample: confidence, metric and agreement; the last row is the final head.

    Attributes:
        exits: names of the exit candidates in the order of the data flow; E of them.
        confidence: (E + 1, N) float32 in [0, 1].
        metric: (E + 1, N) float32 in [0, 1]; 1 is a fully correct answer. Without labels it is the agreement.
        agreement: (E + 1, N) in [0, 1]: agreement of the exit's answer with the final head's, 1 for the same answer;
            the last row is all 1. Traces of tasks with classes hold 0 and 1, those of 0.1.0 booleans.
        predictions: (E + 1, N) int32, the class that each exit answers, where the task has classes; for metrics that
            are not means over samples.
        counts: (E + 1, N, k) float64, what each answer adds to the counts that decide the task's metric (pixels of an
            intersection and of a union, for instance), where that metric is not a mean over samples.
        labels: (N,) int32, the true classes.
        features: (E + 1, N, 4) float32, what learned confidences are made of (``artifacts.FEATURES``), where answers
            are a choice among classes; none in traces of 0.1.0.
        labelled: False where the true answers are not given; the metric is the agreement then.
        lengths: (N,) int32, how long each row is without padding, where rows have several lengths.
        reference: the network that a tolerance refers to; ``None``: the traced network, as its final head answers.
    """

    exits: tuple[str, ...]
    confidence: np.ndarray
    metric: np.ndarray
    agreement: np.ndarray
    predictions: np.ndarray | None = None
    counts: np.ndarray | None = None
    labels: np.ndarray | None = None
    features: np.ndarray | None = None
    labelled: bool = True
    lengths: np.ndarray | None = None
    reference: Reference | None = None

    def __post_init__(self) -> None:
        if len(set(self.exits)) != len(self.exits):
            raise InputError(f"trace: exits {list(self.exits)} do not have names of their own")
        shape = (len(self.exits) + 1, self.confidence.shape[-1])
        for name in _ARRAYS:
            array = getattr(self, name)
            if array.shape != shape:
                raise InputError(
                    f"trace: {name} has shape {array.shape}, expected {shape} (exits + final head, samples)"
                )
            if not np.isfinite(array).all() or array.min(initial=0) < 0 or array.max(initial=0) > 1 + _ROUNDING:
                raise InputError(f"trace: {name} must be finite and within [0, 1]; collect the trace again")
        if shape[1] == 0:
            raise InputError("trace: no samples")
        if not (self.agreement[-1] == 1).all():
            raise InputError("trace: the final head must agree with itself: the last row of agreement is all 1")
        for name, array, expected in (
            ("predictions", self.predictions, shape), ("labels", self.labels, shape[1:]),
            ("lengths", self.lengths, shape[1:]),
        ):  # fmt: skip
            if array is not None and array.shape != expected:
                raise InputError(f"trace: {name} has shape {array.shape}, expected {expected}")
        counts = self.counts
        if counts is not None and (counts.ndim != 3 or counts.shape[:2] != shape or not np.isfinite(counts).all()):
            raise InputError(f"trace: counts has shape {counts.shape}, expected {shape} and k finite counts each")
        features = self.features
        expected_features = (*shape, len(FEATURES))
        if features is not None and (features.shape != expected_features or not np.isfinite(features).all()):
            raise InputError(f"trace: features has shape {features.shape}, expected {expected_features}, all finite")
        if self.reference is not None:
            self.reference.check(shape)
        agreed = [self.agreement, *([] if self.reference is None else [self.reference.agreement])]
        if not self.labelled and (self.labels is not None or not any(np.array_equal(self.metric, a) for a in agreed)):
            raise InputError("trace: without labels the metric is the agreement; collect the trace again")

    @property
    def sample_count(self) -> int:
        return int(self.confidence.shape[1])

    @property
    def agrees(self) -> np.ndarray:
        """(E + 1, N) bool: the exit's answer is the same as the final head's."""
        agrees: np.ndarray = self.agreement >= 1
        return agrees

    @property
    def full_metric(self) -> float:
        """The mean metric of the network that a tolerance refers to."""
        return float(self.reference_metric.mean(dtype=np.float64))

    @property
    def reference_metric(self) -> np.ndarray:
        """(N,) the metric of the network that a tolerance refers to."""
        found: np.ndarray = self.metric[-1] if self.reference is None else self.reference.metric
        return found

    def summarise(self) -> list[dict[str, Any]]:
        """Returns the means of every exit and, last, of the final head; without labels the metric is ``None``."""
        return [
            {
                "exit": name,
                "metric": float(self.metric[row].mean(dtype=np.float64)) if self.labelled else None,
                "agreement": float(self.agreement[row].mean(dtype=np.float64)),
                "mean_confidence": float(self.confidence[row].mean(dtype=np.float64)),
            }
            for row, name in enumerate((*self.exits, FINAL_HEAD))
        ]

    def select(self, samples: np.ndarray) -> Trace:
        """Returns the trace of some samples: (n,) indices, in their order, repeated ones as often as they occur."""
        arrays = {name: array.take(samples, axis=_SAMPLE_AXIS.get(name, 1)) for name, array in self._arrays().items()}
        reference = None if self.reference is None else self.reference.select(samples)
        return Trace(exits=self.exits, labelled=self.labelled, reference=reference, **arrays)

    def with_confidences(self, learned: Mapping[str, LearnedConfidence]) -> Trace:
        """Returns the trace in which some exits have learned confidences, by their names; others stay as they are.

        Raises:
            InputError: the trace holds no features.
        """
        if not learned:
            return self
        if self.features is None or self.predictions is None:
            raise InputError(
                "trace: it holds no features of the answers, which learned confidences need; collect the trace again"
            )
        confidence = self.confidence.copy()
        for row, name in enumerate(self.exits):
            if name in learned:
                confidence[row] = learned[name].apply(self.features[row], self.predictions[row])
        return replace(self, confidence=confidence)

    def _arrays(self) -> dict[str, np.ndarray]:
        found = {name: getattr(self, name) for name in (*_ARRAYS, *_OPTIONAL)}
        return {name: array for name, array in found.items() if array is not None}

    def save(self, path: Path) -> None:
        labelled = {} if self.labelled else {"labelled": np.array(self.labelled)}  # absent: labelled, as in 0.1.0
        found = {} if self.reference is None else {item.name: getattr(self.reference, item.name)
                                                   for item in fields(Reference)}  # fmt: skip
        reference = {f"{_REFERENCE}{name}": array for name, array in found.items() if array is not None}
        save_arrays(path, {"exits": np.array(self.exits, np.str_), **labelled, **self._arrays(), **reference})

    @classmethod
    def load(cls, path: Path) -> Trace:
        """Reads what ``save`` wrote.

        Raises:
            CorruptArtifactError: an array is missing.
            InputError: shapes or values are not those of a trace.
        """
        arrays = load_arrays(path)
        missing = sorted({"exits", *_ARRAYS} - set(arrays))
        if missing:
            raise CorruptArtifactError(f"{path} lacks the arrays {missing}; collect the trace again")
        given = {name: arrays[name] for name in (*_ARRAYS, *_OPTIONAL) if name in arrays}
        given["agreement"] = given["agreement"].astype(np.float32)
        known = {item.name: arrays.get(f"{_REFERENCE}{item.name}") for item in fields(Reference)}
        reference = None if known["metric"] is None else Reference(**known)  # type: ignore[arg-type]
        labelled = bool(arrays.get("labelled", True))
        return cls(exits=tuple(map(str, arrays["exits"])), labelled=labelled, reference=reference, **given)

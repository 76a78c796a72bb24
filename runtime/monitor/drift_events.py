"""Drift events: the events that are watched in a stream, and how often the calibration samples allow them. Pure.

``runtime.monitor.drift`` has the theory; here the events become rows of matrices over the counts of a block.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from artifacts import ExitPlan, SchemaError, StreamReference
from runtime.remedy import PLAN_AGAIN

SHARE, CONFIDENCE, DISAGREEMENT = "share", "confidence", "disagreement"
CONFIDENCE_BINS = 20
_BULK = (0.05, 0.95)
_BISECTIONS = 60


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockCounts:
    """Counts of a block of rows; K exits and the final head.

    Attributes:
        cells: (K + 1, bins) int64, rows by exit and confidence.
        shadowed: (K + 1,) int64, rows that left there and were carried on; 0 for the final head.
        disagreements: (K + 1,) int64, those of them whose answer is not the very answer of the final head.
    """

    cells: np.ndarray
    shadowed: np.ndarray
    disagreements: np.ndarray

    @property
    def vector(self) -> np.ndarray:
        """All counts as one array of (K + 1) * (bins + 2)."""
        return np.concatenate([self.cells.ravel(), self.shadowed, self.disagreements])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Event:
    """An event that happens to some rows.

    Attributes:
        kind, exit_index, confidence_below: as in ``DriftAlarm``.
        hits, rows: 0 or 1 for each count of a block: which of them count its hits, and which the rows it can happen to.
        expected: its frequency among the calibration samples.
        samples: how many calibration samples it could happen to.
        scale: probability that it is seen when it happens.
        certified: its certified bound, where there is one.
    """

    kind: str
    exit_index: int | None
    confidence_below: float | None
    hits: np.ndarray
    rows: np.ndarray
    expected: float
    samples: int
    scale: float = 1.0
    certified: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hypothesis:
    """One side of an event: it happens with probability at most (or at least) ``allowed``.

    ``weight`` is its share of the capital.
    """

    event: Event
    allowed: float
    at_most: bool
    weight: float


def check_reference(plan: ExitPlan) -> StreamReference:
    """Returns the reference of a plan.

    Raises:
        SchemaError: it has none, or its counts do not belong to the plan's exits.
    """
    reference = plan.reference
    again = f"Plan again with: {PLAN_AGAIN}"
    if reference is None:
        raise SchemaError(f"the exit plan has no reference to compare a stream with. {again}")
    counts, agreements = reference.confidence_counts, reference.agreements
    heads = len(plan.exits) + 1
    if len(counts) != heads or len(agreements) != heads or len({len(row) for row in counts}) != 1 or not counts[0]:
        raise SchemaError(
            f"the reference of the exit plan does not belong to its {heads - 1} exits and the final head. {again}"
        )
    if min(map(min, counts)) < 0 or sum(map(sum, counts)) != reference.samples or not reference.samples:
        raise SchemaError(f"the counts of the exit plan's reference do not add up to its samples. {again}")
    if any(not 0 <= agreed <= sum(row) for agreed, row in zip(agreements, counts, strict=True)):
        raise SchemaError(f"the reference of the exit plan has more agreements than samples. {again}")
    return reference


def certified_disagreement(plan: ExitPlan) -> float | None:
    """Returns the disagreement that the plan's certificate bounds; ``None`` where it bounds something else."""
    certificate = plan.certificate
    return certificate.bound if certificate is not None and certificate.risk == "agreement" else None


def list_events(
    reference: StreamReference, *, shadow_fraction: float = 0.0, certified: float | None = None
) -> list[Event]:
    """Returns the events that are watched.

    Args:
        reference: the calibration samples.
        shadow_fraction: of the rows that leave early; without any, disagreements are not watched.
        certified: what a certificate allows for the disagreement over all queries; ``None`` for the reference's own.
    """
    events = [*_share_events(reference), *_confidence_events(reference)]
    return [*events, *_disagreement_events(reference, shadow_fraction, certified)] if shadow_fraction > 0 else events


def _share_events(reference: StreamReference) -> list[Event]:
    counts = np.array(reference.confidence_counts)
    if len(counts) == 1:
        return []
    return [_cells_event(SHARE, counts, index, counts.shape[1], None) for index in range(len(counts))]


def _confidence_events(reference: StreamReference) -> list[Event]:
    counts = np.array(reference.confidence_counts)
    events, bins = [], counts.shape[1]
    for index, row in enumerate(counts):
        below = np.cumsum(row)[:-1]
        bulk = (below > _BULK[0] * row.sum()) & (below < _BULK[1] * row.sum())
        events += [
            _cells_event(CONFIDENCE, counts, index, int(edge) + 1, (int(edge) + 1) / bins)
            for edge in np.flatnonzero(bulk)
        ]
    return events


def _cells_event(kind: str, counts: np.ndarray, index: int, bins: int, below: float | None) -> Event:
    """The event of leaving at an exit with a confidence in the first ``bins`` bins."""
    block = _empty_block(counts.shape)
    block.cells[index, :bins] = 1
    all_rows = _empty_block(counts.shape)
    all_rows.cells[:] = 1
    return Event(
        kind=kind, exit_index=index, confidence_below=below, hits=block.vector, rows=all_rows.vector,
        expected=float(counts[index, :bins].sum() / counts.sum()), samples=int(counts.sum()),
    )  # fmt: skip


def _disagreement_events(reference: StreamReference, shadow_fraction: float, certified: float | None) -> list[Event]:
    """The events of an answer that differs from the final head's: over all queries, and at each exit.

    A query is shadowed and disagrees with ``shadow_fraction`` times the probability that it disagrees: so the first
    event counts all rows, and what is allowed is scaled.
    """
    counts = np.array(reference.confidence_counts)
    left = counts.sum(axis=1)
    disagreed = left - np.array(reference.agreements)
    hits, all_rows = _empty_block(counts.shape), _empty_block(counts.shape)
    hits.disagreements[:-1] = 1
    all_rows.cells[:] = 1
    events = []
    if len(left) > 1:
        events.append(
            Event(
                kind=DISAGREEMENT, exit_index=None, confidence_below=None, hits=hits.vector, rows=all_rows.vector,
                expected=float(disagreed[:-1].sum() / left.sum()), samples=int(left.sum()), scale=shadow_fraction,
                certified=certified,
            )
        )  # fmt: skip
    for index in np.flatnonzero(left[:-1]).tolist():
        hits, rows = _empty_block(counts.shape), _empty_block(counts.shape)
        hits.disagreements[index] = rows.shadowed[index] = 1
        events.append(
            Event(
                kind=DISAGREEMENT, exit_index=index, confidence_below=None, hits=hits.vector, rows=rows.vector,
                expected=float(disagreed[index] / left[index]), samples=int(left[index]),
            )
        )  # fmt: skip
    return events


def _empty_block(shape: tuple[int, ...]) -> BlockCounts:
    heads = np.zeros((2, shape[0]), np.int64)
    return BlockCounts(cells=np.zeros(shape, np.int64), shadowed=heads[0], disagreements=heads[1])


def list_hypotheses(events: Sequence[Event], *, false_alarm_rate: float, margin: float) -> list[Hypothesis]:
    """Returns the sides of all events with what is allowed; capital and error rate are divided evenly among the kinds.

    A side that allows everything is not a hypothesis; its capital goes to the others.

    Args:
        events: the events that are watched.
        false_alarm_rate: probability that the calibration samples are misleading about any of them.
        margin: by how much the stream may differ.
    """
    kinds = dict.fromkeys(event.kind for event in events)
    found: list[Hypothesis] = []
    for kind in kinds:
        sides = [(event, at_most) for event in events if event.kind == kind for at_most in _sides(event)]
        rate = false_alarm_rate / len(kinds) / len(sides)
        for event, at_most in sides:
            allowed = _allowed(event, margin, rate, at_most=at_most)
            if 0 < allowed * event.scale < 1:
                weight = 1 / len(sides)
                found.append(Hypothesis(event=event, allowed=allowed, at_most=at_most, weight=weight))
    total = sum(hypothesis.weight for hypothesis in found)
    return [replace(hypothesis, weight=hypothesis.weight / total) for hypothesis in found]


def _sides(event: Event) -> tuple[bool, ...]:
    return (True,) if event.kind == DISAGREEMENT else (True, False)


def _allowed(event: Event, margin: float, rate: float, *, at_most: bool) -> float:
    if event.certified is not None:
        return event.certified
    end = bound_probability(event.expected, event.samples, rate, upper=at_most)
    return min(end + margin, 1.0) if at_most else max(end - margin, 0.0)


def bound_probability(seen: float, samples: int, rate: float, *, upper: bool) -> float:
    """Bounds a probability from a frequency among independent samples.

    The furthest p with ``samples * KL(seen || p) <= log(1 / rate)`` (Hoeffding 1963): the true probability lies beyond
    it with probability at most ``rate``.

    Args:
        seen: the frequency, within [0, 1].
        samples: how many samples; at least 1.
        rate: probability of failing.
        upper: the upper bound, or else the lower one.
    """
    limit = math.log(1 / rate) / samples
    inside, outside = seen, 1.0 if upper else 0.0
    for _ in range(_BISECTIONS):
        middle = (inside + outside) / 2
        if divergence(seen, middle) <= limit:
            inside = middle
        else:
            outside = middle
    return outside


def divergence(seen: float, p: float) -> float:
    """Returns KL(seen || p) of two coins, in nats; infinite where p excludes what was seen."""
    total = 0.0
    for share, other in ((seen, p), (1 - seen, 1 - p)):
        if share > 0:
            total += share * math.log(share / other) if other > 0 else math.inf
    return total


def count_cells(exit_index: np.ndarray, confidence: np.ndarray, *, heads: int, bins: int) -> np.ndarray:
    """Counts rows by exit and confidence.

    Args:
        exit_index: (n,) int, where each row left, below ``heads``.
        confidence: (n,) float32, with which it left; a value outside [0, 1] counts into the first or last bin, NaN into
            the first.
        heads: exits and final head.
        bins: of equal width over [0, 1].

    Returns:
        (heads, bins) int64.
    """
    within = np.clip(np.nan_to_num(confidence), 0, 1)
    bin_index = np.minimum((within * np.float32(bins)).astype(np.int64), bins - 1)
    return np.bincount(exit_index * bins + bin_index, minlength=heads * bins).reshape(heads, bins)

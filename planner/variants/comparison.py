"""A comparison of variants as it is stored: their figures, which of them was chosen, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass, field

from artifacts import RunFolder, open_artifact, read_json
from planner.variants.listing import LeftOut

COMPARISON_JSON = "comparison.json"
COMPARISON = "comparison"


@dataclass(frozen=True, slots=True, kw_only=True)
class VariantFigures:
    """The figures of one variant, as in ``comparison.json``; times in milliseconds.

    Attributes:
        label: its engine and precision.
        run: its folder.
        metric: of its full network on the calibration data, or its agreement where that is the risk.
        reference_metric: of the network that the tolerance refers to.
        whole_ms: a batch through its whole network, all of them timed in turns.
        expected_ms: of its fastest plan on the samples for tuning, by the objective; ``None`` where none keeps the
            tolerance.
        exits: of that plan.
        chosen: it was planned and committed.
        stay_ratio: time of a batch of which no row leaves, as expected, of that of the whole network.
        stay_reference_ratio: likewise of the network that slow batches are compared with.
    """

    label: str
    run: str
    metric: float
    reference_metric: float
    whole_ms: float
    expected_ms: float | None
    exits: tuple[str, ...] = ()
    chosen: bool = False
    stay_ratio: float | None = None
    stay_reference_ratio: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceFigures:
    """The network that slow batches of all variants are compared with: its engine and precision, and a batch of it."""

    label: str
    whole_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All variants, as in ``comparison.json``.

    Attributes:
        tolerance, objective, batch_size, threads: what was planned for.
        variants: the fastest first.
        left_out: those that could not be had, and why.
        reference: what slow batches are compared with; ``None``: each variant with itself.
    """

    tolerance: float
    objective: str
    batch_size: int
    threads: int
    variants: tuple[VariantFigures, ...]
    left_out: tuple[LeftOut, ...] = field(default=())
    reference: ReferenceFigures | None = None


def read_comparison(run: RunFolder) -> Comparison:
    """Reads the comparison of a run; errors as ``artifacts.open_artifact``."""
    remedy = f"python -m planner --run {run.root} --engines onnxruntime,openvino --precisions fp32,int8"
    artifact = open_artifact(run.root / COMPARISON, kind="comparison", remedy=remedy)
    return read_json(artifact.path(COMPARISON_JSON), Comparison)

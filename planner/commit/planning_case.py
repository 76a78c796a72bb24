"""``PlanningCase``: what a plan is committed for."""

from __future__ import annotations

from dataclasses import dataclass, field

from artifacts import Model, RunFolder, Trace
from planner.commit.contenders import SlowReference
from planner.confidence.fitting import Learned
from planner.config import PlanConfig
from planner.predict.traffic import Load


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanningCase:
    """What is planned for.

    Attributes:
        run: where its artifacts lie.
        model: the network.
        trace: the calibration data, with the metric that the risk is about.
        trace_digest: of the artifact that the trace came from.
        config: what was asked for.
        learned: the learned confidences that the trace has; empty: those of the exit heads.
        reference: what slow batches are compared with; ``None``: the network without exits.
    """

    run: RunFolder
    model: Model
    trace: Trace
    trace_digest: str
    config: PlanConfig
    learned: Learned = field(default_factory=dict)
    reference: SlowReference | None = None

    @property
    def load(self) -> Load:
        """The batches that enter."""
        return self.config.load or Load.of(self.config.batch_size)

"""Exit plan: from priced exits to the plan that is stored and shipped."""

from __future__ import annotations

from dataclasses import dataclass, field

from artifacts import Certificate, ExitPlan, StreamReference
from planner.confidence.fitting import Learned
from planner.config import PlanConfig
from planner.predict.replay import PricedExits


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOrigin:
    """What an exit plan was made from.

    Attributes:
        model_digest: of the model; empty for an imported run.
        trace_digest: of the artifact that the trace came from.
        full_metric: of the full network on the trace.
        backend: of the engines that were timed.
        threads: of each engine.
        learned: the learned confidences that the trace has.
        against: as of ``ExitPlan``.
    """

    model_digest: str
    trace_digest: str
    full_metric: float
    backend: str
    threads: int
    learned: Learned = field(default_factory=dict)
    against: str = ""


def make_exit_plan(
    priced: PricedExits,
    config: PlanConfig,
    origin: PlanOrigin,
    certificate: Certificate | None,
    reference: StreamReference | None = None,
) -> ExitPlan:
    """Returns the exit plan of priced exits.

    Args:
        priced: exits and figures.
        config: search, tolerance, batch size, objective, load and risk.
        origin: what the plan was made from.
        certificate: what is guaranteed of it; ``None`` without.
        reference: what the calibration samples do under it; ``None`` where it will not be served by the runtime.
    """
    return ExitPlan(
        model_digest=origin.model_digest,
        trace_digest=origin.trace_digest,
        search=config.search,
        tolerance=config.tolerance,
        delta=None if certificate is None else certificate.delta,
        batch_size=config.batch_size,
        backend=origin.backend,
        threads=origin.threads,
        exits=priced.planned_exits(),
        full_metric=origin.full_metric,
        predicted_metric=priced.outcome.metric,
        predicted=priced.predicted_latency(),
        certificate=certificate,
        reference=reference,
        objective=config.objective,
        load={} if config.load is None else config.load.to_plain(),
        risk=config.certify.risk,
        against=origin.against,
        confidences={cut: origin.learned[cut] for cut in priced.exits.cuts if cut in origin.learned},
    )

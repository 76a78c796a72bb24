"""Methods of a validation: the searches to compare, certified and not, and the description of their records. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from artifacts import Trace, environment_fingerprint, to_plain
from planner.certify.certified import plan_certified
from planner.confidence.choosing import settle_confidence
from planner.confidence.fitting import Learned
from planner.config import LEARNED, CertifyConfig, PlanConfig
from planner.predict.costs import NetworkCosts
from planner.predict.replay import Exits
from planner.search.problem import SearchProblem
from planner.search.rules import GREEDY
from planner.search.searches import SEARCHES
from planner.search.threshold_grids import KeptGrids, threshold_grid
from planner.validate.resampling import Method, MethodRecord, ValidationConfig, plan_per_exit

_BINS = 40  # of the histograms of losses


def make_methods(
    costs: NetworkCosts,
    config: ValidationConfig,
    certify: CertifyConfig,
    *,
    search: str,
    step: float,
    learns: bool = False,
) -> dict[str, Method]:
    """Returns the methods to compare by name: the search certified, the same uncertified, and others for comparison.

    Args:
        costs: the prices of the stages.
        config: the tolerance, and which plans may win.
        certify: risk and delta.
        search: one of ``SEARCHES``.
        step: distance of the thresholds of the grids.
        learns: also the certified search with learned confidences, which the trace must have the features for.
    """
    thresholds = threshold_grid(step)

    def problem(drawn: Trace) -> SearchProblem:
        return SearchProblem(
            trace=drawn, costs=costs, tolerances=(config.tolerance,), grids=KeptGrids(thresholds=thresholds),
            rules=config.rules,
        )  # fmt: skip

    def certified(drawn: Trace, seed: int) -> tuple[Exits, Learned]:
        settings = CertifyConfig(risk=certify.risk, delta=certify.delta, seed=seed)
        return plan_certified(problem(drawn), SEARCHES[search], settings).boldest, {}

    def learning(drawn: Trace, seed: int) -> tuple[Exits, Learned]:
        settings = CertifyConfig(risk=certify.risk, delta=certify.delta, seed=seed)
        planning = PlanConfig(
            confidence=LEARNED, certify=settings, tail=config.rules.slow_batches, max_exits=config.rules.max_exits
        )
        settled = settle_confidence(drawn, costs, planning)
        return plan_certified(problem(settled.trace), SEARCHES[search], settings).boldest, settled.learned

    def uncertified(name: str) -> Method:
        return lambda drawn, _: (SEARCHES[name](problem(drawn))[0].best.exits, {})

    return {
        f"{search}, certified": certified,
        **({f"{search}, certified, learned confidence": learning} if learns else {}),
        **({} if search == GREEDY else {f"{search}, not certified": uncertified(search)}),
        "greedy (the paper's)": uncertified(GREEDY),
        "per-exit grid": lambda drawn, _: (plan_per_exit(drawn, tolerance=config.tolerance, step=step), {}),
    }


def describe_validation(
    records: Sequence[MethodRecord], config: ValidationConfig, certify: CertifyConfig, *, samples: int
) -> dict[str, Any]:
    """Returns the JSON object: the settings, and one entry per method.

    Args:
        records: of the methods.
        config: the settings of the resampling.
        certify: risk and delta.
        samples: in each calibration set.
    """
    scale = config.tolerance or max(1e-3, *(float(np.abs(record.loss).max()) for record in records))
    edges = np.linspace(-1, 3, _BINS + 1) * scale
    methods = []
    for record in records:
        counts, _ = np.histogram(np.clip(record.loss, edges[0], edges[-1]), edges)
        methods.append({**record.summarise(config.tolerance), "loss_histogram": counts.tolist()})
    return {
        "tolerance": config.tolerance,
        "delta": certify.delta,
        "risk": certify.risk,
        "resplits": config.resplits,
        "samples": samples,
        "seed": config.seed,
        "rules": to_plain(config.rules),
        "loss_edges": edges.tolist(),
        "methods": methods,
        "environment": environment_fingerprint(),
    }

"""Times engines, characterises the load, searches exits and thresholds, and ships the bundle.

The pure parts (patterns, costs, evaluation, search) load numpy alone; what opens engines is fetched on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from planner.certify.certified import CertifiedPlans, certify_plans, plan_certified
from planner.certify.evidence import risk_trace
from planner.certify.ladders import make_ladder, make_price
from planner.config import CertifyConfig, MeasureConfig, PlanConfig, TimingConfig
from planner.predict.costs import ChainTimes, NetworkCosts, expect_mean_ms, expect_times, price_stage, record_times
from planner.predict.percentiles import latency_distribution, latency_quantile
from planner.predict.replay import (
    NO_EXITS,
    ChosenExits,
    Outcome,
    PlanFigures,
    evaluate_exits,
    evaluate_oracle,
    evaluate_plan,
)
from planner.predict.survivors import (
    BatchingPatternMatrix,
    binomial_pmf,
    count_survivors,
    draw_patterns,
    survivor_transition,
)
from planner.predict.traffic import Load, read_load
from planner.search.greedy import Considered, SearchResult, TailRule, plan_greedy
from planner.search.joint import plan_joint, plan_ladder
from planner.search.prices import OBJECTIVES, objective_ms
from planner.search.threshold_grids import KeptGrids, ThresholdGrid, evaluate_grid, threshold_grid
from planner.sweep.points import OperatingPoint, Sweep, sweep_levels, sweep_tolerances
from planner.validate.resampling import MethodRecord, ValidationConfig, plan_per_exit, validate_methods

if TYPE_CHECKING:
    from planner.commit.committing import Commitment, Contender, PlanningCase, commit_plan
    from planner.commit.stages import MergedStage, assemble_bundle, merge_stages
    from planner.measure.timing import TimedGraph, ensure_itm, time_graphs
    from planner.workflow.planning import PlanningResult, ensure_plan

_HOMES = {
    "commit.stages": ("MergedStage", "assemble_bundle", "merge_stages"),
    "commit.committing": ("Commitment", "Contender", "PlanningCase", "commit_plan"),
    "workflow.planning": ("PlanningResult", "ensure_plan"),
    "measure.timing": ("TimedGraph", "ensure_itm", "time_graphs"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    # the load
    "BatchingPatternMatrix", "Load", "binomial_pmf", "count_survivors", "draw_patterns", "read_load",
    "survivor_transition",
    # the cost
    "OBJECTIVES", "ChainTimes", "NetworkCosts", "expect_mean_ms", "expect_times", "latency_distribution",
    "latency_quantile", "objective_ms", "price_stage", "record_times",
    # a choice of exits on a trace
    "NO_EXITS", "ChosenExits", "Outcome", "PlanFigures", "evaluate_exits", "evaluate_oracle", "evaluate_plan",
    # the search
    "Considered", "KeptGrids", "SearchResult", "TailRule", "ThresholdGrid", "evaluate_grid", "plan_greedy",
    "plan_joint", "plan_ladder", "threshold_grid",
    # tolerance against latency
    "OperatingPoint", "Sweep", "sweep_levels", "sweep_tolerances",
    # the certificate
    "CertifiedPlans", "certify_plans", "make_ladder", "make_price", "plan_certified", "risk_trace",
    # where the truth is known
    "MethodRecord", "ValidationConfig", "plan_per_exit", "validate_methods",
    # what is asked for
    "CertifyConfig", "MeasureConfig", "PlanConfig", "TimingConfig",
    # engines: timing, bundles, measuring the best plans, all of it
    "Commitment", "Contender", "MergedStage", "PlanningCase", "PlanningResult", "TimedGraph", "assemble_bundle",
    "commit_plan", "ensure_itm", "ensure_plan", "merge_stages", "time_graphs",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'planner' has no attribute '{name}'")
    return getattr(importlib.import_module(f"planner.{_MODULES[name]}"), name)

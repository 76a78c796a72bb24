"""Planner: times engines, characterises the load, searches exits and thresholds, and ships the bundle.

The pure parts (predict, search, certify) load numpy alone; the parts that open engines are imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from calibration import binomial_pmf
from planner.certify.certified import CertifiedPlans, certify_plans, plan_certified
from planner.certify.evidence import evidence_reader, risk_trace
from planner.config import CertifyConfig, MeasureConfig, PlanConfig, TimingConfig
from planner.predict.costs import ChainTimes, NetworkCosts, expect_mean_ms, expect_times, price_stage, record_times
from planner.predict.objectives import OBJECTIVES, objective_ms
from planner.predict.percentiles import latency_distribution, latency_quantile
from planner.predict.replay import (
    NO_EXITS,
    Exits,
    Outcome,
    PricedExits,
    evaluate_exits,
    evaluate_oracle,
    evaluate_plan,
    price_exits,
)
from planner.predict.survivors import BatchingPatternMatrix, count_survivors, draw_patterns, survivor_transition
from planner.predict.traffic import Load
from planner.search.greedy import plan_greedy
from planner.search.joint import plan_joint
from planner.search.problem import Search, SearchedPlan, SearchProblem, SearchResult
from planner.search.rules import SearchRules, SlowBatchRule
from planner.search.searches import SEARCHES, find_search
from planner.search.threshold_grids import KeptGrids, ThresholdGrid, evaluate_grid, threshold_grid
from planner.sweep.points import OperatingPoint, Sweep, sweep_levels, sweep_tolerances
from planner.validate.resampling import MethodRecord, ValidationConfig, plan_per_exit, validate_methods

if TYPE_CHECKING:
    from planner.commit.committing import commit_plan
    from planner.commit.contenders import Commitment, Contender
    from planner.commit.planning_case import PlanningCase
    from planner.commit.stages import MergedStage, TimedStages, assemble_bundle, merge_stages
    from planner.load_file import read_load
    from planner.measure.timing import EngineSettings, TimedGraph, ensure_itm, time_graphs
    from planner.workflow.from_source import plan_network
    from planner.workflow.inputs import PlanningInputs
    from planner.workflow.planning import ensure_plan
    from planner.workflow.record import ConsideredPlan, PlanningResult

_HOMES = {
    "commit.committing": ("commit_plan",),
    "commit.contenders": ("Commitment", "Contender"),
    "commit.planning_case": ("PlanningCase",),
    "commit.stages": ("MergedStage", "TimedStages", "assemble_bundle", "merge_stages"),
    "measure.timing": ("EngineSettings", "TimedGraph", "ensure_itm", "time_graphs"),
    "workflow.from_source": ("plan_network",),
    "workflow.inputs": ("PlanningInputs",),
    "load_file": ("read_load",),
    "workflow.planning": ("ensure_plan",),
    "workflow.record": ("ConsideredPlan", "PlanningResult"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    # the load
    "BatchingPatternMatrix", "Load", "binomial_pmf", "count_survivors", "draw_patterns", "read_load",
    "survivor_transition",
    # the cost
    "OBJECTIVES", "ChainTimes", "NetworkCosts", "expect_mean_ms", "expect_times", "latency_distribution",
    "latency_quantile", "objective_ms", "price_stage", "record_times",
    # exits and thresholds on a trace
    "NO_EXITS", "Exits", "Outcome", "PricedExits", "evaluate_exits", "evaluate_oracle", "evaluate_plan", "price_exits",
    # the search
    "SEARCHES", "KeptGrids", "Search", "SearchProblem", "SearchResult", "SearchRules", "SearchedPlan",
    "SlowBatchRule", "ThresholdGrid", "evaluate_grid", "find_search", "plan_greedy", "plan_joint", "threshold_grid",
    # tolerance against latency
    "OperatingPoint", "Sweep", "sweep_levels", "sweep_tolerances",
    # the certificate
    "CertifiedPlans", "certify_plans", "evidence_reader", "plan_certified", "risk_trace",
    # validation where the truth is known
    "MethodRecord", "ValidationConfig", "plan_per_exit", "validate_methods",
    # configuration
    "CertifyConfig", "MeasureConfig", "PlanConfig", "TimingConfig",
    # engines: timing, bundles, measuring the best plans, all of it
    "Commitment", "ConsideredPlan", "Contender", "EngineSettings", "MergedStage", "PlanningCase", "PlanningInputs",
    "PlanningResult", "TimedGraph", "TimedStages", "assemble_bundle", "commit_plan", "ensure_itm", "ensure_plan",
    "merge_stages", "plan_network", "time_graphs",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'planner' has no attribute '{name}'")
    return getattr(importlib.import_module(f"planner.{_MODULES[name]}"), name)

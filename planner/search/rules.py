"""Search rules: which plans a search may answer with, and the names of the searches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from artifacts import UsageError
from planner.predict.objectives import MEAN, check_objective

JOINT, COARSE, GREEDY = "joint", "joint survey", "greedy"
OFFERED_SEARCHES = (JOINT, GREEDY)  # the choices of --search; the coarse one is for validation only


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowBatchRule:
    """How many batches may be slower than the full network: that of ``NetworkCosts.slow_above``.

    Attributes:
        share: of the batches that must not be slower, in [0, 1].
        allowance: relative excess over the full network's time that counts as not slower.
        stay_allowance: relative excess over the full network's time that a batch may cost of which no row leaves;
            ``None``: any, as in the paper.
    """

    share: float = 0.99
    allowance: float = 0.05
    stay_allowance: float | None = 0.03

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError(f"--tail-share {self.share}: expected a share of batches from 0 to 1")
        if not self.allowance >= 0:
            raise UsageError(f"--tail-allowance {self.allowance}: expected a number from 0, e.g. 0.05 for 5 %")
        if self.stay_allowance is not None and not 0 <= self.stay_allowance < math.inf:
            raise UsageError(f"--stay-allowance {self.stay_allowance}: expected a number from 0, e.g. 0.05 for 5 %")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRules:
    """Which plans may win, and by which time. The greedy search is the paper's: it reads ``slow_batches`` alone.

    Attributes:
        objective: the value to minimise, one of ``objectives.OBJECTIVES``.
        max_exits: the most exits that a plan may have; ``None``: as many as pay.
        slow_batches: how many batches may be slower than the full network.
    """

    objective: str = MEAN
    max_exits: int | None = None
    slow_batches: SlowBatchRule = field(default_factory=SlowBatchRule)

    def __post_init__(self) -> None:
        check_objective(self.objective)
        if self.max_exits is not None and self.max_exits < 0:
            raise UsageError(f"--max-exits {self.max_exits}: expected a number from 0")

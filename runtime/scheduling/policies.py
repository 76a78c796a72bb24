"""Policies: which of the stages with waiting rows runs next.

*Chain*: the deepest. A batch enters only when the one before has left, so nobody shares a stage.

*Pooled*: of the stages after whose run everybody can still be answered ``margin`` before he is due, the one that
retires most work per second (``StageCosts.efficiency``: in a fluid model this keeps up with every load that can be
kept up with); the deeper one at a tie. To be answered in time means here that the groups, in the order in which they
are due, go to the end one after the other, each by itself: what pooling saves on the way is not counted.

Where there is no such stage, the group that is due first, if that still helps it. If it does not, or more waits at the
entry than two runs take in, the load is more than can be served in time, and going on by due times would make everybody
late by a little, and runs small; then the stage that retires most work runs again. But a row that is late by more than
``patience`` goes first, whatever it costs.

A large margin makes this the chain, margin 0 shares whatever can be shared.

An idle device never waits for more rows: that made the mean latency worse in every simulation, and the capacity better
by 3 % at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from runtime.scheduling.tables import StageCosts

BACKLOG = 2  # runs of the largest batch: more than that at the entry is more than a burst


class Group(NamedTuple):
    """The rows that wait for one stage.

    Attributes:
        stage: its index, through all lines of stages.
        rows: how many they are, at least 1.
        due: when the first of them is due.
    """

    stage: int
    rows: int
    due: float


def choose_chain(groups: Sequence[Group], depth: int) -> int:
    """Returns the deepest stage, and of several lines the one whose rows are due first.

    Args:
        groups: in the order of the stages, at least one.
        depth: how many stages a line has.
    """
    if groups[-1].stage < depth:  # there is one line, or nothing waits in the others
        return groups[-1].stage
    return min(groups, key=lambda group: (-(group.stage % depth), group.due)).stage


@dataclass(slots=True)
class PoolingRule:
    """How ``choose_pooled`` weighs.

    Attributes:
        costs: of the stages.
        margin_s: how long before they are due everybody is to be answered.
        patience_s: how late a row may be before it goes first, whatever it costs.
    """

    costs: StageCosts
    margin_s: float
    patience_s: float


def choose_pooled(groups: Sequence[Group], rule: PoolingRule, now: float) -> int:
    """Returns the stage that pooling chooses; ``groups`` in the order of the stages, at least one."""
    if len(groups) == 1:
        return groups[0].stage
    costs, largest = rule.costs, rule.costs.largest
    efficiency, remaining_s = costs.efficiency, costs.remaining_s
    by_efficiency = sorted(
        [(efficiency[group.stage][min(group.rows, largest)], group.stage, group) for group in groups]
    )
    by_due = sorted([(due, stage, remaining_s[stage][min(rows, largest)]) for stage, rows, due in groups])
    for _, _, group in reversed(by_efficiency):
        if _leaves_time(group, by_due, rule, now):
            return group.stage
    due, stage, to_the_end_s = by_due[0]
    entering = sum([group.rows for group in groups if group.stage % costs.depth == 0])
    flooded = entering > BACKLOG * largest
    helps = not flooded and now + to_the_end_s <= due
    return stage if helps or now > due + rule.patience_s else by_efficiency[-1][1]


def _leaves_time(chosen: Group, by_due: Sequence[tuple[float, int, float]], rule: PoolingRule, now: float) -> bool:
    """Whether every group can still be answered in time after a run of the chosen one.

    Args:
        chosen: would run.
        by_due: of every group, when it is due, its stage, and its seconds to the end; the first that is due first.
        rule: how it is weighed.
        now: the time.
    """
    costs, (own, rows, _) = rule.costs, chosen
    count = min(rows, costs.largest)
    at = now + costs.run_s[own][count] + rule.margin_s
    for due, stage, to_the_end_s in by_due:
        if stage == own:
            at += costs.group_s(own + 1, count * costs.staying[own])
            if rows > count:
                at += costs.group_s(own, rows - count)
        else:
            at += to_the_end_s
        if at > due:
            return False
    return True

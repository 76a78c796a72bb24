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
    costs = rule.costs
    by_due = sorted(groups, key=_due)
    best, best_efficiency = -1, -1.0
    most, most_efficiency = -1, -1.0
    for group in groups:
        efficiency = costs.efficiency[group.stage][min(group.rows, costs.largest)]
        if efficiency >= most_efficiency:
            most, most_efficiency = group.stage, efficiency
        if efficiency >= best_efficiency and _leaves_time(group, by_due, costs, rule.margin_s, now):
            best, best_efficiency = group.stage, efficiency
    if best >= 0:
        return best
    first = by_due[0]
    entering = sum([group.rows for group in groups if group.stage % costs.depth == 0])
    flooded = entering > BACKLOG * costs.largest
    helps = not flooded and now + costs.group_s(first.stage, first.rows) <= first.due
    return first.stage if helps or now > first.due + rule.patience_s else most


def _leaves_time(chosen: Group, by_due: Sequence[Group], costs: StageCosts, margin_s: float, now: float) -> bool:
    """Whether every group can still be answered in time after a run of the chosen one."""
    count = min(chosen.rows, costs.largest)
    at = now + costs.run_s[chosen.stage][count] + margin_s
    for group in by_due:
        if group is chosen:
            at += costs.group_s(group.stage + 1, count * costs.staying[group.stage])
            at += costs.group_s(group.stage, group.rows - count)
        else:
            at += costs.group_s(group.stage, group.rows)
        if at > group.due:
            return False
    return True


def _due(group: Group) -> float:
    return group.due

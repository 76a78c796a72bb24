"""Policies: which of the stages with waiting rows runs next.

*Chain*: the deepest. A batch enters only when the one before has left, so nobody shares a stage.

*Pooled*: of the stages after whose run everybody can still be answered ``margin`` before he is due, the one that
retires most work per second (``StageCosts.efficiency``: in a fluid model this keeps up with every load that can be
kept up with); the deeper one at a tie. Where there is no such stage, the group that is due first. To be answered in
time means here that the groups, in the order in which they are due, go to the end one after the other, each by itself:
what pooling saves on the way is not counted. An infinite margin makes this the chain, margin 0 shares whatever can be
shared.

An idle device never waits for more rows: that made the mean latency worse in every simulation, and the capacity better
by 3 % at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from runtime.scheduling.tables import StageCosts


class Group(NamedTuple):
    """The rows that wait for one stage.

    Attributes:
        stage: its index.
        rows: how many they are, at least 1.
        due: when the first of them is due.
    """

    stage: int
    rows: int
    due: float


def choose_chain(groups: Sequence[Group]) -> int:
    """Returns the deepest stage; ``groups`` in the order of the stages, at least one."""
    return groups[-1].stage


def choose_pooled(groups: Sequence[Group], costs: StageCosts, margin_s: float, now: float) -> int:
    """Returns the stage that pooling chooses; ``groups`` in the order of the stages, at least one."""
    if len(groups) == 1:
        return groups[0].stage
    by_due = sorted(groups, key=_due)
    best, best_efficiency = -1, -1.0
    for group in groups:
        count = min(group.rows, costs.largest)
        efficiency = costs.efficiency[group.stage][count]
        if efficiency >= best_efficiency and _leaves_time(group, by_due, costs, margin_s, now):
            best, best_efficiency = group.stage, efficiency
    return best if best >= 0 else by_due[0].stage


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

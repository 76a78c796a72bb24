"""Table of the searches: every way to search exits and thresholds, by name."""

from __future__ import annotations

from collections.abc import Mapping

from artifacts import unknown_name
from planner.search.greedy import plan_greedy
from planner.search.joint import plan_coarsely, plan_joint
from planner.search.problem import Search
from planner.search.rules import COARSE, GREEDY, JOINT

SEARCHES: Mapping[str, Search] = {JOINT: plan_joint, COARSE: plan_coarsely, GREEDY: plan_greedy}


def find_search(name: str) -> Search:
    """Returns a search by its name.

    Raises:
        UsageError: there is no such search.
    """
    if name not in SEARCHES:
        raise unknown_name("search", name, SEARCHES)
    return SEARCHES[name]

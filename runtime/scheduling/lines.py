"""Lines of stages: which rows of several lengths enter together, and what they weigh.

A run over rows of several lengths goes at the smallest length that holds them all, so the short ones are padded. That
is worth it where a run costs much by itself (a GPU that waits for launches), and not where time is proportional to
positions. So it is decided by the measured times: of the neighbouring lines around the one that is to enter, those are
joined that retire most work per second,

    work / time = sum over lines l of n_l w_l  /  R_h(n)        n = sum of n_l, at most B;  h the longest of them

with ``w_l`` the least that a row of line ``l`` costs (``StageCosts.chain_work_s``) and ``R_h`` what the rows cost to
the end in line ``h``. Only whole neighbourhoods compete: if a row is to be padded, those that need less of it come too.
Serving systems for transformers choose batches of unlike lengths likewise, by a dynamic program over the whole queue
(Fang et al., "TurboTransformers", PPoPP 2021); here one run is chosen at a time, since more rows come meanwhile.

Once inside, a row stays in its line: what pads the tensors between two stages is the network's business.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.scheduling.queues import Row, StageQueue
from runtime.scheduling.tables import StageCosts


def check_lines(lines: Sequence[int], rows: int, costs: StageCosts) -> None:
    """Raises ``ValueError`` unless there is a line for each row of a request."""
    if len(lines) != rows or not all(0 <= line < costs.lines for line in lines):
        raise ValueError(f"{rows} rows in the lines {list(lines)}: expected one from 0 to {costs.lines - 1} for each")


def weigh_rows(lines: Sequence[int], costs: StageCosts) -> float:
    """Returns how many rows these are, a shorter one counted as the part of a longest one's cost that it has."""
    return sum([costs.weights[line] for line in lines])


def weigh_waiting(queues: Sequence[StageQueue], costs: StageCosts) -> float:
    """Returns how many rows wait in queues, equally many of each line, as ``weigh_rows`` counts."""
    if costs.lines == 1:
        return sum([queue.live for queue in queues])
    per_line, weights = len(queues) // costs.lines, costs.weights
    return sum([queue.live * weights[place // per_line] for place, queue in enumerate(queues)])


def take_entering(queues: Sequence[StageQueue], stage: int, costs: StageCosts) -> tuple[list[Row], int]:
    """Takes the rows of a run that begins with the most urgent rows of a line.

    Args:
        queues: of all stages.
        stage: the entry of the line.
        costs: of the stages.

    Returns:
        The rows, at most the largest batch, and the entry of the line that they run in.
    """
    depth = costs.depth
    entries = [queue.live for queue in queues[::depth]]
    joined = [line for line in join_lines(entries, stage // depth, costs) if entries[line]]
    if len(joined) > 1 and sum([entries[line] for line in joined]) > costs.largest:
        urgent = sorted([(row, line) for line in joined for row in queues[line * depth].rows()])[: costs.largest]
        entries = [sum(line == own for _, own in urgent) for line in range(costs.lines)]
        joined = [line for line in joined if entries[line]]
    taken: list[Row] = []
    for line in joined:
        rows, _ = queues[line * depth].take(min(entries[line], costs.largest))
        for row in rows:
            row.ticket.waiting[line * depth] -= 1
        taken += rows
    return taken, joined[-1] * depth


def join_lines(waiting: Sequence[int], first: int, costs: StageCosts) -> range:
    """Returns the lines whose rows enter together, neighbours around ``first``; the last of them is where they run.

    Args:
        waiting: how many rows wait at the entry of each line.
        first: the line that enters in any case, with at least one row.
        costs: of the lines.
    """
    best, best_rate = range(first, first + 1), 0.0
    for longest in range(first, len(waiting)):
        if not waiting[longest]:
            continue
        for shortest in range(first, -1, -1):
            if not waiting[shortest]:
                continue
            rate = _work_per_s(waiting, range(shortest, longest + 1), costs)
            if rate > best_rate:
                best, best_rate = range(shortest, longest + 1), rate
    return best


def _work_per_s(waiting: Sequence[int], joined: range, costs: StageCosts) -> float:
    depth, rows, work = costs.depth, 0, 0.0
    for line in joined:
        rows += waiting[line]
        work += waiting[line] * costs.chain_work_s[line * depth]
    count = min(rows, costs.largest)
    return work * count / rows / costs.remaining_s[joined[-1] * depth][count]

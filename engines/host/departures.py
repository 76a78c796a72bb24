"""Who stands where after some rows have left: the order that every device keeps."""

from __future__ import annotations

from bisect import bisect_left


def close_ranks(count: int, left: list[int]) -> list[int]:
    """Returns ``Departure.stayed``: the last survivors fill the places of those who left before them.

    Args:
        count: how many rows there were.
        left: who leaves, ascending.

    Returns:
        The survivors; row ``i`` from now on is the one that was at ``stayed[i]``.
    """
    if not left:
        return list(range(count))
    staying = count - len(left)
    stayed = list(range(staying))
    holes = left[: bisect_left(left, staying)]
    if holes:
        gone = set(left)
        movers = (row for row in range(staying, count) if row not in gone)
        for hole, mover in zip(holes, movers, strict=True):
            stayed[hole] = mover
    return stayed

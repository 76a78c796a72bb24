"""Shadowing: carrying some of the rows that leave early on to the end, to compare their answers with the final head's.

A shadowed row is answered at the exit where it leaves, like every other; only its place in the buffers is not given up
(``runtime.scheduling.batch_steps``). Rows do not depend on their neighbours, so no answer changes. The later stages run
over one row more.
"""

from __future__ import annotations

from random import Random

from artifacts import UsageError


class ShadowDraw:
    """Draws the rows of a batch that are shadowed, each with the same probability; may be used from any thread."""

    def __init__(self, fraction: float, *, seed: int | None = None) -> None:
        """Takes the fraction and a seed; ``None`` draws differently in every process.

        Raises:
            UsageError: the fraction is not within [0, 1].
        """
        if not 0 <= fraction <= 1:
            raise UsageError(f"shadow_fraction={fraction}: expected a share from 0 to 1")
        self.fraction = fraction
        self._random = Random(seed)  # noqa: S311 - decides which rows are watched, keeps no secret

    def draw(self, count: int) -> frozenset[int]:
        """Returns those of rows 0 to ``count - 1`` that are shadowed."""
        draw, fraction = self._random.random, self.fraction
        return frozenset(row for row in range(count) if draw() < fraction)

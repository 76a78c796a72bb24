"""Shadowing: some of the rows that leave early are carried on to the end, to see what the final head makes of them.

A shadowed row is answered at the exit where it leaves, like every other; only its place in the buffers is kept. Rows
do not know their neighbours, so nobody's answer changes. The later stages run over one row more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from artifacts import UsageError
from engines import Buffer, Departure, Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadowed:
    """A row that left early and was carried on to the end.

    Attributes:
        exit_index: where it left.
        place: where its answer is, for ``Chain.answers``.
        final_place: where the final head's is.
    """

    exit_index: int
    place: int
    final_place: int


class ShadowRows:
    """The shadowed rows of one batch on its way through the chain.

    Attributes:
        finished: those that have reached the end.
        engine_s: seconds inside engines after the last answer of the batch, spent on shadowed rows alone.
    """

    def __init__(self, chosen: Collection[int], device: Device, decision: Buffer) -> None:
        """Takes the positions in the batch that are carried on, and a float32 buffer for as many rows as it has."""
        self._chosen = chosen
        self._device = device
        self._decision = decision
        self._left: dict[int, tuple[int, int]] = {}
        self.finished: list[Shadowed] = []
        self.engine_s = 0.0

    def split_rows(
        self, rows: Sequence[int], *, exit_index: int, first_place: int, confidence: Buffer, threshold: float,
        carried: Sequence[Buffer],
    ) -> Departure:  # fmt: skip
        """As ``Device.split_rows``, but chosen rows stay: one that is sure here is among those who leave *and* those
        who stay, and leaves no second time.

        The device decides over a copy of the confidences in which the chosen rows have none.

        Args:
            rows: the batch's row at each place of the buffers.
            exit_index: of the stage.
            first_place: where its first row answers.
            confidence, threshold, carried: as for the device.
        """
        decision = self._device.download(confidence, range(len(rows)))
        held = [place for place, row in enumerate(rows) if row in self._chosen]
        leaving = [place for place in held if decision[place] >= threshold and rows[place] not in self._left]
        self._left.update({rows[place]: (exit_index, first_place + place) for place in leaving})
        decision[held] = np.nan
        self._device.upload(decision, self._decision)
        departure = self._device.split_rows(len(rows), confidence=self._decision, threshold=threshold, carried=carried)
        return Departure(left=sorted([*departure.left, *leaving]), stayed=departure.stayed)

    def finish(self, rows: Sequence[int], *, first_place: int) -> list[int]:
        """Takes the rows that reached the end; returns the places of those that have no answer yet."""
        waiting = []
        for place, row in enumerate(rows):
            if row in self._left:
                exit_index, left_place = self._left[row]
                shadowed = Shadowed(exit_index=exit_index, place=left_place, final_place=first_place + place)
                self.finished.append(shadowed)
            else:
                waiting.append(place)
        return waiting


class ShadowDraw:
    """Draws which rows of a batch are shadowed, each with the same probability; may be used from any thread."""

    def __init__(self, fraction: float, *, seed: int | None = None) -> None:
        """Takes the fraction and a seed; ``None`` draws differently in every process.

        Raises:
            UsageError: the fraction is no share.
        """
        if not 0 <= fraction <= 1:
            raise UsageError(f"shadow_fraction={fraction}: expected a share from 0 to 1")
        self.fraction = fraction
        self._random = Random(seed)  # noqa: S311 - decides who is watched, keeps no secret

    def draw(self, count: int) -> frozenset[int]:
        """Returns the chosen ones of rows 0 to ``count - 1``."""
        draw, fraction = self._random.random, self.fraction
        return frozenset(row for row in range(count) if draw() < fraction)

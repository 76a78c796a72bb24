"""Shadowing: carrying some of the rows that leave early on to the end, to compare their answers with the final head's.

A shadowed row is answered at the exit where it leaves, like every other; only its place in the buffers is not given up
(``runtime.scheduling.batch_steps``). Rows do not depend on their neighbours, so no answer changes. The later stages run
over one row more.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np

from artifacts import Task, TensorSpec
from engines import Buffer, Device, resize_rows
from runtime.chain import StageChain
from runtime.monitor.seen import SeenRows, judge_rows
from runtime.scheduling.batch_steps import ShadowState


class ShadowDraw:
    """Draws the rows of a batch that are shadowed, each with the same probability; may be used from any thread."""

    def __init__(self, *, seed: int | None = None) -> None:
        """Takes a seed; ``None`` draws differently in every process."""
        self._random = Random(seed)  # noqa: S311 - decides which rows are watched, keeps no secret

    def draw(self, count: int, share: float) -> frozenset[int]:
        """Returns those of rows 0 to ``count - 1`` that are shadowed, each with probability ``share``."""
        if share <= 0:
            return frozenset()
        draw = self._random.random
        return frozenset(row for row in range(count) if draw() < share)


def read_seen_rows(chain: StageChain, shadow: ShadowState, task: Task, inputs: tuple[np.ndarray, ...]) -> SeenRows:
    """Reads what all stages of a chain answered to the shadowed rows of the batch that entered last.

    Args:
        chain: has come to the end of the batch.
        shadow: its shadowed rows, at least one.
        task: judges the answers.
        inputs: of these rows, where they are logged.
    """
    rows = shadow.finished
    return judge_rows(
        task,
        np.array([row.exit_index for row in rows], np.int64),
        [chain.answers(places) for places in zip(*(row.places for row in rows), strict=True)],
        inputs,
    )


def read_inputs(
    arrays: Sequence[np.ndarray | Buffer], rows: Sequence[int], inputs: Sequence[TensorSpec], device: Device
) -> tuple[np.ndarray, ...]:
    """Copies rows of a batch's inputs to the host, at the largest length where they have several."""
    found = (array[rows] if isinstance(array, np.ndarray) else device.download(array, rows) for array in arrays)
    return tuple(
        resize_rows(array, spec, spec.row_shape[spec.length_axes[0]]) if spec.length_axes else array
        for array, spec in zip(found, inputs, strict=True)
    )

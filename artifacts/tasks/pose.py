"""Pose: one place per joint.

The metric is *PCKh@0.5* (Andriluka et al., "2D Human Pose Estimation: New Benchmark and State of the Art Analysis",
CVPR 2014): the share of visible joints that are off by less than half the length of the person's head, of each sample.
Places are shares of the image's width and height, so that they mean the same in images of any size.
"""

from __future__ import annotations

import numpy as np

from artifacts.errors import UsageError
from artifacts.tasks.protocol import Answers

TARGET_COLUMNS = 5
"""Of a joint in the targets: x, y, whether it is visible, the head's length in units of the width and of the height."""
_SHARE_OF_HEAD = 0.5
_SAME_PLACE = 1 / 16  # of the image: two answers agree where they are this close
_SHIFT = 0.25  # of a cell, towards the higher neighbour of a peak


class Pose:
    """PCKh@0.5 over heat maps (n, J, H, W) or keypoints (n, J, 3) as the first output.

    Targets are (n, J, 5) float32, see ``TARGET_COLUMNS``. Two answers agree on a joint where they put it within a
    sixteenth of the image's width and height.
    """

    name = "pose"
    metric_name = "PCKh@0.5"
    confidence = "mean-peak"
    loss = "heatmap-cross-entropy"

    def quality(self, answers: Answers, targets: np.ndarray, /) -> np.ndarray:
        found = find_keypoints(answers[0])[..., :2].astype(np.float64)
        visible = targets[..., 2] > 0
        off = np.linalg.norm((found - targets[..., :2]) / np.maximum(targets[..., 3:5], 1e-9), axis=-1)
        right = ((off < _SHARE_OF_HEAD) & visible).sum(axis=1)
        shown = visible.sum(axis=1)
        share: np.ndarray = np.where(shown > 0, right / np.maximum(shown, 1), 1.0)
        return share.astype(np.float32)

    def agreement(self, answers: Answers, final: Answers, /) -> np.ndarray:
        mine, theirs = (find_keypoints(found[0])[..., :2] for found in (answers, final))
        close: np.ndarray = np.linalg.norm(mine - theirs, axis=-1) <= _SAME_PLACE
        shares: np.ndarray = close.mean(axis=1)
        return shares.astype(np.float32)

    def counts(self, _answers: Answers, _targets: np.ndarray, /) -> np.ndarray | None:
        return None

    def summarise(self, _counts: np.ndarray, /) -> float:
        raise UsageError("the metric of pose is a mean over samples; it has no counts to summarise")

    def predictions(self, _answers: Answers, /) -> np.ndarray | None:
        return None


def find_keypoints(answers: np.ndarray) -> np.ndarray:
    """Returns keypoints (n, J, 3) float32: x and y as shares of width and height, and the peak's height.

    The centre of the highest cell of a heat map, moved by a quarter of a cell towards its higher neighbour in either
    direction (Newell et al., "Stacked Hourglass Networks for Human Pose Estimation", ECCV 2016). How high the peak is
    says the softmax over all cells of a map. The graphs that answer with keypoints compute the same.

    Args:
        answers: heat maps (n, J, H, W), or keypoints, which are returned as they are.
    """
    if answers.ndim == 3:
        return answers
    count, joints, height, width = answers.shape
    flat = answers.reshape(count, joints, -1)
    peak = flat.argmax(axis=-1)
    row, column = np.divmod(peak, width)
    row_index, joint_index = np.ogrid[:count, :joints]

    def lean(by_row: int, by_column: int) -> np.ndarray:
        """Returns the sign of (the next cell - the one before); 0 at a border."""
        ahead, behind = (row + by_row, column + by_column), (row - by_row, column - by_column)
        inside = (behind[0] >= 0) & (behind[1] >= 0) & (ahead[0] < height) & (ahead[1] < width)
        higher, lower = (
            answers[row_index, joint_index, r.clip(0, height - 1), c.clip(0, width - 1)] for r, c in (ahead, behind)
        )
        signs: np.ndarray = np.sign(higher - lower) * inside
        return signs

    x = (column + 0.5 + _SHIFT * lean(0, 1)) / width
    y = (row + 0.5 + _SHIFT * lean(1, 0)) / height
    logits = flat.astype(np.float64)
    highest = 1 / np.exp(logits - logits.max(axis=-1, keepdims=True)).sum(axis=-1)
    return np.stack([x, y, highest], axis=-1).astype(np.float32)

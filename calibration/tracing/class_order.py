"""OtherOrder: whether the network's answers fit the labels clearly better in another order of the classes.

A class folder that is missing moves all classes behind it, and names that were sorted as text in training come in
another order than numbers do. Most samples of a class are then answered as another one, and no two classes as the same;
of classes that the network merely confuses, two are answered alike.

The order is read off one half of the samples and judged on the other by the sign test: of the samples on which the two
orders differ, how many are right in the one that was read?
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from calibration.certify.binomials import binomial_cdf

_SURE = 0.01
_LEAST = 3  # samples of a class from which its place is read
_SHOWN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherOrder:
    """An order of the classes in which the network is clearly right more often.

    Attributes:
        places: label -> the network's answer that it is, where the two differ.
        right, right_now: shares of the samples that are answered right in that order and as they are labelled.
        p_value: the probability of such an advantage if neither order were better.
    """

    places: Mapping[int, int]
    right: float
    right_now: float
    p_value: float

    def describe(self, classes: Sequence[str]) -> str:
        """Returns the order in words.

        Args:
            classes: names in the order of the labels; none: labels are numbers.
        """
        told = [
            f"{repr(classes[label]) if label < len(classes) else label} is its answer {answer}"
            for label, answer in sorted(self.places.items())
        ]
        more = f" and {len(told) - _SHOWN} more move" if len(told) > _SHOWN else ""
        return (
            f"the network is right on {self.right_now:.1%} of the samples as their classes are numbered now, and on "
            f"{self.right:.1%} if {', '.join(told[:_SHOWN])}{more}, counted from 0 (p = {self.p_value:.1g})"
        )


def find_other_order(predictions: np.ndarray, labels: np.ndarray) -> OtherOrder | None:
    """Returns the order in which the answers fit clearly better; ``None``: there is none.

    Args:
        predictions: (n,) the class that the network answers, of samples in random order.
        labels: (n,) their classes.
    """
    places = _read_places(predictions[::2], labels[::2])
    placed = np.array([places.get(int(label), int(label)) for label in labels])
    right, right_now = placed == predictions, labels == predictions
    better = int((right & ~right_now)[1::2].sum())
    worse = int((right_now & ~right)[1::2].sum())
    p_value = binomial_cdf(worse, better + worse, 0.5)
    if not places or p_value >= _SURE:
        return None
    return OtherOrder(
        places=places, right=float(right.mean()), right_now=float(right_now.mean()), p_value=float(p_value)
    )


def _read_places(predictions: np.ndarray, labels: np.ndarray) -> dict[int, int]:
    """Returns label -> answer for the classes most of whose samples are answered as another, no two as the same."""
    found = {}
    for label in np.unique(labels):
        answers = predictions[labels == label]
        answer, count = Counter(answers.tolist()).most_common(1)[0]
        if len(answers) >= _LEAST and 2 * count > len(answers):
            found[int(label)] = int(answer)
    taken = Counter(found.values())
    return {label: answer for label, answer in found.items() if taken[answer] == 1 and answer != label}

"""Splits: the parts train, calibrate and test drawn at random, or as the data names them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from artifacts import InputError
from calibration.data.samples import PARTS

SHARES = {"train": 0.6, "calibrate": 0.2, "test": 0.2}
QUERY_SHARES = {"train": 0.0, "calibrate": 0.8, "test": 0.2}
PART_NAMES = {
    "train": "train", "training": "train",
    "calibrate": "calibrate", "calibration": "calibrate", "val": "calibrate", "valid": "calibrate",
    "validation": "calibrate", "dev": "calibrate",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Other names under which data has its parts, in lower case -> ours."""


def split_indices(labels: np.ndarray, shares: Mapping[str, float], *, seed: int) -> dict[str, np.ndarray]:
    """Splits 0..N-1 at random, each class in the same proportions.

    A class with at least as many samples as there are parts has one in each of them, however small its share.

    Args:
        labels: (N,) integers.
        shares: part -> share of the samples; the shares sum to 1.
        seed: decides the draw.
    """
    random = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {part: [np.zeros(0, np.int64)] for part in shares}
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(_counts(len(members), shares))[:-1]
        for part, piece in zip(shares, np.split(members, ends), strict=True):
            parts[part].append(piece)
    return {part: np.sort(np.concatenate(pieces)) for part, pieces in parts.items()}


def _counts(members: int, shares: Mapping[str, float]) -> list[int]:
    bounds = np.cumsum(list(shares.values()))[:-1]
    ends = np.round(bounds * members).astype(int)
    counts = np.diff([0, *ends, members]).tolist()
    wanted = [share > 0 for share in shares.values()]
    if members >= sum(wanted):
        for place, count in enumerate(counts):
            if wanted[place] and count == 0:
                counts[int(np.argmax(counts))] -= 1
                counts[place] = 1
    return [int(count) for count in counts]


def split_by_names(name: str, names: np.ndarray, *, count: int) -> dict[str, np.ndarray]:
    """Returns the parts that the data itself names, one name per sample.

    Args:
        name: of the data, for messages.
        names: (N,) strings: ``train``, ``calibrate`` or ``test``, in any case, or one of their other names.
        count: N.

    Raises:
        InputError: another number of names than samples, or a name that is no part.
    """
    if names.shape != (count,):
        raise InputError(f"{name}: 'split' has shape {names.shape} for {count} samples; expected one part for each")
    found = np.unique(names)
    ours = {str(word): PART_NAMES.get(str(word).strip().lower()) for word in found}
    if unknown := sorted(word for word, part in ours.items() if part is None):
        raise InputError(
            f"{name}: 'split' holds {', '.join(map(repr, unknown[:5]))}; expected {', '.join(PARTS)} (or val, for "
            "calibrate) for every sample"
        )
    parts = np.array([ours[str(word)] for word in found], np.str_)[np.searchsorted(found, names)]
    return {part: np.flatnonzero(parts == part) for part in PARTS}


def split_randomly(labels: np.ndarray | None, *, count: int, seed: int) -> dict[str, np.ndarray]:
    """Splits samples that come without parts: 60 / 20 / 20 of every class; without labels 80 calibrate, 20 test."""
    if labels is None:
        return split_indices(np.zeros(count, np.int64), QUERY_SHARES, seed=seed)
    return split_indices(labels, SHARES, seed=seed)

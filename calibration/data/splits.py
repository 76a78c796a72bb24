"""Splits: the parts train, calibrate and test drawn at random, or as the data names them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from artifacts import InputError, UsageError, unknown_name
from calibration.data.samples import PARTS

_SHOWN = 8
FIXED_SHARES = {"train": 0.6, "calibrate": 0.2, "test": 0.2}
"""The parts that were drawn before there was ``SPLIT_RULE``; a run keeps its own."""
SPLIT_RULE = "2"
"""The rule of ``choose_shares``, for the record of a trace."""
QUERY_SHARES = {"train": 0.0, "calibrate": 0.8, "test": 0.2}
PART_NAMES = {
    "train": "train", "training": "train",
    "calibrate": "calibrate", "calibration": "calibrate", "val": "calibrate", "valid": "calibrate",
    "validation": "calibrate", "dev": "calibrate",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Other names under which data has its parts, in lower case -> ours."""
_TEST_SHARE = 0.2
_CALIBRATE_SHARES = 0.2, 0.4  # at least and at most
_ENOUGH_TO_CALIBRATE = 5_000  # samples: what a certificate needs is a number of samples, not a share of them


def choose_shares(count: int) -> dict[str, float]:
    """Returns the shares of the parts that are drawn where the data names none: part -> share.

    20 % test. To calibrate go 5,000 samples, but never less than 20 % nor more than 40 % of all: a tolerance of 1 %
    takes thousands of samples to certify well whatever the size of the data, and with a few hundred the certificate,
    not the network, decides how fast the plan may be. The rest trains.

    Args:
        count: samples.
    """
    least, most = _CALIBRATE_SHARES
    calibrate = min(max(_ENOUGH_TO_CALIBRATE / max(count, 1), least), most)
    return {"train": 1 - calibrate - _TEST_SHARE, "calibrate": calibrate, "test": _TEST_SHARE}


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PartShare:
    """A share of one part that becomes (or joins) another, as in ``--parts calibrate=test:0.5``."""

    part: str
    source: str
    share: float

    @classmethod
    def parse(cls, text: str) -> PartShare:
        """Reads ``PART=SOURCE:SHARE``.

        Raises:
            UsageError: it is something else.
        """
        part, _, rest = text.partition("=")
        source, _, share = rest.partition(":")
        unknown = [word for word in (part, source) if word and word.lower() not in PART_NAMES]
        if unknown and share:
            raise UsageError(f"--parts {text}: {unknown_name('part of the data', unknown[0], PART_NAMES)}")
        try:
            found = cls(part=PART_NAMES[part.lower()], source=PART_NAMES[source.lower()], share=float(share))
        except (KeyError, ValueError) as error:
            raise UsageError(f"--parts {text}: expected PART=SOURCE:SHARE, e.g. calibrate=test:0.5") from error
        if found.part == found.source or not 0 < found.share < 1:
            raise UsageError(f"--parts {text}: expected two different parts, and a share between 0 and 1")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Splitting:
    """How samples are divided into parts, where the data leaves that open.

    Attributes:
        seed: decides every draw.
        share: what becomes another part; ``None``: nothing, or half of what is held out where calibrate or test is
            missing.
        group_by: a regular expression that the beginning of each file's name matches; samples with equal matches are
            a group (the frames of one drive), and a group is never divided. ``None``: every sample stands alone.
        names: of the samples' files; ``None``: they have none.
        train_queries: samples without labels have a train part too, from which exits learn the network's own answers.
        fixed: parts are drawn by ``FIXED_SHARES``, as they were for this run before.
    """

    seed: int = 0
    share: PartShare | None = None
    train_queries: bool = False
    group_by: str | None = None
    names: Sequence[str] | None = None
    fixed: bool = False

    def shares(self, count: int) -> Mapping[str, float]:
        """Returns the shares of the parts of so many samples."""
        return FIXED_SHARES if self.fixed else choose_shares(count)

    @classmethod
    def parse(cls, text: str | None, *, train_queries: bool) -> Splitting:
        """Reads ``--parts``: ``PART=SOURCE:SHARE``, ``@PATTERN``, or both in a row; ``None``: nothing was said.

        Raises:
            UsageError: it is something else.
        """
        share, at, pattern = (text or "").partition("@")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"--parts {text}: '{pattern}' is no regular expression: {error}") from error
        if at and not pattern:
            raise UsageError(f"--parts {text}: expected a pattern behind @, e.g. '@[^_]+'")
        return cls(
            share=PartShare.parse(share) if share or text == "" else None,
            group_by=pattern or None, train_queries=train_queries,
        )  # fmt: skip


def settle_parts(
    name: str, named: Mapping[str, np.ndarray] | None, labels: np.ndarray | None,
    *, count: int, splitting: Splitting, report: Callable[[str], None],
) -> tuple[dict[str, np.ndarray], int | None]:  # fmt: skip
    """Returns the parts of some data, and the seed that they were drawn with; ``None`` where none was drawn.

    Args:
        name: of the data, for messages.
        named: the parts that the data names; ``None``: it names none, all are drawn.
        labels: (count,) integers, so that every class is drawn from; ``None`` without.
        count: how many samples there are.
        splitting: the seed, and what the user wants.
        report: receives what was drawn.

    Raises:
        InputError: the part to take a share of has no samples, or too few groups.
    """
    groups = None if splitting.group_by is None else _group(name, splitting.names, splitting.group_by)
    if named is not None:
        parts = dict(named)
    elif groups is not None:
        parts = split_groups(groups, splitting.shares(count), seed=splitting.seed, name=name)
    else:
        parts = split_randomly(labels, count=count, splitting=splitting)
    share = splitting.share
    missing = [part for part in ("calibrate", "test") if len(parts[part]) == 0]
    if share is None and named is not None and len(missing) == 1 and len(parts["train"]):
        given = "test" if missing == ["calibrate"] else "calibrate"
        share = PartShare(part=missing[0], source=given, share=0.5)
        report(
            f"{name} has no {missing[0]} part: half of its {len(parts[given])} {given} samples, drawn from every "
            f"class, become that (--parts {missing[0]}={given}:0.5)"
        )
    if share is None:
        return parts, splitting.seed if named is None else None
    source = parts[share.source]
    if len(source) == 0:
        there = ", ".join(f"{part} ({len(parts[part])})" for part in PARTS if len(parts[part]))
        raise InputError(f"--parts: {name} has no {share.source} samples to take a share of; there are {there}")
    shares = {share.part: share.share, share.source: 1 - share.share}
    if groups is not None:
        drawn = split_groups(groups[source], shares, seed=splitting.seed, name=f"the {share.source} part of {name}")
        report(f"{name}: {_describe_groups(groups[source], drawn)}")
    else:
        alike = np.zeros(len(source), np.int64) if labels is None else labels[source]
        drawn = split_indices(alike, shares, seed=splitting.seed)
    parts[share.part] = np.sort(np.concatenate([parts[share.part], source[drawn[share.part]]]))
    parts[share.source] = source[drawn[share.source]]
    return parts, splitting.seed


def _group(name: str, names: Sequence[str] | None, pattern: str) -> np.ndarray:
    """Returns the group of each sample: (N,) strings."""
    if names is None:
        raise UsageError(f"--parts @{pattern}: the samples of {name} have no file names to group them by")
    bases = [file.replace("\\", "/").rpartition("/")[2] for file in names]
    matches = [re.match(pattern, base) for base in bases]
    unlike = next((base for base, match in zip(bases, matches, strict=True) if match is None), None)
    if unlike is not None:
        raise UsageError(f"--parts @{pattern}: the name {unlike} does not begin like that")
    return np.array([match.group() for match in matches if match is not None], np.str_)


def split_groups(groups: np.ndarray, shares: Mapping[str, float], *, seed: int, name: str) -> dict[str, np.ndarray]:
    """Splits 0..N-1 at random into parts that divide no group; the shares are met as well as whole groups allow.

    The largest group comes first, each goes where most is lacking; groups of equal size in random order.

    Args:
        groups: (N,) strings: which group each sample is in.
        shares: part -> share of the samples; the shares sum to 1.
        seed: decides the order.
        name: of the data, for messages.

    Raises:
        InputError: there are fewer groups than parts.
    """
    found, counts = np.unique(groups, return_counts=True)
    if len(found) < len(shares):
        raise InputError(
            f"{name} has {len(found)} groups ({', '.join(found.tolist())}), too few for the parts {', '.join(shares)}: "
            "a pattern that matches less makes smaller ones"
        )
    order = np.random.default_rng(seed).permutation(len(found))
    order = order[np.argsort(-counts[order], kind="stable")]
    lacking = {part: share * len(groups) for part, share in shares.items()}
    members: dict[str, list[str]] = {part: [] for part in shares}
    for place, index in enumerate(order.tolist()):
        empty = [part for part in shares if not members[part]]
        choice = empty if len(order) - place <= len(empty) else list(shares)
        part = max(choice, key=lambda name: lacking[name])
        members[part].append(str(found[index]))
        lacking[part] -= float(counts[index])
    return {part: np.flatnonzero(np.isin(groups, names)) for part, names in members.items()}


def _describe_groups(groups: np.ndarray, drawn: Mapping[str, np.ndarray]) -> str:
    return "; ".join(
        f"{part} has {len(indices)} samples of {', '.join(np.unique(groups[indices]).tolist()[:_SHOWN])}"
        for part, indices in drawn.items()
    )


def split_randomly(labels: np.ndarray | None, *, count: int, splitting: Splitting) -> dict[str, np.ndarray]:
    """Splits samples that come without parts, see ``choose_shares``; without labels 80 % calibrate and 20 % test,
    unless exits are to learn from them."""
    if labels is not None:
        return split_indices(labels, splitting.shares(count), seed=splitting.seed)
    shares = splitting.shares(count) if splitting.train_queries else QUERY_SHARES
    return split_indices(np.zeros(count, np.int64), shares, seed=splitting.seed)

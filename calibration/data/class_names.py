"""Class names: data whose classes are named as the network names them follows the network's order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from artifacts import InputError
from calibration.data.arrays import ArrayImages
from calibration.data.files import FileImages
from calibration.text.samples import TextSamples

_SHOWN = 6


Named = TypeVar("Named", bound=ArrayImages | FileImages | TextSamples)


def follow_network(
    samples: Named, names: Sequence[str], *, remedy: str, report: Callable[[str], None]
) -> Named:  # fmt: skip
    """Returns the samples with labels in the order of the network's classes, where theirs have the same names.

    A name of several words with commas between them, as ImageNet's are, is known by each of the words. Upper and lower
    case count only where that tells two classes apart. Labels that are numbers are the network's as they are.

    Args:
        samples: with labels or without.
        names: of the network's classes, in the order of its answers; none: nothing is known of them.
        remedy: where the user can put the classes in order, for messages.
        report: receives what was done, or assumed.

    Raises:
        InputError: some classes have names of the network's, and others do not.
    """
    numbered = samples.classes == tuple(map(str, range(len(samples.classes))))
    if samples.labels is None or not names or numbered:
        return samples
    exact, loose = {name: place for place, name in enumerate(names)}, _loose_places(names)
    places = [exact.get(name, loose.get(name.strip().casefold())) for name in samples.classes]
    unknown = [name for name, place in zip(samples.classes, places, strict=True) if place is None]
    if len(unknown) == len(places):
        report(
            f"note: the classes of {samples.name} ({_shorten(samples.classes)}) are not named as those of the network "
            f"({_shorten(names)}); they are taken in this order. Another: {remedy}"
        )
        return samples
    if unknown:
        raise InputError(
            f"{samples.name}: the network has no class {_shorten(unknown)}, and the others of its names; its classes "
            f"are {_shorten(names)}. Rename or move them away, or say the order of the classes in {remedy}"
        )
    found = np.array([place for place in places if place is not None], np.int64)
    if len(set(found.tolist())) != len(found):
        raise InputError(f"{samples.name}: two of its classes are the same of the network's; merge them")
    report(f"{samples.name}: classes are in the order of the network's own names ({_shorten(names)})")
    return replace(samples, labels=found[samples.labels], classes=tuple(names))


def _loose_places(names: Sequence[str]) -> Mapping[str, int]:
    """Returns every way to write a class, in lower case, that is one class's alone -> its place."""
    ways: dict[str, set[int]] = {}
    for place, name in enumerate(names):
        for way in {name.casefold(), *(part.strip().casefold() for part in name.split(","))}:
            ways.setdefault(way, set()).add(place)
    return {way: next(iter(places)) for way, places in ways.items() if len(places) == 1}


def _shorten(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} ... {len(names)} in all" if len(names) > _SHOWN else shown

"""Labels: from what data calls its classes to the numbers of the network's answers.

Numbers are the network's own, counted from 0. Words have an order: that of ``classes.txt``, one name a line, or the
natural one (``2`` before ``10``). Where numbers stand among words nobody can tell which of the two is meant.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from artifacts import InputError

CLASSES_TXT = "classes.txt"
SHOWN = 12
"""Classes or names in one message."""
_MOST_CLASSES = 1_000_000
_WHOLE = re.compile(r"([+-]?[0-9]+)(\.0*|,0)?")  # spreadsheets and columns with gaps write 3.0, some of them 3,0


def read_text(path: Path) -> str:
    """Reads a text file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: it cannot be read, or is in another encoding.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} cannot be read: it is not in UTF-8 ({error.reason}); save it as UTF-8") from error


def read_classes(path: Path) -> tuple[str, ...]:
    """Reads class names, one a line, in the order of the network's answers.

    Raises:
        InputError: the file is no text, or names a class twice.
    """
    names = tuple(line.strip() for line in read_text(path).splitlines() if line.strip())
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{path} names {', '.join(twice[:SHOWN])} more than once")
    return names


def number_words(source: Path, words: Sequence[str], listed: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns the labels of samples whose classes are written as words, and the classes in the order of the labels.

    Args:
        source: of the words, for messages.
        words: (N,), one a sample, none empty.
        listed: a ``classes.txt``, which decides the order if it is there. If the words are numbers, they count its
            lines from 0.

    Returns:
        (N,) int64, and the names.

    Raises:
        InputError: numbers among words, negative or broken numbers, or words that ``classes.txt`` does not name.
    """
    names = read_classes(listed) if listed.is_file() else None
    matches = {word: _WHOLE.fullmatch(word) for word in dict.fromkeys(words)}
    numbers = {word: int(match[1]) for word, match in matches.items() if match is not None}
    if len(numbers) == len(matches) and not (names is not None and set(words) <= set(names)):
        labels = np.array([numbers[word] for word in words], np.int64)
        classes = name_numbers(source, labels)
        if names is None:
            return labels, classes
        if len(classes) > len(names):
            raise InputError(f"{source}: label {labels.max()}, but {listed} names {len(names)} classes, counted from 0")
        return labels, names
    if names is None:
        _check_words(source, list(matches), list(numbers), listed)
        names = tuple(sorted(matches, key=natural_key))
    elif unknown := sorted(set(matches) - set(names), key=natural_key):
        raise InputError(f"{source}: {listed} does not name {', '.join(unknown[:SHOWN])}")
    position = {name: place for place, name in enumerate(names)}
    return np.array([position[word] for word in words], np.int64), names


def name_numbers(source: Path, labels: np.ndarray) -> tuple[str, ...]:
    """Returns the names of classes that have none: their numbers.

    Args:
        source: of the labels, for messages.
        labels: (N,) int64, the places of the classes among the network's answers.

    Raises:
        InputError: a number that cannot be such a place.
    """
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    if lowest < 0:
        raise InputError(
            f"{source}: {int((labels < 0).sum())} labels are negative ({lowest}, for instance); classes are counted "
            "from 0. Leave samples without a label out"
        )
    if highest >= _MOST_CLASSES:
        raise InputError(f"{source}: label {highest} is no class; expected the places of the classes, counted from 0")
    return tuple(map(str, range(highest + 1)))


def _check_words(source: Path, words: Sequence[str], numbers: Sequence[str], listed: Path) -> None:
    """Refuses numbers as names, where nothing says that they are names."""
    if all(_is_fraction(word) for word in words):
        raise InputError(
            f"{source}: the labels are numbers such as {words[0]}, not classes. For a regression export the network "
            "with --task regression"
        )
    if numbers:
        others = sorted(set(words) - set(numbers), key=natural_key)
        raise InputError(
            f"{source}: some labels are numbers ({', '.join(numbers[:3])}), others are not ({', '.join(others[:3])}); "
            f"write all of them as numbers or as names. If the numbers are names, list all in {listed}, one a line"
        )


def _is_fraction(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def describe_order(source: Path, classes: Sequence[str], class_count: int | None, listed: Path) -> list[str]:
    """Returns what was assumed about the order of named classes, as notes for the user.

    Args:
        source: of the classes.
        classes: their names, in the order of the labels.
        class_count: how many classes the network tells apart; ``None``: not known.
        listed: the ``classes.txt`` in which the user says, or could say, the order.
    """
    notes = []
    if not listed.is_file():
        if list(classes) != sorted(classes):
            notes.append(
                f"{source}: classes are in natural order, {shorten(classes)}; where the network was trained with "
                f"names sorted as text, say so in {listed}, one name a line"
            )
        if alike := [name for name, count in Counter(map(_fold, classes)).items() if count > 1]:
            twins = [name for name in classes if _fold(name) in alike]
            notes.append(f"{source}: the classes {shorten(twins)} are written alike; are they one?")
    if class_count is not None and len(classes) < class_count:
        notes.append(
            f"{source}: {len(classes)} classes for a network that tells {class_count} apart; they are taken as its "
            f"first. If one is missing in between, name all in {listed}"
        )
    return notes


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold().strip()


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Returns a key that sorts numbers in names by their value: ``c2`` before ``c10``."""
    pieces = re.split(r"(\d+)", name)
    return (*((1, int(piece), "") if piece.isdecimal() else (0, 0, piece) for piece in pieces), (2, 0, name))


def describe_counts(labels: np.ndarray, classes: Sequence[str]) -> str:
    """Returns how many samples each class has, for a message."""
    counts = np.bincount(labels, minlength=len(classes))
    return shorten([f"{name} ({count})" for name, count in zip(classes, counts, strict=True)])


def shorten(words: Sequence[str]) -> str:
    """Returns words with commas between them, and how many there are where they are too many for a message."""
    if len(words) <= SHOWN:
        return ", ".join(words)
    return f"{', '.join(words[: SHOWN - 2])} ... {words[-1]}, {len(words)} in all"

"""Folders of images: which files lie in which part and class, and what was left out.

``source/<class>/<image>`` with the parts drawn at random, or ``source/<part>/<class>/<image>``; images may lie in
folders of their own below a class. Without class folders the images are queries without labels. Classes are in natural
order (``2`` before ``10``), or in that of ``source/classes.txt``, one name a line. Whatever is not read is said.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from artifacts import IMAGE_SUFFIXES, InputError
from calibration.data.labels import CLASSES_TXT, SHOWN, describe_counts, describe_order, natural_key, read_classes
from calibration.data.samples import PARTS
from calibration.data.splits import PART_NAMES

_CLUTTER = re.compile(r"\..*|__MACOSX|@eaDir|lost\+found|Thumbs\.db|desktop\.ini", re.IGNORECASE)

_PART_LIKE = re.compile(r"(train|val|dev|test|eval|calib|holdout)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoundImages:
    """The image files of a folder, in a fixed order.

    Attributes:
        paths: (N,) bytes, relative to the folder.
        labels: (N,) int64; ``None`` where there are no class folders.
        classes: class names in the order of the labels.
        parts: (N,) the name of each image's part, ours; ``None`` where the folder has no parts.
        notes: for the user: counts, what was left out, what was assumed.
    """

    paths: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    parts: np.ndarray | None
    notes: tuple[str, ...]


def find_images(source: Path, *, class_count: int | None) -> FoundImages:
    """Lists the images of a folder.

    Args:
        source: the folder.
        class_count: how many classes the network tells apart; ``None``: not known.

    Raises:
        InputError: no images, images in class folders and beside them, parts that cannot be used, or class folders
            that may not be the network's classes.
    """
    left_out: Counter[str] = Counter()
    roots = _find_parts(source, left_out)
    listed: dict[tuple[str, str], list[str]] = {}  # (part, class; "": none) -> paths relative to the source
    for part, folders in roots.items():
        for folder in folders:
            _list_classes(source, folder, part, listed, left_out)
    named = {name for _, name in listed if name}
    with_images = {name for (_, name), paths in listed.items() if name and paths}
    flat = next((paths[0] for (_, name), paths in listed.items() if not name and paths), None)
    if flat and with_images:
        raise InputError(
            f"{source} holds images in class folders and images beside them ({source / flat}, for instance): move "
            "those into a class folder or away; a log of queries without labels is a folder of images alone"
        )
    if not flat and not with_images:
        raise InputError(
            f"{source} holds no images{_describe_left_out(left_out)}: expected {source}/<class>/<image>.png, or "
            f"{source}/<image>.png for queries without labels"
        )
    if "" in roots and with_images:
        _check_layout(source, {name: paths for (_, name), paths in listed.items() if name and paths}, class_count)
    notes: list[str] = []
    classes = _order_classes(source, named, with_images, class_count, notes) if with_images else ()
    order = [(part, name) for part in roots for name in classes or ("",) if (part, name) in listed]
    counts = [len(listed[key]) for key in order]
    if flat and (tables := sorted(source.glob("*.csv"))):
        notes.append(f"{tables[0]} is not read; if it names the classes of the images beside it: --data {tables[0]}")
    if left_out:
        notes.append(f"{source}{_describe_left_out(left_out)}")
    for part in () if "" in roots else roots:
        lacking = [name for name in classes if name in with_images and not listed.get((part, name))]
        notes += [f"{source}: the {part} part has no images of class {', '.join(lacking[:SHOWN])}"] if lacking else []
    labels = None
    if classes:
        labels = np.repeat(np.array([classes.index(name) for _, name in order], np.int64), counts)
        notes.insert(0, f"{len(labels)} images in {source}: {describe_counts(labels, classes)}")
    return FoundImages(
        paths=np.concatenate([np.array([os.fsencode(path) for path in listed[key]], np.bytes_) for key in order]),
        labels=labels,
        classes=classes,
        parts=None if "" in roots else np.repeat(np.array([part for part, _ in order], np.str_), counts),
        notes=tuple(notes),
    )


def _find_parts(source: Path, left_out: Counter[str]) -> Mapping[str, Sequence[str]]:
    """Returns part -> its folders, relative to the source; one part without a name where the folder has none."""
    folders, images = _scan(source, Counter())
    parts = {name: PART_NAMES[name.lower()] for name in folders if name.lower() in PART_NAMES}
    others = [name for name in folders if name not in parts]
    strangers = [name for name in others if _list_images(source, name, Counter())] + images[:1]
    if not parts or (len(parts) == 1 and strangers):
        return {"": [""]}
    if strangers:
        raise InputError(
            f"{source} holds the parts {', '.join(parts)} and beside them {', '.join(strangers[:SHOWN])}: move those "
            "into a part or away"
        )
    if set(parts.values()) == {"train"}:
        raise InputError(
            f"{source} holds {', '.join(parts)} but not all of {', '.join(PARTS)}: name --data "
            f"{source / next(iter(parts))}, and all parts are drawn from it"
        )
    _scan(source, left_out)
    left_out.update(f"the folder {name}" for name in others)
    return {part: [name for name in parts if parts[name] == part] for part in PARTS if part in parts.values()}


def _check_layout(source: Path, classes: Mapping[str, Sequence[str]], class_count: int | None) -> None:
    """Refuses folders that would be taken for classes and are none.

    Args:
        source: the folder that was named.
        classes: those folders -> the paths of their images, relative to the source.
        class_count: how many classes the network tells apart; ``None``: not known.
    """
    if (source / CLASSES_TXT).is_file():
        return
    inner = {
        name: sorted({path.split("/")[1] for path in paths if path.count("/") > 1}) for name, paths in classes.items()
    }  # class -> the folders in it
    if len(classes) == 1:
        _refuse_single(source, *inner.popitem(), class_count)
        return
    parts = {name: match[1].lower() for name in inner if inner[name] and (match := _PART_LIKE.match(name))}
    if len(set(parts.values())) > 1:
        raise InputError(
            f"{source} holds {', '.join(parts)}, which look like parts, with the classes "
            f"{', '.join(inner[next(iter(parts))][:SHOWN])} in them: call them train, val and test"
        )
    if all(inner.values()) and all(folder.lower() in PART_NAMES for folders in inner.values() for folder in folders):
        name, folders = next(iter(inner.items()))
        raise InputError(
            f"{source} holds parts below classes ({name}/{folders[0]}, for instance); expected the classes below the "
            f"parts: {folders[0]}/{name}"
        )


def _refuse_single(source: Path, name: str, folders: Sequence[str], class_count: int | None) -> None:
    """Refuses a folder with a single one in it, where that is not a class."""
    if folders:
        raise InputError(
            f"{source} holds one folder, {name}, and that holds {', '.join(folders[:SHOWN])}: name --data "
            f"{source / name}"
        )
    if class_count not in (None, 1):
        raise InputError(
            f"{source} holds images of one class, {name}, for a network that tells {class_count} apart, and nothing "
            f"can be learnt from that. For queries without labels name --data {source / name}; if {name} is one of the "
            f"classes, name all in {source / CLASSES_TXT}, one a line"
        )


def _list_classes(
    source: Path, root: str, part: str, listed: dict[tuple[str, str], list[str]], left_out: Counter[str]
) -> None:
    """Adds the images below a folder: (part, class) -> their paths; those beside the class folders under no name."""
    folders, images = _scan(source / root, left_out)
    listed.setdefault((part, ""), []).extend(os.path.join(root, name) for name in images)  # noqa: PTH118
    for name in folders:
        listed.setdefault((part, name), []).extend(_list_images(source, os.path.join(root, name), left_out))  # noqa: PTH118


def _list_images(
    source: Path, folder: str, left_out: Counter[str], above: frozenset[tuple[int, int]] = frozenset()
) -> list[str]:
    """Returns the paths of all images below a folder, relative to the source.

    Args:
        source: the folder that was named.
        folder: relative to it.
        left_out: takes what is no image.
        above: the identities of the folders that it lies in; a link back to one of them would count images twice.
    """
    above = above | {_identify(source), _identify((source / folder).parent)}
    here = _identify(source / folder)
    if here in above:
        left_out[f"the link {folder}, which leads back to a folder that it lies in"] += 1
        return []
    folders, images = _scan(source / folder, left_out)
    paths = [os.path.join(folder, name) for name in images]  # noqa: PTH118 - a Path each would fill the memory
    for name in folders:
        paths += _list_images(source, os.path.join(folder, name), left_out, above | {here})  # noqa: PTH118
    return paths


def _identify(folder: Path) -> tuple[int, int]:
    try:
        status = folder.stat()
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error
    return status.st_dev, status.st_ino


def _scan(folder: Path, left_out: Counter[str]) -> tuple[list[str], list[str]]:
    """Returns the names of the sub-folders and of the image files of a folder, and counts what is neither."""
    folders, images = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122
                if _CLUTTER.fullmatch(entry.name):
                    if entry.is_dir() or suffix in IMAGE_SUFFIXES:
                        left_out[entry.name] += 1
                elif entry.is_dir():
                    folders.append(entry.name)
                elif suffix in IMAGE_SUFFIXES and (entry.is_file() or entry.is_symlink()):
                    images.append(entry.name)
                elif suffix in IMAGE_SUFFIXES:
                    left_out[f"{entry.name}, which is no regular file"] += 1
                elif entry.name != CLASSES_TXT:
                    left_out[f"{suffix or entry.name} files"] += 1
    except OSError as error:
        raise InputError(f"{folder} cannot be listed: {error.strerror or error}") from error
    return sorted(folders), sorted(images)


def _describe_left_out(left_out: Counter[str]) -> str:
    if not left_out:
        return ""
    listed = [f"{name} ({count})" if count > 1 else name for name, count in sorted(left_out.items())]
    more = f" and {len(listed) - SHOWN} more kinds" if len(listed) > SHOWN else ""
    return f": left out {', '.join(listed[:SHOWN])}{more}"


def _order_classes(
    source: Path, named: set[str], with_images: set[str], class_count: int | None, notes: list[str]
) -> tuple[str, ...]:
    """Returns the classes in the order of the network's answers.

    Args:
        source: the folder, for ``classes.txt`` and for messages.
        named: every class folder.
        with_images: those that hold images.
        class_count: how many classes the network tells apart, or ``None``.
        notes: takes what was assumed.
    """
    empty = sorted(named - with_images, key=natural_key)
    if (source / CLASSES_TXT).is_file():
        classes = read_classes(source / CLASSES_TXT)
        if unknown := sorted(with_images - set(classes), key=natural_key):
            raise InputError(
                f"{source}: {source / CLASSES_TXT} does not name {', '.join(unknown[:SHOWN])}; add them at the place "
                "of their class, or move them away"
            )
        empty = [name for name in classes if name not in with_images]
    elif empty and class_count == len(with_images):
        notes.append(f"{source}: left out {', '.join(empty)}: no images there, and the network has as many classes")
        return tuple(sorted(with_images, key=natural_key))
    else:
        classes = tuple(sorted(named, key=natural_key))
        numbers = set(map(str, range(class_count or 0)))
        if "0" in named and named <= numbers and len(named) < len(numbers):
            classes = tuple(sorted(numbers, key=natural_key))  # numbers from 0 are the places, also with gaps
            empty = [name for name in classes if name not in with_images]
    if empty:
        notes.append(f"{source}: no images of class {', '.join(empty[:SHOWN])}; the class keeps its place")
    notes += describe_order(source, classes, class_count, source / CLASSES_TXT)
    return classes

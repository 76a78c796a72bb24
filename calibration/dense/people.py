"""People and their joints, as the files of the field tell them: COCO, MPII, and one list of crops per part.

``annotations/person_keypoints_<part>.json`` with ``images/<part>`` or ``<part>`` (COCO); ``annot/<part>.json`` with
``images`` (MPII, as the usual tool kits convert it); ``keypoints_<part>.json`` with ``images/<part>``: ``joint_names``,
``flip_pairs``, ``head_segment`` (two joints) and ``people``, each an ``image`` and its ``keypoints`` [x, y, visible].

PCKh measures in lengths of a head. COCO marks no head top: half the way from the middle of the shoulders to the middle
of the hips stands in for it there, and people without these four joints are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import InputError
from calibration.data.splits import PART_NAMES

_COCO_FLIPS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
_COCO_TORSO = (5, 6, 11, 12)  # shoulders and hips
_MPII_NAMES = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax", "upper_neck",
    "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
)  # fmt: skip
_MPII_FLIPS = ((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13))
_MPII_HEAD = (8, 9)
_MPII_SIDE = 200.0  # pixels: the unit of a person's scale there
_AROUND = 1.25  # of a person's box that is shown to the network
_LEAST_HEAD = 1.0  # pixel
_LAYOUTS = (
    "annotations/person_keypoints_<part>.json (COCO), annot/<part>.json (MPII), or keypoints_<part>.json with images/"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Person:
    """One person in one picture.

    Attributes:
        image: path relative to the folder.
        part: ours.
        joints: (J, 3) float32: x, y in pixels of the picture, visible or not.
        head: length of the head in pixels of the picture.
        box: (left, top, width, height) of what is shown, before it is given the network's shape; ``None``: all of it.
    """

    image: str
    part: str
    joints: np.ndarray
    head: float
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundPeople:
    """The people of a folder.

    Attributes:
        people: in a fixed order.
        joint_names: in the order of the network's heat maps.
        flip_pairs: joints that change their names in a mirror image.
        notes: for the user.
    """

    people: tuple[Person, ...]
    joint_names: tuple[str, ...]
    flip_pairs: tuple[tuple[int, int], ...]
    notes: tuple[str, ...]


def find_people(source: Path) -> FoundPeople:
    """Lists the people of a folder.

    Raises:
        InputError: no file of a known form, or one that does not hold what it should.
    """
    for pattern, read in (
        ("keypoints_*.json", _read_crops),
        ("annotations/person_keypoints_*.json", _read_coco),
        ("annot/*.json", _read_mpii),
    ):
        files = {path: _part_of(path) for path in sorted(source.glob(pattern))}
        if files := {path: part for path, part in files.items() if part}:
            return _gather(source, files, read)
    raise InputError(f"--data {source}: a pose network needs images and places of joints: {_LAYOUTS}")


def _part_of(path: Path) -> str:
    """Returns our name of the part that a file is of; empty where its name says none."""
    word = path.stem.rpartition("_")[2].lower().rstrip("0123456789")
    return PART_NAMES.get(word, "")


Reader = Callable[[Path, Any, str], tuple[Iterator[Person | None], tuple[str, ...], tuple[tuple[int, int], ...]]]


def _gather(source: Path, files: dict[Path, str], read: Reader) -> FoundPeople:
    people: list[Person] = []
    kinds: set[tuple[tuple[str, ...], tuple[tuple[int, int], ...]]] = set()
    left_out = 0
    for path, part in files.items():
        try:
            found, names, flips = read(source, json.loads(path.read_text(encoding="utf-8")), part)
            for person in found:
                if person is None:
                    left_out += 1
                else:
                    people.append(person)
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise InputError(f"{path} cannot be read as places of joints: {error!r}; expected {_LAYOUTS}") from error
        kinds.add((names, flips))
    if len(kinds) != 1:
        raise InputError(f"{source}: {', '.join(path.name for path in files)} do not name the same joints")
    if not people:
        raise InputError(
            f"{source}: {', '.join(path.name for path in files)} hold no people whose head can be measured"
        )
    ((names, flips),) = kinds
    notes = [f"{len(people)} people with {len(names)} joints in {source}"]
    if left_out:
        notes.append(f"{source}: left out {left_out} people without visible joints, or whose head cannot be measured")
    return FoundPeople(people=tuple(people), joint_names=names, flip_pairs=flips, notes=tuple(notes))


def _read_crops(source: Path, plain: Any, part: str) -> tuple[Iterator[Person | None], Any, Any]:
    neck, top = plain["head_segment"]
    folders = {path.name.lower(): path.name for path in (source / "images").glob("*") if path.is_dir()}
    folder = next((folders[name] for name in folders if PART_NAMES.get(name) == part), "")

    def each() -> Iterator[Person | None]:
        for person in plain["people"]:
            joints = np.array(person["keypoints"], np.float32).reshape(-1, 3)
            ends = joints[[neck, top]]
            head = float(np.linalg.norm(ends[0, :2] - ends[1, :2])) if (ends[:, 2] > 0).all() else 0.0
            image = "/".join(filter(None, ("images", folder, person["image"])))
            yield _make(image, part, joints, head)

    return each(), tuple(plain["joint_names"]), tuple((int(a), int(b)) for a, b in plain["flip_pairs"])


def _read_coco(source: Path, plain: Any, part: str) -> tuple[Iterator[Person | None], Any, Any]:
    category = next(item for item in plain["categories"] if item["name"] == "person")
    files = {item["id"]: item["file_name"] for item in plain["images"]}
    folders = [
        path.relative_to(source).as_posix()
        for parent in (source / "images", source)
        for path in sorted(parent.glob("*"))
        if path.is_dir() and PART_NAMES.get(path.name.lower().rstrip("0123456789")) == part
    ]
    folder = folders[0] if folders else "images"

    def each() -> Iterator[Person | None]:
        for item in plain["annotations"]:
            if item.get("iscrowd") or not item.get("num_keypoints"):
                continue
            joints = np.array(item["keypoints"], np.float32).reshape(-1, 3)
            joints[:, 2] = joints[:, 2] > 0
            torso = joints[list(_COCO_TORSO)]
            head = 0.0
            if (torso[:, 2] > 0).all():
                head = 0.5 * float(np.linalg.norm(torso[:2, :2].mean(axis=0) - torso[2:, :2].mean(axis=0)))
            yield _make(f"{folder}/{files[item['image_id']]}", part, joints, head, tuple(item["bbox"]))

    return each(), tuple(category["keypoints"]), _COCO_FLIPS


def _read_mpii(source: Path, plain: Any, part: str) -> tuple[Iterator[Person | None], Any, Any]:
    del source

    def each() -> Iterator[Person | None]:
        for item in plain:
            places = np.array(item["joints"], np.float32).reshape(-1, 2)
            shown = np.array(item["joints_vis"], np.float32).reshape(-1, 1) > 0
            joints = np.concatenate([places, shown], axis=1).astype(np.float32)
            ends = joints[list(_MPII_HEAD)]
            head = float(np.linalg.norm(ends[0, :2] - ends[1, :2])) if (ends[:, 2] > 0).all() else 0.0
            side = float(item["scale"]) * _MPII_SIDE
            x, y = item["center"]
            box = (x - side / 2, y - side / 2, side, side)
            yield _make(f"images/{item['image']}", part, joints, head, box)

    return each(), _MPII_NAMES, _MPII_FLIPS


def _make(
    image: str, part: str, joints: np.ndarray, head: float, box: Sequence[float] | None = None
) -> Person | None:  # fmt: skip
    """Returns a person; ``None`` for one of whom nothing can be measured."""
    if head < _LEAST_HEAD or not (joints[:, 2] > 0).any():
        return None
    joints[joints[:, 2] <= 0] = 0
    if box is None:
        return Person(image=image, part=part, joints=joints, head=head)
    left, top, width, height = map(float, box)
    return Person(image=image, part=part, joints=joints, head=head, box=(left, top, width, height))


def frame_person(box: Sequence[float], shape: float) -> tuple[int, int, int, int]:
    """Returns what is shown of a picture: a box with some room around it, in the network's shape.

    Args:
        box: left, top, width, height of the person, in pixels.
        shape: width over height of the network's input.

    Returns:
        left, top, right, bottom in whole pixels; it may reach beyond the picture.
    """
    left, top, width, height = box
    high = max(height, width / shape, 2.0) * _AROUND
    wide = high * shape
    x, y = left + width / 2 - wide / 2, top + height / 2 - high / 2
    return round(x), round(y), round(x + wide), round(y + high)

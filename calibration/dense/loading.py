"""Loading dense data: images and masks for segmentation, images and joints for pose."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from artifacts import IMAGE_SUFFIXES, InputError, Model, ModelSpec, Preprocessing, image_size, locate_points
from calibration.data.files import FileImages, FolderFiles
from calibration.data.image_input import ImageInput, image_input_of
from calibration.data.labels import CLASSES_TXT, read_classes
from calibration.data.samples import PARTS
from calibration.data.splits import Splitting, settle_parts
from calibration.dense.joints import Joints
from calibration.dense.layouts import find_masks
from calibration.dense.masks import Masks
from calibration.dense.people import FoundPeople, Person, find_people, frame_person
from calibration.dense.samples import DenseImages

_CLASSES_JSON = "classes.json"

Report = Callable[[str], None]


def has_answers(source: Path) -> bool:
    """Tells whether a folder holds more than images: masks or places of joints, in one of the known layouts, or what
    might be meant as such; images that lie in it directly are queries without labels."""
    if not source.is_dir():
        return False
    return not any(path.suffix.lower() in IMAGE_SUFFIXES for path in source.iterdir())


def load_dense(source: Path, model: Model, *, splitting: Splitting, report: Report) -> DenseImages:
    """Loads images with the right answers of a dense network.

    Args:
        source: the folder.
        model: of the task ``segmentation`` or ``pose``.
        splitting: decides about the parts that the data does not name.
        report: receives notes for the user: counts, what was left out.

    Raises:
        InputError: the folder has none of the known layouts, or other classes or joints than the network.
    """
    want, count = image_input_of(model), _count_classes(model.spec)
    if not source.is_dir():
        raise InputError(f"--data {source}: expected a folder of images and {model.spec.task} answers")
    load = _load_masks if model.spec.task == "segmentation" else _load_people
    samples = load(source, want, count, splitting, report)
    if want.stated:
        return samples
    images = samples.images.with_own_normalisation()
    return DenseImages(images=images, truth=samples.truth, classes=samples.classes)


def _count_classes(spec: ModelSpec) -> int:
    """Returns the classes or joints that a network tells apart: by a family's settings, else by its answers."""
    return int(spec.settings.get("classes") or spec.full.output(spec.full.answers[0]).row_shape[0])


def _load_masks(
    source: Path, want: ImageInput, count: int, splitting: Splitting, report: Report
) -> DenseImages:  # fmt: skip
    found = find_masks(source)
    for note in found.notes:
        report(note)
    classes, void = read_mask_classes(source)
    if classes and len(classes) != count:
        raise InputError(
            f"{source} names {len(classes)} classes ({', '.join(classes)}), and the network tells {count} apart. "
            f"Export one with --classes {len(classes)}"
        )
    images = _images(source, _Listed(paths=found.images, parts=found.parts), want, splitting, report)
    masks = Masks(
        files=FolderFiles(root=source, paths=found.masks), wanted=want.preprocessing, class_count=count, void=void
    )
    return DenseImages(images=images, truth=masks, classes=classes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Listed:
    """The images of a folder: paths (N,) bytes, our names of their parts, and what is cut out of each."""

    paths: np.ndarray
    parts: np.ndarray | None
    boxes: np.ndarray | None = None


def _images(source: Path, listed: _Listed, want: ImageInput, splitting: Splitting, report: Report) -> FileImages:
    paths, parts = listed.paths, listed.parts
    named = None if parts is None else {part: np.flatnonzero(parts == part) for part in PARTS}
    names = [os.fsdecode(path) for path in paths]
    settled, seed = settle_parts(
        source.name, named, None, count=len(paths), splitting=replace(splitting, names=names), report=report
    )
    return FileImages(
        name=source.name, files=FolderFiles(root=source, paths=paths), labels=None, classes=(), parts=settled,
        input=want, split_seed=seed, boxes=listed.boxes,
    )  # fmt: skip


def read_mask_classes(source: Path) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Returns the names of the classes and the values of pixels of no class, as a folder says them.

    ``classes.json`` holds ``classes`` and, where a value means none, ``ignore_index``; ``classes.txt`` one name a line.
    """
    if (source / _CLASSES_JSON).is_file():
        try:
            plain = json.loads((source / _CLASSES_JSON).read_text(encoding="utf-8"))
            names, ignored = [str(name) for name in plain["classes"]], plain.get("ignore_index")
            void = () if ignored is None else (int(ignored),)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'{source / _CLASSES_JSON}: expected {{"classes": [...], "ignore_index": 11}}, got {error!r}'
            ) from error
        if void and void[0] < len(names) - 1:
            raise InputError(
                f"{source / _CLASSES_JSON}: ignore_index {void[0]} lies between classes; a value that means none comes "
                "behind them, so that classes are numbered from 0"
            )
        return tuple(name for place, name in enumerate(names) if place not in void), void
    return (read_classes(source / CLASSES_TXT) if (source / CLASSES_TXT).is_file() else ()), ()


def _load_people(
    source: Path, want: ImageInput, count: int, splitting: Splitting, report: Report
) -> DenseImages:  # fmt: skip
    found = find_people(source)
    for note in found.notes:
        report(note)
    if len(found.joint_names) != count:
        raise InputError(
            f"{source} names {len(found.joint_names)} joints ({', '.join(found.joint_names)}), and the network looks "
            f"for {count}. Export one with --classes {len(found.joint_names)}"
        )
    people = found.people
    shape = want.preprocessing.width / want.preprocessing.height
    framed = [None if person.box is None else frame_person(person.box, shape) for person in people]
    whole = all(frame is None for frame in framed)
    boxes = None if whole else np.array(framed, np.int32)
    listed = _Listed(
        paths=np.array([os.fsencode(person.image) for person in people], np.bytes_),
        parts=np.array([person.part for person in people], np.str_), boxes=boxes,
    )  # fmt: skip
    images = _images(source, listed, want, splitting, report)
    places = _place(source, people, framed, want.preprocessing)
    return DenseImages(images=images, truth=_joints(found, places), classes=found.joint_names)


def _joints(found: FoundPeople, places: np.ndarray) -> Joints:
    return Joints(places=places, flip_pairs=found.flip_pairs)


def _place(
    source: Path, people: Sequence[Person], framed: Sequence[tuple[int, int, int, int] | None], wanted: Preprocessing
) -> np.ndarray:
    """Returns (N, J, 5) float32: the joints in the network's input."""
    sizes: dict[str, tuple[int, int]] = {}
    places = np.zeros((len(people), len(people[0].joints), 5), np.float32)
    for row, (person, frame) in enumerate(zip(people, framed, strict=True)):
        if frame is None:
            if person.image not in sizes:
                sizes[person.image] = image_size(source / person.image)
            size, corner = sizes[person.image], (0, 0)
        else:
            size, corner = (frame[2] - frame[0], frame[3] - frame[1]), frame[:2]
        inside = person.joints[:, :2] - np.array(corner, np.float32)
        places[row, :, :2] = locate_points(inside, size, wanted)
        ends = locate_points(np.array([[0.0, 0.0], [person.head, person.head]]), size, wanted)
        seen = ((places[row, :, :2] >= 0) & (places[row, :, :2] < 1)).all(axis=1)
        places[row, :, 2] = (person.joints[:, 2] > 0) & seen
        if not places[row, :, 2].any():
            raise InputError(
                f"{person.image}: no joint of the person lies within what the network is shown of it "
                f"({wanted.describe()}). Export it with a --preprocess that does not crop: resize squash"
            )
        places[row, :, 3:] = ends[1] - ends[0]
    return places

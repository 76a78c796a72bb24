"""Classes named as the network names them: labels follow its order, half a match is refused, none is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from artifacts import InputError
from calibration.data.arrays import ArrayImages
from calibration.data.class_names import follow_network
from calibration.data.files import FileImages
from calibration.data.image_input import image_input
from calibration.data.loading import load_samples

NETWORK = ("zebra, Equus", "Crane", "crane", "ant")


def write_classes(folder: Path, *names: str) -> ArrayImages | FileImages:
    for shade, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for index in range(5):
            Image.new("L", (4, 4), 10 * shade + index).save(folder / name / f"{index}.png")
    return load_samples(folder, image_input((1, 4, 4)))


def follow(samples: ArrayImages | FileImages, names: tuple[str, ...] = NETWORK) -> tuple[object, list[str]]:
    said: list[str] = []
    return follow_network(samples, names, remedy="classes.txt", report=said.append), said


def test_labels_follow_the_order_of_the_network(tmp_path: Path) -> None:
    samples = write_classes(tmp_path, "ant", "Zebra", "crane")
    found, said = follow(samples)
    assert found.classes == NETWORK
    shades = samples.pixels(np.arange(15))[:, 0, 0, 0] // 10
    assert [{0: 3, 1: 0, 2: 2}[int(shade)] for shade in shades] == found.targets(np.arange(15)).tolist()
    assert said == [f"{tmp_path.name}: classes are in the order of the network's own names ({', '.join(NETWORK)})"]
    assert found.digests()["labels"] != samples.digests()["labels"]


def test_other_names_are_taken_in_their_own_order_and_said(tmp_path: Path) -> None:
    samples = write_classes(tmp_path, "n01", "n02")
    found, said = follow(samples)
    assert found is samples
    assert "not named as those of the network" in said[0]
    assert "classes.txt" in said[0]


@pytest.mark.parametrize("names", [("ant", "bee"), ("zebra", "Equus"), ("ant", "CRANE")])
def test_half_a_match_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="the network has no class|two of its classes"):
        follow(write_classes(tmp_path, *names))


def test_numbers_and_queries_and_unnamed_networks_stay_as_they_are(tmp_path: Path) -> None:
    images, labels = np.zeros((20, 4, 4), np.uint8), np.arange(20) % 2
    np.savez(tmp_path / "numbers.npz", images=images, labels=labels)
    numbers = load_samples(tmp_path / "numbers.npz", image_input((1, 4, 4)))
    assert follow(numbers, ("1", "0"))[0] is numbers
    named = write_classes(tmp_path / "named", "ant", "crane")
    assert follow(named, ())[0] is named
    queries = replace(named, labels=None, classes=())
    assert follow(queries)[0] is queries
    turns = write_classes(tmp_path / "turns", "0", "90", "180", "270")
    assert turns.classes == ("0", "90", "180", "270")
    assert follow(turns, ("0", "180", "270", "90"))[0].targets(np.array([5, 10])).tolist() == [3, 1]

"""Labels: what data calls its classes never shifts, and what can be meant in two ways is refused."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts import InputError
from calibration.data.arrays import ArrayImages
from calibration.data.files import FileImages
from calibration.data.image_input import image_input
from calibration.data.labels import natural_key, number_words, read_classes
from calibration.data.loading import load_samples
from calibration.data.samples import PARTS

WANTED = image_input((1, 6, 5))
FOUR = [f"i/{number}.png" for number in range(4)]


def write(root: Path, count: int = 4) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("L", (5, 6), number).save(root / f"{number}.png")


def load(source: Path, class_count: int | None = None) -> tuple[ArrayImages | FileImages, str]:
    said: list[str] = []
    found = load_samples(source, WANTED, class_count=class_count, report=said.append)
    return found, "\n".join(said)


def table(folder: Path, *lines: str) -> Path:
    """Writes four images and a .csv of such lines."""
    write(folder / "i")
    (folder / "list.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "list.csv"


@pytest.mark.parametrize(
    ("words", "labels", "classes"),
    [
        (["3", "0", "1"], [3, 0, 1], ("0", "1", "2", "3")),  # a gap shifts nothing
        (["3.0", "0.", "1"], [3, 0, 1], ("0", "1", "2", "3")),  # a column with gaps in pandas
        (["3,0", "0,0", "1"], [3, 0, 1], ("0", "1", "2", "3")),  # the same with decimal commas
        (["b", "a10", "a9"], [2, 1, 0], ("a9", "a10", "b")),
    ],
)
def test_numbers_are_the_networks_and_words_have_an_order(
    tmp_path: Path, words: list[str], labels: list[int], classes: tuple[str, ...]
) -> None:
    found, named = number_words(tmp_path, words, tmp_path / "classes.txt")
    assert (found.tolist(), named) == (labels, classes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["1", "cat"], "some labels are numbers .1., others are not .cat."),
        (["0", "NaN"], "others are not .NaN."),
        (["0", "-1"], "1 labels are negative .-1, for instance."),
        (["0.5", "1.5"], "--task regression"),
        (["1", "10000000"], "label 10000000 is no class"),
    ],
)
def test_what_can_be_no_class_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        number_words(tmp_path, words, tmp_path / "classes.txt")


def test_classes_txt_of_any_editor(tmp_path: Path) -> None:
    listed = tmp_path / "classes.txt"
    listed.write_bytes("\ufeffb\r\na\r\n".encode())
    assert read_classes(listed) == ("b", "a")
    assert number_words(tmp_path, ["1", "0"], listed) == (pytest.approx([1, 0]), ("b", "a")), "its lines from 0"
    with pytest.raises(InputError, match="label 2, but .* names 2 classes, counted from 0"):
        number_words(tmp_path, ["2"], listed)
    listed.write_text("a\nb\n", encoding="utf-16")
    with pytest.raises(InputError, match="save it as UTF-8"):
        read_classes(listed)


def test_digits_of_any_script_and_superscripts_have_an_order() -> None:
    assert sorted(["m²", "m", "²", "٣", "c2"], key=natural_key) == ["٣", "c2", "m", "m²", "²"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("path,class", "i/0.png,1"), "there is no column label, and class are unknown"),
        (("i/0.png,1", "i/1.png,0"), "found .* in the first line; name the columns there"),
        (("path,label,label", "i/0.png,1,0"), "column label twice"),
        (("path,label,part,split", "i/0.png,1,train,test"), "column part twice"),
        (("path,label", "i/0.png,1", "i/1.png,0,2"), "line 3: 3 cells for 2 columns"),
        (("path,label", "i/0.png,1", "./i/0.png,0"), "lines 2 and 3: i/0.png is there twice, as '1' and '0'"),
        (("path,label,part", "i/0.png,1,train", "i/0.png,1,test"), "in 'train' and '1' in 'test'"),
        (("path,label", 'i/0.png,"1', 'i/1.png,"0'), "is a quote open"),
        (("path,label", "i,1"), "does not exist, or is no file"),
        (("path,label", '"' + "x" * 200_000), "is a quote not closed"),
    ],
)
def test_a_list_that_says_two_things_is_refused(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load(table(tmp_path, *lines))


def test_a_list_as_people_have_it(tmp_path: Path) -> None:
    lines = (
        "id,path,label,split,comment", r'7,i\0.png,1.0,train,"two', 'lines"', "7,i/1.png,0,train,",
        "8,i/1.png,0,train,", "9,i/2.png,1,val,", "9,i/3.png,1,test,",
    )  # fmt: skip
    samples, said = load(table(tmp_path, *lines))
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 0, 0, 1, 1], "a file may count twice in training"
    assert {part: len(samples.indices_of(part)) for part in PARTS} == {"train": 3, "calibrate": 1, "test": 1}
    assert "the columns id, comment are not read" in said
    _, said = load(
        table(tmp_path / "gap", "path,label", *(f"{path},{name}" for path, name in zip(FOUR, "aabb", strict=True))), 3
    )
    assert "2 classes for a network that tells 3 apart" in said


def test_a_list_that_excel_wrote(tmp_path: Path) -> None:
    lines = ("\ufeffsep=;", "Path;Label", r"i\0.png;1", r"i\1.png;0", r"i\2.png;1", r"i\3.png;0")
    samples, _ = load(table(tmp_path, *lines))
    assert samples.labels is not None
    assert samples.labels.tolist() == [1, 0, 1, 0]
    with pytest.raises(InputError, match=r"line 7: .*9\.png does not exist"):
        load(table(tmp_path / "again", *lines, r"i\9.png;0"))


def parts(root: Path, *names: str) -> None:
    for name in names:
        for kind in "ab":
            write(root / name / kind)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: parts(root, "train_set", "val_set"), "train_set, val_set, which look like parts"),
        (lambda root: parts(root, "data"), r"holds one folder, data, and that holds a, b: name --data .*/data"),
        (lambda root: parts(root / "data", "train", "val"), r"holds one folder, data, .*: name --data .*/data"),
        (lambda root: [write(root / kind / "train") for kind in "ab"], "expected the classes below the parts: train/a"),
        (lambda root: write(root / "images"), r"images of one class, images, .* without labels name --data .*/images"),
        (lambda root: parts(root, "train"), r"not all of .*: name --data .*/train"),
    ],
)  # fmt: skip
def test_folders_that_are_no_classes_are_not_taken_for_them(
    tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        load(tmp_path, 2)


def test_twins_are_named_and_pipes_left_out(tmp_path: Path) -> None:
    for name in ("Cat", "cat", "dog"):
        write(tmp_path / name)
    os.mkfifo(tmp_path / "dog" / "pipe.png")
    samples, said = load(tmp_path)
    assert len(samples) == 12
    assert "the classes Cat, cat are written alike" in said
    assert "left out pipe.png, which is no regular file" in said


def test_labels_counted_from_one_million_do_not_fill_the_memory(tmp_path: Path) -> None:
    np.savez(tmp_path / "far.npz", images=np.zeros((2, 1, 6, 5), np.uint8), labels=np.array([0, 10**12]))
    with pytest.raises(InputError, match="label 1000000000000 is no class"):
        load(tmp_path / "far.npz")
    np.savez(tmp_path / "part.npz", images=np.zeros((5, 1, 6, 5), np.uint8), labels=np.arange(5), part=np.arange(5))
    assert "the arrays part are not read" in load(tmp_path / "part.npz")[1]

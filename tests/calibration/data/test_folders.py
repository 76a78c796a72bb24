"""Folders: labels never shift and pictures are never left out in silence."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from artifacts import InputError, UsageError
from calibration.data.files import FileImages
from calibration.data.image_input import image_input
from calibration.data.labels import natural_key
from calibration.data.loading import load_samples
from calibration.data.samples import PARTS
from calibration.data.splits import PartShare, Splitting

WANTED = image_input((1, 6, 5))


def write(root: Path, count: int = 3, *, suffix: str = ".png") -> None:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("L", (5, 6), number).save(root / f"{number:03}{suffix}")


def load(source: Path, **options: Any) -> tuple[FileImages, str]:
    said: list[str] = []
    found = load_samples(source, WANTED, report=said.append, **options)
    assert isinstance(found, FileImages)
    return found, "\n".join(said)


def counts(samples: FileImages) -> dict[str, int]:
    return {name: int((samples.labels == place).sum()) for place, name in enumerate(samples.classes)}


def test_classes_are_in_natural_order_with_their_counts(tmp_path: Path) -> None:
    for number in (0, 1, 2, 10):
        write(tmp_path / f"c{number}", number + 1)
    samples, said = load(tmp_path)
    assert samples.classes == ("c0", "c1", "c2", "c10")
    assert "c0 (1), c1 (2), c2 (3), c10 (11)" in said
    assert "natural order" in said
    assert "classes.txt" in said
    assert sorted(["b10", "b2", "a", "B2", "b02"], key=natural_key) == ["B2", "a", "b02", "b2", "b10"]


def test_folders_that_are_numbers_from_0_are_places_also_with_gaps(tmp_path: Path) -> None:
    for number in (0, 1, 4, 10):
        write(tmp_path / str(number), number + 1)
    samples, said = load(tmp_path, class_count=12)
    assert samples.classes == tuple(map(str, range(12)))
    assert counts(samples) == {str(place): place + 1 if place in (0, 1, 4, 10) else 0 for place in range(12)}
    assert "no images of class 2, 3, 5" in said
    unknown, _ = load(tmp_path, class_count=4)  # as many folders as classes: they are names
    assert counts(unknown) == {"0": 1, "1": 2, "4": 5, "10": 11}


def test_a_table_beside_queries_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "train.csv").write_text("path,label\n000.png,0\n")
    samples, said = load(tmp_path)
    assert samples.labels is None
    assert f"--data {tmp_path / 'train.csv'}" in said


def test_a_class_without_images_keeps_its_place(tmp_path: Path) -> None:
    for name in ("a", "c"):
        write(tmp_path / name)
    (tmp_path / "b").mkdir()
    samples, said = load(tmp_path, class_count=3)
    assert counts(samples) == {"a": 3, "b": 0, "c": 3}
    assert "no images of class b" in said
    samples, said = load(tmp_path, class_count=2)
    assert counts(samples) == {"a": 3, "c": 3}
    assert "left out b" in said


def test_fewer_classes_than_the_network_has_are_said(tmp_path: Path) -> None:
    for name in ("a", "c"):
        write(tmp_path / name)
    _, said = load(tmp_path, class_count=3)
    assert "2 classes for a network that tells 3 apart" in said
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    samples, said = load(tmp_path, class_count=3)
    assert counts(samples) == {"a": 3, "b": 0, "c": 3}
    (tmp_path / "classes.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match=r"classes\.txt does not name c"):
        load(tmp_path)
    (tmp_path / "classes.txt").write_text("a\nb\na\nc\n")
    with pytest.raises(InputError, match="names a more than once"):
        load(tmp_path)


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    for name in ("a", "b", ".ipynb_checkpoints", "__MACOSX"):
        write(tmp_path / name)
    write(tmp_path / "b" / "deeper" / "still", 2, suffix=".tif")
    for name in ("notes.txt", "list.xml", "more.xml"):
        (tmp_path / "a" / name).write_text("")
    samples, said = load(tmp_path)
    assert counts(samples) == {"a": 3, "b": 5}, "images may lie deeper below their class"
    for word in (".ipynb_checkpoints", "__MACOSX", ".txt files", ".xml files (2)"):
        assert word in said


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        ({"train": 4, "val": 4}, {"train": 8, "calibrate": 4, "test": 4}),
        ({"train": 4, "test": 4}, {"train": 8, "calibrate": 4, "test": 4}),
        ({"Train": 4, "Valid": 2, "Test": 3}, {"train": 8, "calibrate": 4, "test": 6}),
        ({"train": 4, "calibrate": 2, "test": 3}, {"train": 8, "calibrate": 4, "test": 6}),
        ({"calibrate": 2, "test": 3}, {"train": 0, "calibrate": 4, "test": 6}),
    ],
)
def test_parts_by_the_names_that_people_give_them(
    tmp_path: Path, folders: dict[str, int], expected: dict[str, int]
) -> None:
    for part, count in folders.items():
        for name in ("a", "b"):
            write(tmp_path / part / name, count)
    samples, said = load(tmp_path)
    assert {part: len(samples.indices_of(part)) for part in PARTS} == expected
    assert samples.classes == ("a", "b")
    halved = len(folders) == 2 and "train" in folders
    assert ("half of its 8 " in said) is halved
    assert samples.split_seed == (0 if halved else None)
    for part in PARTS:
        assert len({*samples.labels[samples.indices_of(part)]}) in (0, 2), "every class is in every part"


def test_a_share_of_a_part_becomes_another(tmp_path: Path) -> None:
    for part, count in {"train": 10, "test": 10}.items():
        for name in ("a", "b"):
            write(tmp_path / part / name, count)
    share = PartShare.parse("calibrate=test:0.3")
    samples, _ = load(tmp_path, splitting=Splitting(share=share, seed=4))
    assert {part: len(samples.indices_of(part)) for part in PARTS} == {"train": 20, "calibrate": 6, "test": 14}
    assert np.bincount(samples.labels[samples.indices_of("calibrate")]).tolist() == [3, 3]
    assert samples.split_seed == 4
    held_out = np.concatenate([samples.indices_of("calibrate"), samples.indices_of("test")])
    assert sorted(held_out) == list(range(20, 40))
    moved, _ = load(tmp_path, splitting=Splitting(share=PartShare.parse("val=train:0.5")))
    assert {part: len(moved.indices_of(part)) for part in PARTS} == {"train": 10, "calibrate": 10, "test": 20}
    for wrong in ("calibrate", "calibrate=test", "calibrate=test:2", "calibrate=calibrate:0.5", "x=test:0.5"):
        with pytest.raises(UsageError, match=f"--parts {wrong}"):
            PartShare.parse(wrong)
    with pytest.raises(UsageError, match="unknown part of the data 'tests'. Did you mean 'test'.*Known: .*calibrate"):
        PartShare.parse("calibrate=tests:0.5")


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "bus", "car"):
        write(tmp_path / name, 5)
    assert counts(load(tmp_path)[0]) == {"bus": 5, "car": 5, "train": 5}


def test_strangers_among_the_parts(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / part / "a")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "a.xml").write_text("")
    assert "left out the folder annotations" in load(tmp_path)[1]
    write(tmp_path / "extra" / "a")
    with pytest.raises(InputError, match=r"beside them extra"):
        load(tmp_path)


def test_three_pictures_of_each_class_reach_every_part(tmp_path: Path) -> None:
    for name in "abcdef":
        write(tmp_path / name, 3)
    samples, _ = load(tmp_path)
    assert [len(samples.indices_of(part)) for part in PARTS] == [6, 6, 6]


def test_a_list_of_files(tmp_path: Path) -> None:
    write(tmp_path / "photos", 6)
    rows = [
        f"photos/{number:03}.png;{'dog' if number % 2 else 'cat'};{'val' if number < 4 else 'Test'}"
        for number in range(6)
    ]
    (tmp_path / "list.csv").write_text("\ufeffPath;Label;Part\n" + "\n".join(rows) + "\n", encoding="utf-8")
    samples, said = load(tmp_path / "list.csv")
    assert samples.classes == ("cat", "dog")
    assert "cat (3), dog (3)" in said
    assert samples.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert {part: samples.indices_of(part).tolist() for part in PARTS} == {
        "train": [], "calibrate": [0, 1, 2, 3], "test": [4, 5],
    }  # fmt: skip
    assert samples.pixels(np.array([5]))[0, 0, 0, 0] == 5
    (tmp_path / "numbers.csv").write_text("path,label\nphotos/000.png,7\nphotos/001.png,2\n")
    assert load(tmp_path / "numbers.csv")[0].labels.tolist() == [7, 2], "numbers are the network's classes"
    (tmp_path / "queries.csv").write_text("path\nphotos/000.png\nphotos/001.png\n")
    assert not load(tmp_path / "queries.csv")[0].labelled
    for text, message in {
        "file,label\nphotos/000.png,1\n": "expected the columns path, label and part",
        "path,label\nphotos/009.png,1\n": r"line 2: .*009\.png does not exist",
        "path,label\nphotos/000.png,1\nphotos/001.png,\n": "line 3: no label",
        "path,part\nphotos/000.png,somewhere\n": "'somewhere'",
        "path\n": "names no files",
    }.items():
        (tmp_path / "bad.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            load(tmp_path / "bad.csv")


def write_classes(root: Path, sizes: dict[str, int]) -> None:
    for name, count in sizes.items():
        write(root / name, count)


def test_links_that_lead_back_are_left_out(tmp_path: Path) -> None:
    write_classes(tmp_path / "x", {"c0": 6, "c1": 6})
    (tmp_path / "x" / "c0" / "all").symlink_to(tmp_path / "x")
    (tmp_path / "x" / "c1" / "self").symlink_to(tmp_path / "x" / "c1")
    samples, notes = load(tmp_path / "x")
    assert counts(samples) == {"c0": 6, "c1": 6}
    assert "the link c0/all, which leads back" in notes
    assert "the link c1/self" in notes


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "x", {"c0": 6, "c1": 6})
    scan = os.scandir

    def refuse(folder: Path) -> Any:
        if Path(folder).name == "c1":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scan(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"c1 cannot be listed: Permission denied"):
        load(tmp_path / "x")


def test_a_class_that_a_part_lacks_is_said(tmp_path: Path) -> None:
    write_classes(tmp_path / "x" / "train", {"c0": 6})
    write_classes(tmp_path / "x" / "val", {"c0": 6, "c1": 6})
    write_classes(tmp_path / "x" / "test", {"c0": 6, "c1": 6})
    _, notes = load(tmp_path / "x")
    assert "the train part has no images of class c1" in notes
    assert "the test part" not in notes


@pytest.mark.parametrize(("kind", "suffix"), [("JPEG", "jpg"), ("PNG", "png")])
def test_a_file_that_is_cut_off_is_named_before_any_work(tmp_path: Path, kind: str, suffix: str) -> None:
    write_classes(tmp_path / "x", {"c0": 3, "c1": 3})
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / "x" / "c1" / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(whole, kind)
    path.write_bytes(whole.read_bytes()[:-2000])

    def read() -> None:
        load_samples(tmp_path / "x", replace(WANTED, stated=True)).digests()

    with pytest.raises(InputError, match=rf"cut\.{suffix} cannot be read as an image.*remove or replace it"):
        read()
    path.write_bytes(whole.read_bytes() + b"\0\0")  # padding does no harm
    read()
    path.write_bytes(whole.read_bytes() + b"a note")
    read()
    path.write_bytes(b"")
    with pytest.raises(InputError, match=rf"cut\.{suffix} cannot be read as an image"):
        read()


def test_an_image_that_is_in_two_parts_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part, first in (("train", 0), ("val", 2), ("test", 4)):
        for kind in (0, 100):
            (tmp_path / part / str(kind)).mkdir(parents=True)
            for shade in range(first, first + 4):
                Image.new("L", (5, 6), shade + kind).save(tmp_path / part / str(kind) / f"{shade:03}.png")
    samples, _ = load(tmp_path)
    samples.digests()
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "4 of the 8 images of the calibrate part are in the train part too, byte for byte" in said[0]
    assert str(tmp_path / "train" / "0" / "002.png") in said[0]
    assert "4 of the 8 images of the test part are in the train or the calibrate part too" in said[1]
    caplog.clear()
    write(tmp_path / "other" / "a", 9)
    load(tmp_path / "other")[0].digests()
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("x.zip", "Unpack the archive"), ("x.tar.gz", "Unpack the archive"), ("x.npy", "np.savez"),
        ("x.JPG", "Name the folder of the image"), ("train.txt", "whose first line is path,label"),
    ],
)  # fmt: skip
def test_files_that_are_no_data_are_refused_with_what_to_do(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(InputError, match=words):
        load(tmp_path / name)

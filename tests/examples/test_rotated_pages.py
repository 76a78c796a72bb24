"""Rotated pages: the classes are balanced, a page can be turned back, and a seed decides all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from calibration import image_input, load_samples
from examples import rotated_pages


def test_the_folder_is_one_of_classes_and_the_same_again(tmp_path: Path) -> None:
    for name, workers in (("one", "1"), ("two", "2")):
        rotated_pages.main([str(tmp_path / name), "--count", "8", "--seed", "3", "--workers", workers])
    samples, again = (load_samples(tmp_path / name, image_input((3, 32, 32))) for name in ("one", "two"))
    assert samples.classes == ("0", "90", "180", "270"), "the order in which networks answer"
    assert np.bincount(samples.labels).tolist() == [2, 2, 2, 2]
    assert samples.digests() == again.digests(), "whatever the number of processes"


def test_a_page_is_turned_by_what_its_class_says(tmp_path: Path) -> None:
    for number, turn in enumerate(rotated_pages.TURNS):
        (tmp_path / str(turn)).mkdir()
        path = rotated_pages.make_page(number, folder=tmp_path, seed=0, difficulty=0.0)
        random = np.random.default_rng([0, number])
        upright = rotated_pages.draw_page(random)
        with Image.open(path) as turned:
            back = turned.rotate(turn, expand=True)
        assert back.size == upright.size
        assert np.abs(np.asarray(back, float) - np.asarray(upright, float)).mean() < 4
        assert np.asarray(upright).std() > 10, "there is text on it"


def test_difficulty_spoils() -> None:
    draw = rotated_pages.Spoiling.draw
    easy, hard = (
        [draw(np.random.default_rng(number), difficulty) for number in range(200)] for difficulty in (0.5, 2.0)
    )
    assert draw(np.random.default_rng(0), 0.0) == rotated_pages.Spoiling(skew=0.0)
    for name in ("blur", "noise", "shrink", "pale"):
        assert np.mean([getattr(page, name) for page in hard]) > 2 * np.mean([getattr(page, name) for page in easy])

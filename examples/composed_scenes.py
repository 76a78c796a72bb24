"""Composed scenes: labelled data for segmentation; nothing is downloaded, nothing in them is real.

    python examples/composed_scenes.py scenes --count 700
    python -m export segmentation --segments --classes 6 --input-shape 3,96,128 --weights random
    python -m calibration segmentation --data scenes --train joint

Streets are put together from flat shapes: sky, road, buildings, trees, cars and people, in several *drives*, each with
light and colours of its own and frames that resemble one another. Scenes are spoiled by blur, noise and haze, how badly
is drawn for every frame, so that most are easy and some cannot be told. The same seed gives the same scenes.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

CLASSES = ("sky", "road", "building", "tree", "car", "person")
VOID = len(CLASSES)
_PARTS = (("train", 0.6), ("val", 0.2), ("test", 0.2))
_COLOURS = ((150, 180, 215), (95, 92, 98), (150, 115, 95), (70, 115, 65), (150, 40, 45), (60, 60, 120))
_DRIVE = 25  # frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenery:
    """How scenes are drawn.

    Attributes:
        width, height: pixels.
        seed: decides every scene.
        difficulty: how badly the worst is spoiled; 0: not at all.
    """

    width: int = 128
    height: int = 96
    seed: int = 0
    difficulty: float = 1.0


def draw_scene(number: int, scenery: Scenery) -> tuple[Image.Image, Image.Image]:
    """Returns a picture and its mask; seed and number decide both."""
    drive = np.random.default_rng([scenery.seed, number // _DRIVE, 1])
    random = np.random.default_rng([scenery.seed, number, 2])
    width, height = scenery.width, scenery.height
    light = drive.uniform(0.6, 1.2)
    tints = [np.clip(np.array(colour) * light + drive.normal(0, 14, 3), 0, 255) for colour in _COLOURS]
    picture, mask = Image.new("RGB", (width, height)), Image.new("L", (width, height))
    pens = ImageDraw.Draw(picture), ImageDraw.Draw(mask)

    def put(kind: int, shape: str, box: Sequence[float], spread: float = 10.0) -> None:
        colour = tuple(int(value) for value in np.clip(tints[kind] + random.normal(0, spread, 3), 0, 255))
        for pen, fill in zip(pens, (colour, kind), strict=True):
            getattr(pen, shape)([float(value) for value in box], fill=fill)

    horizon = height * (drive.uniform(0.4, 0.55) + random.normal(0, 0.02))
    put(0, "rectangle", (0, 0, width, height), 2)
    put(1, "rectangle", (0, horizon, width, height), 2)
    for _ in range(random.integers(2, 6)):
        left, wide = random.uniform(-0.1, 1) * width, random.uniform(0.1, 0.35) * width
        put(2, "rectangle", (left, horizon - random.uniform(0.15, 0.5) * height, left + wide, horizon + 3))
    for _ in range(random.integers(1, 5)):
        x, high = random.uniform(0, 1) * width, random.uniform(0.15, 0.4) * height
        put(3, "ellipse", (x - high / 3, horizon - high, x + high / 3, horizon - high / 4))
        put(3, "rectangle", (x - 1, horizon - high / 2, x + 1, horizon + 2))
    for _ in range(random.integers(0, 4)):
        deep = random.uniform(0.1, 1)
        x, y, wide = random.uniform(0, 1) * width, horizon + deep * (height - horizon), (0.08 + 0.2 * deep) * width
        put(4, "rectangle", (x - wide / 2, y - wide * 0.45, x + wide / 2, y), 35)
    for _ in range(random.integers(0, 4)):
        deep = random.uniform(0.1, 1)
        x, y, high = random.uniform(0, 1) * width, horizon + deep * (height - horizon), (0.1 + 0.25 * deep) * height
        put(5, "rectangle", (x - high / 8, y - high * 0.8, x + high / 8, y), 35)
        put(5, "ellipse", (x - high / 9, y - high, x + high / 9, y - high * 0.78), 35)
    pens[1].rectangle((0, height - 2, width, height), fill=VOID)  # the bonnet of the car that carries the camera
    pens[0].rectangle((0, height - 2, width, height), fill=(20, 20, 22))
    return _spoil(picture, random, scenery.difficulty), mask


def _spoil(picture: Image.Image, random: np.random.Generator, difficulty: float) -> Image.Image:
    worst = difficulty * random.random() ** 2
    picture = picture.filter(ImageFilter.GaussianBlur(0.4 + 2.0 * worst))
    pixels = np.asarray(picture, np.float32)
    haze = 0.75 * worst
    pixels = pixels * (1 - haze) + 170 * haze + random.normal(0, 4 + 26 * worst, pixels.shape)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def make_scene(number: int, *, folder: Path, parts: Sequence[str], scenery: Scenery) -> None:
    """Writes one picture and its mask; whole drives go into one part."""
    picture, mask = draw_scene(number, scenery)
    name = f"drive{number // _DRIVE:03d}_{number % _DRIVE:03d}"
    picture.save(folder / "images" / parts[number] / f"{name}.jpg", quality=90)
    mask.save(folder / "masks" / parts[number] / f"{name}.png")


def name_parts(count: int) -> list[str]:
    """Returns the part of each frame: the first drives train, the next are looked at while planning, the last test."""
    drives = -(-count // _DRIVE)
    ends = np.cumsum([round(share * drives) for _, share in _PARTS])
    places = np.minimum(np.searchsorted(ends, np.arange(count) // _DRIVE, side="right"), len(_PARTS) - 1)
    return [_PARTS[place][0] for place in places.tolist()]


def write_scenes(folder: Path, count: int, scenery: Scenery, *, workers: int = 1) -> None:
    """Writes scenes in the layout ``images/<part>`` and ``masks/<part>``, with ``classes.json``."""
    for kind in ("images", "masks"):
        for part, _ in _PARTS:
            (folder / kind / part).mkdir(parents=True, exist_ok=True)
    plain = {"classes": [*CLASSES, "void"], "ignore_index": VOID}
    (folder / "classes.json").write_text(json.dumps(plain), encoding="utf-8")
    make = functools.partial(make_scene, folder=folder, parts=name_parts(count), scenery=scenery)
    if workers == 1:
        for number in range(count):
            make(number)
        return
    with ProcessPoolExecutor(workers) as processes:
        list(processes.map(make, range(count), chunksize=16))


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the scenes."""
    parser = argparse.ArgumentParser(description="Compose street scenes and masks of their classes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=700, help="frames (default: %(default)s)")
    parser.add_argument("--size", default="128x96", help="width x height in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides every scene (default: %(default)s)")
    parser.add_argument(
        "--difficulty", type=float, default=1.0,
        help="how badly the worst scene is spoiled; 0: not at all (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    arguments = parser.parse_args(argv)
    width, _, height = arguments.size.partition("x")
    scenery = Scenery(width=int(width), height=int(height), seed=arguments.seed, difficulty=arguments.difficulty)
    write_scenes(arguments.folder, arguments.count, scenery, workers=arguments.workers)
    print(f"{arguments.count} composed scenes in {arguments.folder}")


if __name__ == "__main__":
    main()

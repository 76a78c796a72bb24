"""Composed figures: people made of limbs, with the places of their joints; nothing is downloaded, nobody is real.

    python examples/composed_figures.py figures --count 2000
    python -m export posenet --segments --input-shape 3,64,64 --weights random
    python -m calibration posenet --data figures --train joint

A figure has 14 joints, named and ordered as in the Leeds Sports Poses, and stands, walks or stretches before a
cluttered background; left and right limbs have different shades. Figures are spoiled by blur, noise and things in
front of them, how badly is drawn for every figure. The same seed gives the same figures.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

JOINTS = (
    "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist", "right_elbow",
    "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head_top",
)  # fmt: skip
FLIP_PAIRS = ((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9))
_HEAD = (12, 13)
_LIMBS = ((2, 1), (1, 0), (3, 4), (4, 5), (8, 7), (7, 6), (9, 10), (10, 11))
_PARTS = (("train", 0.7), ("val", 0.15), ("test", 0.15))
_RIGHT = {0, 1, 2, 6, 7, 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Posing:
    """How figures are drawn.

    Attributes:
        side: pixels of the square picture.
        seed: decides every figure.
        difficulty: how badly the worst is spoiled; 0: not at all.
    """

    side: int = 64
    seed: int = 0
    difficulty: float = 1.0


def pose_figure(random: np.random.Generator, side: int) -> np.ndarray:
    """Draws where the 14 joints are: (14, 2) float64 pixels."""
    unit = side * random.uniform(0.10, 0.13)  # the length of a head
    places = np.zeros((14, 2))
    lean = random.normal(0, 0.12)
    up, across = np.array([np.sin(lean), -np.cos(lean)]), np.array([np.cos(lean), np.sin(lean)])
    hips = np.array([side * random.uniform(0.42, 0.58), side * random.uniform(0.5, 0.58)])
    neck = hips + 2.4 * unit * up
    places[12], places[13] = neck, neck + unit * (up + random.normal(0, 0.1, 2))
    for sign, hip, knee, ankle, shoulder, elbow, wrist in ((-1, 2, 1, 0, 8, 7, 6), (1, 3, 4, 5, 9, 10, 11)):
        places[hip] = hips + sign * 0.45 * unit * across
        places[shoulder] = neck + sign * 0.75 * unit * across - 0.15 * unit * up
        thigh, shin = sign * random.uniform(-0.1, 0.7), random.normal(0, 0.3)
        places[knee] = places[hip] + 1.7 * unit * _turn(-up, -thigh)
        places[ankle] = places[knee] + 1.6 * unit * _turn(-up, -thigh + shin)
        upper, lower = sign * random.uniform(0.0, 2.8), random.normal(0, 0.7)
        places[elbow] = places[shoulder] + 1.3 * unit * _turn(-up, -upper)
        places[wrist] = places[elbow] + 1.2 * unit * _turn(-up, -upper + lower)
    return places


def _turn(vector: np.ndarray, angle: float) -> np.ndarray:
    sine, cosine = np.sin(angle), np.cos(angle)
    return np.array([[cosine, -sine], [sine, cosine]]) @ vector


def draw_figure(number: int, posing: Posing) -> tuple[Image.Image, np.ndarray]:
    """Returns a picture and its joints (14, 3): x, y, visible; seed and number decide both."""
    random = np.random.default_rng([posing.seed, number])
    side = posing.side
    places = pose_figure(random, side)
    picture = Image.new("RGB", (side, side), _shade(random, 60, 200))
    pen = ImageDraw.Draw(picture)
    for _ in range(random.integers(3, 9)):
        _draw_thing(pen, random, side, 0.5)
    unit = float(np.linalg.norm(places[12] - places[13]))
    skin, right, left = _shade(random, 150, 235), _shade(random, 0, 90), _shade(random, 160, 255)
    torso = [tuple(places[joint]) for joint in (8, 9, 3, 2)]
    pen.polygon(torso, fill=_shade(random, 30, 220))
    for start, end in _LIMBS:
        colour = right if end in _RIGHT else left
        pen.line([tuple(places[start]), tuple(places[end])], fill=colour, width=max(2, round(0.42 * unit)))
    middle, radius = (places[12] + places[13]) / 2, 0.5 * unit
    pen.ellipse((*(middle - radius), *(middle + radius)), fill=skin)
    worst = posing.difficulty * random.random() ** 2
    for _ in range(int(3 * worst)):
        _draw_thing(pen, random, side, 0.3)
    picture = picture.filter(ImageFilter.GaussianBlur(0.3 + 1.4 * worst))
    pixels = np.asarray(picture, np.float32) + random.normal(0, 3 + 30 * worst, (side, side, 3))
    inside = ((places >= 0) & (places < side)).all(axis=1)
    joints = np.concatenate([places * inside[:, None], inside[:, None]], axis=1)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), joints


def _shade(random: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    red, green, blue = random.integers(low, high, 3).tolist()
    return red, green, blue


def _draw_thing(pen: ImageDraw.ImageDraw, random: np.random.Generator, side: int, size: float) -> None:
    x, y = random.uniform(0, side, 2)
    width, height = random.uniform(0.05, size, 2) * side
    shape = pen.rectangle if random.random() < 0.5 else pen.ellipse
    shape((x, y, x + width, y + height), fill=_shade(random, 20, 235))


def make_figure(number: int, *, folder: Path, part: str, posing: Posing) -> dict[str, Any]:
    """Writes one picture and returns its entry in the list of people."""
    picture, joints = draw_figure(number, posing)
    name = f"figure{number:05d}.jpg"
    picture.save(folder / "images" / part / name, quality=90)
    return {"image": name, "keypoints": np.round(joints, 3).tolist()}


def write_figures(folder: Path, count: int, posing: Posing, *, workers: int = 1) -> None:
    """Writes figures in the layout ``images/<part>`` with ``keypoints_<part>.json``."""
    start = 0
    for place, (part, share) in enumerate(_PARTS):
        (folder / "images" / part).mkdir(parents=True, exist_ok=True)
        end = count if place == len(_PARTS) - 1 else start + round(share * count)
        make = functools.partial(make_figure, folder=folder, part=part, posing=posing)
        if workers == 1:
            people = list(map(make, range(start, end)))
        else:
            with ProcessPoolExecutor(workers) as processes:
                people = list(processes.map(make, range(start, end), chunksize=16))
        plain = {"joint_names": JOINTS, "flip_pairs": FLIP_PAIRS, "head_segment": _HEAD, "people": people}
        (folder / f"keypoints_{part}.json").write_text(json.dumps(plain), encoding="utf-8")
        start = end


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the figures."""
    parser = argparse.ArgumentParser(description="Compose figures of people and the places of their joints.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=2000, help="figures (default: %(default)s)")
    parser.add_argument("--side", type=int, default=64, help="pixels of a picture (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides every figure (default: %(default)s)")
    parser.add_argument(
        "--difficulty", type=float, default=1.0,
        help="how badly the worst figure is spoiled; 0: not at all (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    arguments = parser.parse_args(argv)
    posing = Posing(side=arguments.side, seed=arguments.seed, difficulty=arguments.difficulty)
    write_figures(arguments.folder, arguments.count, posing, workers=arguments.workers)
    print(f"{arguments.count} composed figures in {arguments.folder}")


if __name__ == "__main__":
    main()

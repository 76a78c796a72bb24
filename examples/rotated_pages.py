"""Rotated pages: labelled data for networks that tell how a scanned page is turned; nothing is downloaded.

    python examples/rotated_pages.py pages --count 4500
    python -m planner path/to/orientation.onnx --data pages --tolerance 0.01

Every page is rendered text (paragraphs, columns, headings, tables), turned by 0, 90, 180 or 270 degrees and spoiled as
scans and photographs are: skewed, cropped, blurred, noisy, pale, of low resolution. How badly is drawn for every page,
up to ``--difficulty``, so that most pages are easy and some cannot be told. The same seed gives the same pages.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

TURNS = (0, 90, 180, 270)
"""Degrees; a page of class 90 must be turned by 90 degrees against the clock to be upright."""
PAGE = (496, 702)  # a page of A4 at 60 dots per inch
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
_SYLLABLES = (
    "ba", "be", "bi", "co", "da", "de", "di", "fo", "ga", "ge", "ha", "in", "ka", "la", "le", "lo", "ma",
    "me", "mi", "na", "ne", "no", "or", "pa", "per", "po", "ra", "re", "ri", "ro", "sa", "se", "si", "so",
    "ta", "te", "ti", "to", "tra", "un", "ve", "vi", "wa",
)  # fmt: skip
_ENDINGS = ("", "", "s", "ing", "ed", "er", "ly", "tion", "th", "y", "l", "p", "k", "d")
_STOPS = ("", "", "", "", ",", ".")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoiling:
    """What happens to one page; zeros leave it as it is.

    Attributes:
        skew: degrees.
        crop: share of the page's width and height that is cut off.
        shrink: the page is scaled down by 1 + this, and up again.
        blur: radius in pixels.
        noise: spread of the noise, in steps of 0 to 255.
        pale: share of the contrast that is lost.
    """

    skew: float = 0.0
    crop: float = 0.0
    shrink: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    pale: float = 0.0

    @classmethod
    def draw(cls, random: np.random.Generator, difficulty: float) -> Spoiling:
        """Draws what happens to a page; few pages get the worst of it."""
        worst = difficulty * random.random() ** 1.5
        skew, crop, shrink, blur, noise, pale = (worst * random.uniform(0.3, 1.0, 6)).tolist()
        return cls(
            skew=8 * skew * random.choice((-1, 1)), crop=min(0.7, 0.5 * crop), shrink=2.5 * shrink, blur=1.2 * blur,
            noise=45 * noise, pale=min(0.9, 0.6 * pale),
        )  # fmt: skip


def draw_page(random: np.random.Generator) -> Image.Image:
    """Renders an upright page: grey, dark on light."""
    page = Image.new("L", PAGE, int(random.integers(225, 256)))
    ink = int(random.integers(0, 70))
    pen = ImageDraw.Draw(page)
    size = int(random.integers(8, 15))
    columns = int(random.choice((1, 1, 2, 3)))
    margin, gap = int(random.integers(20, 60)), 14
    width = (PAGE[0] - 2 * margin - (columns - 1) * gap) // columns
    for column in range(columns):
        left, top = margin + column * (width + gap), margin
        while top < PAGE[1] - margin - 3 * size:
            kind = random.choice(("paragraph", "heading", "table", "space"), p=(0.6, 0.2, 0.1, 0.1))
            box = (left, top, width, PAGE[1] - margin - top)
            if kind == "heading":
                top = _write_lines(pen, random, box, size=int(size * 1.6), lines=1, ink=ink)
            elif kind == "table":
                top = _write_table(pen, random, box, size=size, ink=ink)
            elif kind == "paragraph":
                top = _write_lines(pen, random, box, size=size, lines=int(random.integers(2, 9)), ink=ink)
            top += int(size * random.uniform(0.6, 2.0))
    return page


def _write_lines(
    pen: ImageDraw.ImageDraw, random: np.random.Generator, box: tuple[int, int, int, int],
    *, size: int, lines: int, ink: int,
) -> int:  # fmt: skip
    left, top, width, height = box
    font = _load_font(size)
    bottom = top + height
    for line in range(lines):
        if top + size > bottom:
            break
        room = width * (random.uniform(0.3, 0.9) if line == lines - 1 else 1.0)
        pen.text((left, top), _fit_words(random, font, room), ink, font)
        top += int(size * 1.35)
    return top


@functools.cache
def _load_font(size: int) -> Font:
    return ImageFont.load_default(size)


def _fit_words(random: np.random.Generator, font: Font, room: float) -> str:
    words = [_make_word(random).capitalize()]
    left = room - font.getlength(words[0])
    while left > 0:
        words.append(_make_word(random))
        left -= font.getlength(f" {words[-1]}")
    return " ".join(words[:-1]) or words[0][:3]


def _make_word(random: np.random.Generator) -> str:
    if random.random() < 0.05:
        return str(random.integers(1, 9999))
    syllables = "".join(_SYLLABLES[place] for place in random.integers(0, len(_SYLLABLES), random.integers(1, 4)))
    return syllables + _ENDINGS[random.integers(len(_ENDINGS))] + _STOPS[random.integers(len(_STOPS))]


def _write_table(
    pen: ImageDraw.ImageDraw, random: np.random.Generator, box: tuple[int, int, int, int], *, size: int, ink: int
) -> int:
    left, top, width, height = box
    font = _load_font(size)
    rows, cells = int(random.integers(2, 6)), int(random.integers(2, 5))
    step = int(size * 1.6)
    rows = max(1, min(rows, height // step))
    for row in range(rows):
        for cell in range(cells):
            x, y = left + cell * width // cells, top + row * step
            pen.rectangle((x, y, x + width // cells, y + step), outline=ink)
            pen.text((x + 3, y + 2), _make_word(random)[: max(2, width // cells // size)], ink, font)
    return top + rows * step


def spoil_page(page: Image.Image, spoiling: Spoiling, random: np.random.Generator) -> Image.Image:
    """Returns the page as a bad scan of it would look."""
    paper = page.getpixel((2, 2))
    if spoiling.skew:
        page = page.rotate(spoiling.skew, Image.Resampling.BICUBIC, fillcolor=paper)
    if spoiling.crop:
        width, height = (round(side * (1 - spoiling.crop)) for side in page.size)
        left, top = (
            int(random.integers(0, whole - part + 1)) for whole, part in zip(page.size, (width, height), strict=True)
        )
        page = page.crop((left, top, left + width, top + height))
    if spoiling.shrink:
        small = [max(8, round(side / (1 + spoiling.shrink))) for side in page.size]
        page = page.resize((small[0], small[1]), Image.Resampling.BILINEAR).resize(page.size, Image.Resampling.BILINEAR)
    if spoiling.blur:
        page = page.filter(ImageFilter.GaussianBlur(spoiling.blur))
    grey = np.asarray(page, np.float32)
    grey = grey + (paper - grey) * spoiling.pale
    grey += random.normal(0, max(spoiling.noise, 1e-6), grey.shape).astype(np.float32)
    return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))


def make_page(number: int, *, folder: Path, seed: int, difficulty: float) -> Path:
    """Writes one page into the folder of its class and returns its path; seed and number decide everything."""
    random = np.random.default_rng([seed, number])
    turn = TURNS[number % len(TURNS)]
    page = spoil_page(draw_page(random), Spoiling.draw(random, difficulty), random)
    path = folder / str(turn) / f"{number:06d}.jpg"
    page.rotate(-turn, expand=True).save(path, quality=85)
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the pages, one folder per class."""
    parser = argparse.ArgumentParser(description="Render text pages turned by 0, 90, 180 and 270 degrees.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=4500, help="pages (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="decides every page (default: %(default)s)")
    parser.add_argument(
        "--difficulty", type=float, default=1.0,
        help="how badly the worst page is spoiled; 0: not at all (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    arguments = parser.parse_args(argv)
    for turn in TURNS:
        (arguments.folder / str(turn)).mkdir(parents=True, exist_ok=True)
    make = functools.partial(make_page, folder=arguments.folder, seed=arguments.seed, difficulty=arguments.difficulty)
    with ProcessPoolExecutor(arguments.workers) as processes:
        for _ in processes.map(make, range(arguments.count), chunksize=32):
            pass
    print(f"{arguments.count} pages in {arguments.folder}")


if __name__ == "__main__":
    main()

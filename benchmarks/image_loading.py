"""Images per second into training: decoded by worker processes, by the main process, and kept from the epoch before.

    python benchmarks/image_loading.py --count 2000 --json loading.json

A folder of distinct 500 x 375 JPEGs is drawn. In every round the page cache forgets the files (cold), and an epoch of
shuffled batches is loaded by worker processes; then cold again by the main process; then by the main process out of the
pixels that the workers left. Contenders take turns; medians over the rounds. Bound: workers load at least 1.5 times as
many images per second as the main process on two processors.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from big_folder import CLASSES, HEIGHT, WIDTH

from artifacts import allowed_processors, environment_fingerprint
from artifacts.console import add_common_arguments, print_table, run_command, say
from calibration import FileImages, JointConfig, image_input, load_samples
from calibration.training.minibatches import draw_epoch

BOUND = 1.5


def write_images(root: Path, count: int) -> None:
    """Writes ``count`` different JPEGs in class folders."""
    from PIL import Image

    random = np.random.default_rng(1)
    grounds = random.integers(0, 256, (CLASSES, HEIGHT // 25, WIDTH // 25, 3)).astype(np.uint8)
    for number in range(count):
        folder = root / f"c{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        ground = np.roll(grounds[number % CLASSES], number, axis=1)
        image = Image.fromarray(ground).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        noise = random.integers(-20, 21, (HEIGHT, WIDTH, 1))
        pixels = np.clip(np.asarray(image).astype(np.int64) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:06d}.jpg", quality=85)


def forget_files(root: Path) -> None:
    """Drops the files from the page cache."""
    for path in root.rglob("*.jpg"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def load_epoch(samples: FileImages, config: JointConfig, *, number: int, workers: int) -> float:
    """Loads an epoch and returns the images per second."""
    started, count = time.perf_counter(), 0
    for pieces in draw_epoch(samples, config, number, workers=workers).batches:
        count += sum(len(next(iter(chunk.inputs.values()))) for chunk in pieces)
    return count / (time.perf_counter() - started)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure how fast images are loaded for training.")
    add_common_arguments(parser)
    parser.add_argument("--count", type=int, default=2_000, help="images (default: %(default)s)")
    parser.add_argument("--side", type=int, default=224, help="of the network's input (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=allowed_processors(), help="default: %(default)s")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="where the folder is made (default: TMPDIR)")
    return parser


def bench(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures, prints the table, and returns the result for ``--json``."""
    with tempfile.TemporaryDirectory(prefix="image-loading-", dir=arguments.scratch) as scratch:
        root = Path(scratch)
        write_images(root, arguments.count)
        samples = load_samples(root, image_input((3, arguments.side, arguments.side), name="x"), report=say)
        assert isinstance(samples, FileImages)
        config = JointConfig(batch_size=32, augment="crop")
        found: dict[str, list[float]] = {"workers": [], "main process": [], "kept from the epoch before": []}
        for number in range(arguments.rounds):
            kept = samples.keeping_pixels(samples.indices_of("train"), arguments.count * 3 * arguments.side**2)
            forget_files(root)
            found["workers"].append(load_epoch(kept, config, number=number, workers=arguments.workers))
            forget_files(root)
            found["main process"].append(load_epoch(samples, config, number=number, workers=0))
            found["kept from the epoch before"].append(load_epoch(kept, config, number=number + 1, workers=0))
    rates = {name: statistics.median(values) for name, values in found.items()}
    plain = rates["main process"]
    rows = [[name, f"{rate:.0f}", f"{rate / plain:.2f}"] for name, rate in rates.items()]
    print_table("", ["loaded by", "images/s", "of main process"], rows, to_stderr=arguments.json == "-")
    kept_bound = rates["workers"] / plain >= BOUND
    say(f"bound {BOUND:g}: {'kept' if kept_bound else 'NOT kept'}")
    return {
        "images_per_s": rates, "rounds": found, "ratio": rates["workers"] / plain, "bound": BOUND, "kept": kept_bound,
        "count": arguments.count, "workers": arguments.workers, "side": arguments.side,
        "environment": environment_fingerprint(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(run_command(bench, make_parser().parse_args()))

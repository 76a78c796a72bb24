"""Fashion-MNIST, fetched by itself (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747; MIT licence).

60,000 + 10,000 grey images of 28x28 in 10 classes. Parts: the first file's 60,000 are split at random into 50,000 to
train and 10,000 to calibrate; the 10,000 of the second file are the test part. An installed Debian package, the public
mirrors and Debian's archive are asked in turn; whatever answers is compared with the known digests of the uncompressed
files.
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import secrets
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np

from artifacts import InputError
from calibration.data.arrays import ArrayImages, make_samples
from calibration.data.splits import split_indices

CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DIGESTS = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
MIRRORS = (
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("usr/share/datasets/fashion-mnist")
_HOME_CACHE = "~/.cache/pame/fashion-mnist"
_SPLIT_SEED = 20221122
_log = logging.getLogger("pame.calibration")


def find_cache() -> Path | None:
    """Returns the folder in which the files are kept; ``None`` for a user without a home."""
    try:
        return Path(_HOME_CACHE).expanduser()
    except RuntimeError:  # neither HOME nor an entry in the table of users, as in many containers
        _log.warning("there is no home folder to keep Fashion-MNIST in: every command fetches it anew")
        return None


def load_fashion_mnist(cache: Path | None) -> ArrayImages:
    """Returns Fashion-MNIST, fetching it into ``cache`` first where it is not there.

    Args:
        cache: the folder; ``None``, or one that cannot be written: what is fetched is not kept.

    Raises:
        InputError: no source answered, or what came back has another digest.
    """
    raw = {name: _read_or_fetch(name, cache) for name in DIGESTS}
    images = np.concatenate([_images(raw["train-images-idx3-ubyte"]), _images(raw["t10k-images-idx3-ubyte"])])
    labels = np.concatenate([_labels(raw["train-labels-idx1-ubyte"]), _labels(raw["t10k-labels-idx1-ubyte"])])
    splits = split_indices(labels[:60_000], {"train": 5 / 6, "calibrate": 1 / 6}, seed=_SPLIT_SEED)
    return make_samples("fashion-mnist", images, labels, CLASSES, {**splits, "test": np.arange(60_000, 70_000)})


def _images(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28)


def _labels(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, np.uint8, offset=8).astype(np.int64)


def _read_or_fetch(name: str, cache: Path | None) -> bytes:
    refusals = []
    kept = None if cache is None else cache / f"{name}.gz"
    sources: tuple[tuple[str, Callable[[], bytes]], ...] = (
        *(() if kept is None else ((str(kept), kept.read_bytes),)),
        (f"/{DEBIAN_FOLDER}", (Path("/") / DEBIAN_FOLDER / f"{name}.gz").read_bytes),
        *((mirror, lambda mirror=mirror: _download(f"{mirror}/{name}.gz")) for mirror in MIRRORS),
        (f"apt-get download {DEBIAN_PACKAGE}", lambda: _download_debian(name, cache)),
    )
    for source, read in sources:
        try:
            packed = read()
            raw = gzip.decompress(packed)
        except (OSError, EOFError, subprocess.SubprocessError) as error:
            refusals.append(f"{source}: {error}")
            continue
        if hashlib.sha256(raw).hexdigest() != DIGESTS[name]:
            refusals.append(f"{source}: the content differs from the known SHA-256")
            continue
        if source != str(kept):
            _log.info("%s.gz taken from %s", name, source)
            _keep(kept, packed)
        return raw
    raise InputError(
        f"Fashion-MNIST ({name}) could not be had:\n  " + "\n  ".join(refusals)
        + f"\nInstall Debian's {DEBIAN_PACKAGE}, or put the four .gz files into {cache or _HOME_CACHE}, "
        "or use your own images with --data DIR."
    )  # fmt: skip


def _keep(path: Path | None, content: bytes) -> None:
    """Keeps a file where that is possible; without it the next command fetches it anew."""
    if path is None:
        return
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("cannot keep %s: %s", path, error.strerror or error)


def _download(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        content: bytes = answer.read()
    return content


def _download_debian(name: str, cache: Path | None) -> bytes:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise FileNotFoundError(f"{tool} is not installed")
    with tempfile.TemporaryDirectory() as folder:
        run = {"cwd": folder, "check": True, "capture_output": True, "timeout": 300}
        subprocess.run(["apt-get", "download", DEBIAN_PACKAGE], **run)  # type: ignore[call-overload]
        (package,) = Path(folder).glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), "content"], **run)  # type: ignore[call-overload]
        found = Path(folder) / "content" / DEBIAN_FOLDER
        for other in DIGESTS:  # one package holds all four: keep the others too
            _keep(None if cache is None else cache / f"{other}.gz", (found / f"{other}.gz").read_bytes())
        return (found / f"{name}.gz").read_bytes()

"""Fetching of a file from the Python package index: by its SHA-256, into a cache, in bounded memory.

The index itself is asked first, then pip, which knows about mirrors and proxies. What comes back with another digest is
thrown away.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import InputError

_INDEX = "https://files.pythonhosted.org/packages"
_PIECE = 1 << 20
_TIMEOUT_S = 30
_PIP_TIMEOUT_S = 600
_log = logging.getLogger("pame.artifacts")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageFile:
    """A file of the package index.

    Attributes:
        project, version: as pip names them.
        name: of the file.
        kind: ``source``, or the Python that a wheel is for, ``py3``.
        sha256: of its content.
    """

    project: str
    version: str
    name: str
    kind: str
    sha256: str

    @property
    def url(self) -> str:
        """Where the index has it."""
        return f"{_INDEX}/{self.kind}/{self.name[0]}/{self.name.partition('-')[0]}/{self.name}"


def cache_folder(name: str) -> Path:
    """Returns ``~/.cache/pame/<name>``, or a folder for temporary files of a user without a home."""
    try:
        return Path("~/.cache/pame").expanduser() / name
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"pame-{name}"


def fetch_package_file(file: PackageFile, folder: Path) -> Path:
    """Returns a file of the package index in ``folder``, fetching it first where it is not there or damaged.

    Raises:
        InputError: it could not be had, or not written.
    """
    kept = folder / file.name
    if kept.is_file() and _digest(kept) == file.sha256:
        return kept
    refusals = []
    sources: tuple[tuple[str, Callable[[Path], None]], ...] = (
        (file.url, lambda target: _download(file.url, target)),
        (f"pip download {file.project}=={file.version}", lambda target: _ask_pip(file, target)),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            target = Path(scratch) / file.name
            for source, fetch in sources:
                try:
                    fetch(target)
                except (OSError, subprocess.SubprocessError) as error:
                    refusals.append(f"{source}: {error}")
                    continue
                if (found := _digest(target)) == file.sha256:
                    _log.info("%s taken from %s", file.name, source)
                    target.replace(kept)
                    return kept
                refusals.append(f"{source}: the content has the SHA-256 {found[:12]}..., not {file.sha256[:12]}...")
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}); make room there") from error
    raise InputError(
        f"{file.name} could not be had:\n  " + "\n  ".join(refusals) + f"\nPut the file into {folder} yourself."
    )


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(url: str, target: Path) -> None:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer, target.open("wb") as stream:
        shutil.copyfileobj(answer, stream, _PIECE)


def _ask_pip(file: PackageFile, target: Path) -> None:
    wanted = target.with_name("requirement.txt")
    wanted.write_text(f"{file.project}=={file.version} --hash=sha256:{file.sha256}\n", encoding="utf-8")
    binary = "--no-binary" if file.kind == "source" else "--only-binary"
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", binary, ":all:",
         "--disable-pip-version-check", "--dest", str(target.parent), "-r", str(wanted)],
        check=True, capture_output=True, timeout=_PIP_TIMEOUT_S,
    )  # fmt: skip
    if not target.is_file():
        raise FileNotFoundError(f"pip did not bring {target.name}")

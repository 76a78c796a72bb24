"""The artifact store: folders with manifests, published whole or not at all.

A writer fills a hidden sibling folder, every file is hashed and synced, the manifest goes in last, and one
rename puts the folder in place. It holds a lock until then, so that there is one writer at a time; a second one waits.
A killed process leaves a hidden sibling behind, which nobody's lock covers: readers ignore it and the next writer
removes it. A reader checks every byte against the manifest before it uses any, and the manifest
against the SHA-256 of its own canonical form. That shows damage; it is no signature. Links are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from artifacts.codec import canonical_json, from_plain, read_json, to_plain, write_json
from artifacts.environment import environment_fingerprint
from artifacts.errors import ArtifactError, CorruptArtifactError, MissingArtifactError, SchemaError
from artifacts.files.disk_errors import describe_failure
from artifacts.files.locks import hold_lock

MANIFEST = "manifest.json"
SCHEMA_VERSION = 2  # 1: release 0.1.0, whose manifests do not cover themselves
_OWN_DIGEST = "sha256"
_log = logging.getLogger("pame.artifacts")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of an artifact: POSIX path relative to the folder, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The manifest of an artifact: its kind, its files, its inputs and its parameters."""

    kind: str
    schema_version: int
    files: tuple[FileEntry, ...]
    inputs: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over kind, schema, files, inputs and parameters: the identity of the content.

        The environment is left out, so that the same content has the same digest on every machine.
        """
        return digest_of([self.kind, self.schema_version, self.files, self.inputs, self.parameters])


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An artifact folder whose bytes were checked against its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        return self.manifest.digest

    def path(self, name: str) -> Path:
        """Returns the path of a listed file.

        Raises:
            CorruptArtifactError: the manifest lists no such file.
        """
        if not any(entry.path == name for entry in self.manifest.files):
            raise CorruptArtifactError(f"{self.folder} lists no file '{name}'; make the artifact again")
        return self.folder / name


def digest_of(value: Any) -> str:
    """Returns the SHA-256 of the canonical JSON of ``value`` in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def array_digest(array: np.ndarray) -> str:
    """Returns the SHA-256 over dtype, shape and bytes of an array in hex."""
    head = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()


@contextlib.contextmanager
def new_artifact(
    folder: Path,
    *,
    kind: str,
    inputs: Mapping[str, str] | None = None,
    parameters: Mapping[str, Any] | None = None,
    notes: Mapping[str, str] | None = None,
) -> Iterator[Path]:
    """Opens a staging folder and publishes it as ``folder`` when the block ends without an error.

    Args:
        folder: where the artifact will be; an artifact that is already there is replaced as a whole.
        kind: ``model``, ``trace``, ``plan``, ``bundle``, ``engine`` ...
        inputs: name -> digest of everything that the content was made from.
        parameters: the settings that, with the inputs, decide the content.
        notes: further entries of the recorded environment, e.g. how long it took; read when the block ends and, like
            all of the environment, not part of the digest.

    Raises:
        ArtifactError: the folder cannot be written (disk full, no permission); nothing is left behind.
    """
    with open_scratch(folder) as staging:
        yield staging
        _seal(staging, kind=kind, inputs=dict(inputs or {}), parameters=dict(parameters or {}), notes=dict(notes or {}))
        _swap_in(staging, folder)


@contextlib.contextmanager
def open_scratch(folder: Path) -> Iterator[Path]:
    """Opens a hidden folder beside ``folder``, which is removed when the block ends, or after a kill by the next one.

    Meanwhile nobody else opens one for the same ``folder``: others wait.

    Args:
        folder: what it is for; need not exist.

    Raises:
        ArtifactError: it cannot be written (disk full, no permission); nothing is left behind.
    """
    staging = folder.parent / f".{folder.name}.new-{secrets.token_hex(4)}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with hold_lock(_lock_path(folder), what=str(folder)) as alone:
            if alone:
                _clear_leftovers(folder)
            try:
                staging.mkdir()
                yield staging
            finally:
                shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(
            f"cannot write {folder}, and what was there is untouched: {describe_failure(error)}"
        ) from error


def _lock_path(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


def _seal(
    staging: Path, *, kind: str, inputs: dict[str, str], parameters: dict[str, Any], notes: dict[str, str]
) -> None:
    paths = sorted(path for path in staging.rglob("*") if path.is_file())
    for path in paths:
        _sync(path)
    entries = tuple(
        FileEntry(path=path.relative_to(staging).as_posix(), size=path.stat().st_size, sha256=file_digest(path))
        for path in paths
    )
    manifest = Manifest(
        kind=kind,
        schema_version=SCHEMA_VERSION,
        files=tuple(sorted(entries, key=lambda entry: entry.path)),
        inputs=inputs,
        parameters=parameters,
        environment={**environment_fingerprint(), **notes},
    )
    plain = to_plain(manifest)
    write_json(staging / MANIFEST, {**plain, _OWN_DIGEST: digest_of(plain)})
    _sync(staging / MANIFEST)
    _sync(staging)


def _swap_in(staging: Path, folder: Path) -> None:
    old = folder.parent / f".{folder.name}.old-{secrets.token_hex(4)}"
    moved = folder.exists()
    if moved:
        folder.rename(old)
    try:
        staging.rename(folder)
    except BaseException:
        if moved:
            old.rename(folder)
        raise
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def copy_folder(source: Path, folder: Path) -> None:
    """Publishes a copy of a folder, as a whole; files are the same on the disk where that is possible.

    Raises:
        ArtifactError: it cannot be written; nothing is left behind.
    """
    with open_scratch(folder) as staging:
        shutil.copytree(source, staging, copy_function=_link_or_copy, dirs_exist_ok=True)
        _swap_in(staging, folder)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def recover_artifact(folder: Path) -> None:
    """Cleans up beside ``folder`` after a process that was killed in the middle of a write, if nobody writes now."""
    if not _leftovers(folder):
        return
    with contextlib.suppress(OSError), hold_lock(_lock_path(folder), wait=False) as alone:  # read-only: as it is
        if alone:
            _clear_leftovers(folder)


def _leftovers(folder: Path) -> list[Path]:
    """Returns what is beside ``folder`` of a write that is under way, or was interrupted."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.(new|old)-(\d+-)?[0-9a-f]+")  # up to 0.2 with a process id
    if not folder.parent.is_dir():
        return []
    return sorted(sibling for sibling in folder.parent.iterdir() if pattern.fullmatch(sibling.name))


def _clear_leftovers(folder: Path) -> None:
    """Removes what was interrupted; the caller holds the lock."""
    for sibling in _leftovers(folder):
        if sibling.name.startswith(f".{folder.name}.old-") and not folder.exists():
            _log.warning("restoring %s, which an interrupted write had moved aside", folder)
            sibling.rename(folder)
        else:
            shutil.rmtree(sibling, ignore_errors=True)


def open_artifact(folder: Path, *, kind: str, remedy: str) -> Artifact:
    """Opens an artifact after checking every file against the manifest.

    Args:
        folder: the artifact's folder.
        kind: the kind that is expected.
        remedy: the command that makes it, for the message.

    Raises:
        MissingArtifactError: there is no such artifact.
        SchemaError: it is of another kind or from a newer PAME.
        CorruptArtifactError: a file is missing, extra, truncated, altered, or lies outside the folder.
    """
    recover_artifact(folder)
    if not (folder / MANIFEST).is_file():
        raise MissingArtifactError(f"there is no {kind} at {folder}. Make it with: {remedy}")
    manifest = read_manifest(folder, remedy=remedy)
    if manifest.kind != kind:
        raise SchemaError(f"{folder} holds a {manifest.kind}, not a {kind}. Make one with: {remedy}")
    _check_files(folder, manifest, remedy)
    return Artifact(folder=folder, manifest=manifest)


def read_manifest(folder: Path, *, remedy: str | None = None) -> Manifest:
    """Reads a manifest without looking at the files it lists; the manifest itself is checked.

    Args:
        folder: the artifact's folder.
        remedy: the command that makes the artifact, for the message.

    Raises:
        SchemaError: it is from a newer PAME, or not a manifest.
        CorruptArtifactError: it is a link, not JSON, or has changed since it was written.
    """
    path = folder / MANIFEST
    fix = f"Make the artifact again{f' with: {remedy}' if remedy else ''}"
    if path.is_symlink():
        raise CorruptArtifactError(f"{path} is a symbolic link; an artifact holds its own files. {fix}")
    plain = read_json(path, dict)
    version = plain.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise SchemaError(
            f"{path} has schema version {version}; this PAME reads up to {SCHEMA_VERSION}. "
            "Upgrade with: pip install -U pame"
        )
    if version != 1:
        own = plain.pop(_OWN_DIGEST, None)
        if own != digest_of(plain):
            raise CorruptArtifactError(f"{path} differs from its own SHA-256: damaged or edited. {fix}")
    try:
        return from_plain(Manifest, plain)
    except SchemaError as error:
        raise SchemaError(f"{path}: {error}") from error


def _check_files(folder: Path, manifest: Manifest, remedy: str) -> None:
    fix = f"Make it again with: {remedy}"
    root = folder.resolve()
    for entry in manifest.files:
        pure = PurePosixPath(entry.path)
        path = folder / entry.path
        if pure.is_absolute() or ".." in pure.parts or not path.resolve().is_relative_to(root):
            raise CorruptArtifactError(f"{folder / MANIFEST} lists '{entry.path}', which leaves the folder. {fix}")
        if path.is_symlink():
            raise CorruptArtifactError(f"{path} is a symbolic link; an artifact holds its own files. {fix}")
        if not path.is_file():
            raise CorruptArtifactError(f"{path} is listed in the manifest but missing. {fix}")
        if path.stat().st_size != entry.size:
            raise CorruptArtifactError(
                f"{path} has {path.stat().st_size} bytes, the manifest says {entry.size}: truncated or altered. {fix}"
            )
        if file_digest(path) != entry.sha256:
            raise CorruptArtifactError(f"{path} differs from the SHA-256 in the manifest. {fix}")
    listed = {entry.path for entry in manifest.files} | {MANIFEST}
    for path in sorted(folder.rglob("*")):
        if (path.is_file() or path.is_symlink()) and path.relative_to(folder).as_posix() not in listed:
            raise CorruptArtifactError(f"{path} is not listed in the manifest. Remove it, or: {fix}")


def is_current(folder: Path, *, kind: str, inputs: Mapping[str, str], parameters: Mapping[str, Any]) -> bool:
    """Tells whether ``folder`` already holds the artifact that these inputs and parameters give.

    A folder that is absent, damaged or made from something else is not current.
    """
    try:
        manifest = open_artifact(folder, kind=kind, remedy="").manifest
    except ArtifactError:
        return False
    return digest_of([manifest.inputs, manifest.parameters]) == digest_of([inputs, parameters])


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as an uncompressed ``.npz``; object arrays are refused."""
    with path.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **{name: np.asarray(value) for name, value in arrays.items()})


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an ``.npz`` without pickle.

    Raises:
        CorruptArtifactError: the file is not an ``.npz`` or holds pickled objects.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptArtifactError(f"{path} cannot be read as .npz without pickle: {error}") from error

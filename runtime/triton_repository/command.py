"""``python -m runtime.triton_repository``: a bundle as a model in a model repository of Triton."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts import (
    BUNDLE_JSON,
    Artifact,
    ArtifactError,
    BundleSpec,
    UsageError,
    open_artifact,
    open_scratch,
    read_json,
)
from artifacts.console import add_common_arguments, run_command, say
from runtime.remedy import bundle_remedy
from runtime.triton_repository.config import write_config

_BUNDLE = "1/bundle"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def make_parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m runtime.triton_repository",
        description="Add a bundle to a model repository of Triton, for its Python backend: the bundle itself, the code "
        "that runs it, and a config.pbtxt. PAME and the bundle's backend must be installed where Triton runs.",
    )
    add_common_arguments(parser)
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("repository", type=Path, metavar="DIR", help="the model repository; made where it is missing")
    parser.add_argument("--name", help="of the model (default: the bundle's)")
    parser.add_argument("--threads", type=int, help="of each engine (default: as the bundle was timed)")
    parser.add_argument(
        "--python-path", action="append", default=[], type=Path, metavar="DIR",
        help="where Triton's Python finds packages that are not installed for it, e.g. the site-packages of an "
        "environment of the same Python version; may be given several times",
    )  # fmt: skip
    parser.add_argument("--instances", type=int, default=1, help="processes that run it (default: %(default)s)")
    return parser


def write_model(python_path: Sequence[Path]) -> str:
    """Returns the text of model.py, which Triton imports: the model is PAME's, found in some folders first."""
    lines = ['"""A bundle of PAME: runtime.triton_repository.model has the code."""', ""]
    if python_path:
        lines += ["import sys", "", f"sys.path[:0] = {[str(folder.resolve()) for folder in python_path]!r}", ""]
    return "\n".join([*lines, "from runtime.triton_repository.model import TritonPythonModel  # noqa: E402,F401", ""])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return run_command(add_model, make_parser().parse_args(argv))


def add_model(arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the model, says how to serve it, and returns the result for ``--json``.

    Raises:
        UsageError: the name or a number cannot be, or there is another model of that name.
        MissingArtifactError, CorruptArtifactError, SchemaError: no sound bundle of a known format there.
    """
    for flag, value in (("--threads", arguments.threads), ("--instances", arguments.instances)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} {value}: expected a number from 1")
    bundle: Path = arguments.bundle
    artifact = open_artifact(bundle, kind="bundle", remedy=bundle_remedy(bundle))
    spec = read_json(artifact.path(BUNDLE_JSON), BundleSpec)
    name = arguments.name or spec.name
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"the model's name '{name}' is not one for Triton: letters, digits, '.', '_' and '-'; see --name"
        )
    folder = arguments.repository / name
    texts = {
        "config.pbtxt": write_config(spec, name=name, threads=arguments.threads, instances=arguments.instances),
        "1/model.py": write_model(arguments.python_path),
    }
    if folder.exists():
        if not _holds(folder, texts, artifact):
            raise UsageError(f"there is another model at {folder} already; remove it, or choose another --name")
        say(f"nothing has changed: the model in {folder} stands")
    else:
        with open_scratch(folder) as staging:
            shutil.copytree(bundle, staging / _BUNDLE)
            for place, text in texts.items():
                (staging / place).write_text(text)
            staging.rename(folder)
        say(f"wrote {folder}; serve it with: tritonserver --model-repository {arguments.repository}")
    return {
        "model": name, "folder": str(folder), "bundle_digest": artifact.digest, "max_batch_size": spec.max_batch_size,
    }  # fmt: skip


def _holds(folder: Path, texts: Mapping[str, str], bundle: Artifact) -> bool:
    """Is a model of the repository, every byte of it, the one that would be written?"""
    try:
        held = open_artifact(folder / _BUNDLE, kind=bundle.manifest.kind, remedy="")
        return held.digest == bundle.digest and all(
            (folder / place).read_text() == text for place, text in texts.items()
        )
    except (ArtifactError, OSError, UnicodeDecodeError):
        return False

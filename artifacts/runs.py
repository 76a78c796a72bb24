"""Run folders: the places of one network's artifacts, and the commands that make each of them."""

from __future__ import annotations

import functools
import logging
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from artifacts.errors import ArtifactError, UsageError
from artifacts.files.disk_errors import describe_failure
from artifacts.files.locks import hold_lock
from artifacts.files.replacing import try_replacing
from artifacts.store import MANIFEST, read_manifest, recover_artifact

P = ParamSpec("P")
R = TypeVar("R")

RUNS = Path("runs")
COMMAND = "command"
"""The note of a manifest's environment that holds the command line by which the artifact can be remade."""

_COMMANDS = {
    "export": ("model", "python -m export path/to/model.onnx --segments"),
    "calibration": ("trace", "python -m calibration"),
    "planner": ("plan", "python -m planner"),
    "sweep": ("sweep", "python -m planner --sweep"),
    "bench": ("", "python -m runtime.bench"),
    "report": ("", "python -m planner report"),
}  # step -> the artifact that records its command line, and the command where none is recorded


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """The folders of one network; each is an artifact of its own."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    def remedy(self, step: str) -> str:
        """Returns the command line that repeats a step of this run, for the end of an error message.

        It is the command that the step's artifact recorded, with the user's network, folder and options; where nothing
        is recorded (yet), it is the step's command with this run's folder.

        Args:
            step: ``export``, ``calibration`` (trains and traces), ``planner`` (times, plans, bundles), ``sweep``,
                ``bench`` or ``report``.
        """
        artifact, command = _COMMANDS[step]
        recorded = recorded_command(self.root / artifact) if artifact else None
        return recorded or f"{command} --run {shlex.quote(str(self.root))}"

    def check_writable(self) -> None:
        """Tries, before the work of a step, whether its results can be written to the folder.

        Raises:
            ArtifactError: they cannot, since the run is another user's, for instance.
        """
        try:
            try_replacing(self.root / "trial")
        except OSError as error:
            raise ArtifactError(f"nothing can be written to the run {self.root}: {describe_failure(error)}") from error

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def training(self) -> Path:
        return self.root / "training"

    @property
    def trace(self) -> Path:
        return self.root / "trace"

    @property
    def itm(self) -> Path:
        return self.root / "itm"

    @property
    def plan(self) -> Path:
        return self.root / "plan"

    @property
    def sweep(self) -> Path:
        return self.root / "sweep"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def engines(self) -> Path:
        """The cache of compiled engines, one artifact per key."""
        return self.root / "engines"


_held: ContextVar[frozenset[Path]] = ContextVar("runs in which this thread works alone", default=frozenset())
_log = logging.getLogger("pame.artifacts")


def work_alone(step: Callable[Concatenate[RunFolder, P], R]) -> Callable[Concatenate[RunFolder, P], R]:
    """Makes a step wait while another process, container or thread is in such a step of the same run.

    A step looks at what there is when its turn has come, so that the second of two equal ones finds the work done. It
    may contain others of the same run.
    """

    @functools.wraps(step)
    def alone(run: RunFolder, /, *args: P.args, **kwargs: P.kwargs) -> R:
        root = run.root.resolve()
        if root in _held.get() or not root.is_dir():
            return step(run, *args, **kwargs)
        with ExitStack() as stack:
            try:
                stack.enter_context(hold_lock(root / ".lock", what=str(run.root)))
            except OSError as error:  # then nothing can be written either, and what is there may do
                _log.info("%s cannot be locked: %s", run.root, error)
            stack.callback(_held.reset, _held.set(_held.get() | {root}))
            return step(run, *args, **kwargs)

    return alone


def recorded_command(folder: Path) -> str | None:
    """Returns the command line that remakes an artifact; ``None`` without an artifact or where it records none."""
    if not (folder / MANIFEST).is_file():
        return None
    try:
        return read_manifest(folder).environment.get(COMMAND)
    except ArtifactError:
        return None


def find_run(run: Path | None, *, name: str | None = None) -> RunFolder:
    """Returns the run that a command works on; what a killed process had moved aside in it is back in its place.

    Args:
        run: ``--run DIR``; takes precedence over ``name``.
        name: the network's name, for commands that take one.

    Raises:
        UsageError: no run was named and there is none, or more than one.
    """
    found = _find_run(run, name)
    places = (found.model, found.trace, found.itm, found.plan, found.sweep, found.bundle)
    for folder in (*places, found.training / "result", found.training / "weights"):
        recover_artifact(folder)
    return found


def _find_run(run: Path | None, name: str | None) -> RunFolder:
    if run is not None:
        return RunFolder(root=run)
    if name is not None:
        return RunFolder(root=RUNS / name)
    for aside in RUNS.glob("*/.model.old-*"):
        recover_artifact(aside.with_name("model"))
    found = sorted(path.parent for path in RUNS.glob("*/model") if path.is_dir())
    if len(found) == 1:
        return RunFolder(root=found[0])
    if not found:
        raise UsageError(
            "there is no run here yet. Start one with: python -m export path/to/model.onnx --segments "
            "(or a family in place of the file: resnet)"
        )
    names = ", ".join(str(path) for path in found)
    raise UsageError(f"there are several runs ({names}). Name one with: --run {found[0]}")

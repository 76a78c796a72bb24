"""``runs/<name>/``: where the artifacts of one network lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import UsageError

RUNS = Path("runs")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """The folders of one network; each is an artifact of its own."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

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


def find_run(run: Path | None, *, name: str | None = None) -> RunFolder:
    """Returns the run that a command works on.

    Args:
        run: ``--run DIR``; wins when given.
        name: the network's name, for commands that are told one.

    Raises:
        UsageError: no run was named and there is none, or more than one.
    """
    if run is not None:
        return RunFolder(root=run)
    if name is not None:
        return RunFolder(root=RUNS / name)
    found = sorted(path.parent for path in RUNS.glob("*/model") if path.is_dir())
    if len(found) == 1:
        return RunFolder(root=found[0])
    if not found:
        raise UsageError("there is no run here yet. Start one with: python -m export resnet --segments")
    names = ", ".join(str(path) for path in found)
    raise UsageError(f"there are several runs ({names}). Name one with: --run {found[0]}")

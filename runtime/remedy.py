"""Remedy for a bundle that cannot be used: the command line that makes it again, for the end of an error message."""

from __future__ import annotations

from pathlib import Path

from artifacts import RunFolder, recorded_command

PLAN_AGAIN = "python -m planner"


def bundle_remedy(folder: Path) -> str:
    """Returns the command that makes the bundle in ``folder`` again.

    That is the one that the bundle recorded, or else that of the run in which it lies, or else the bare command.
    """
    recorded = recorded_command(folder)
    if recorded is not None:
        return recorded
    run = find_own_run(folder)
    return PLAN_AGAIN if run is None else run.remedy("planner")


def find_own_run(bundle: Path) -> RunFolder | None:
    """Returns the run in which a bundle lies; ``None`` for one that was carried elsewhere."""
    run = RunFolder(root=bundle.parent)
    return run if run.model.is_dir() else None

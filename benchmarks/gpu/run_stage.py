"""A stage, run: its module is imported, its rows go into its record, and no failure is lost.

    python -m benchmarks.gpu.run_stage b --out DIR --bound 80

Exit code 0: every row was measured or left out for want of time; 1: at least one row has an error. A stage whose
module cannot even be imported, since a library is missing or was built for another Python, is a record that says so.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.environment import describe_environment
from benchmarks.gpu.record import Record
from benchmarks.gpu.stages import Setting, find_stage


def run_stage(letter: str, out: Path, setting: Setting, *, bound_s: float) -> int:
    """Runs a stage in this process; returns its exit code."""
    record = Record(out / f"{letter}.json", bound_s=bound_s, rehearsal=setting.rehearsal)
    record.note(process=os.getpid(), environment=describe_environment())
    name = f"benchmarks.gpu.{find_stage(letter).module}"
    module = record.attempt(f"import {name}", lambda: importlib.import_module(name))
    if module is not None:
        if setting.rehearsal:
            record.attempt("stand-ins for a rehearsal", _install_stand_ins)
        record.attempt("the stage as a whole", lambda: module.measure(record, setting))
    record.end()
    return int(record.failed)


def _install_stand_ins() -> dict[str, str]:
    from benchmarks.gpu.rehearsal import install_stand_ins

    return {"stand_ins": install_stand_ins()}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the stage's exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.run_stage", description=__doc__.splitlines()[0])
    parser.add_argument("stage", help="its letter")
    parser.add_argument("--out", type=Path, required=True, help="the folder of the records")
    parser.add_argument("--bound", type=float, default=600.0, help="seconds until it will be cut off")
    parser.add_argument("--scratch", type=Path, help="a folder that the stages share (default: a temporary one)")
    parser.add_argument("--prebuilt", type=Path, help="what benchmarks.gpu.prepare made")
    parser.add_argument("--networks", default="", help="of stage d, comma-separated")
    parser.add_argument("--rehearse", action="store_true", help="small sizes, no GPU")
    given = parser.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pame-gpu-") as own:
        setting = Setting(
            scratch=given.scratch or Path(own), prebuilt=given.prebuilt, rehearsal=given.rehearse,
            networks=tuple(name for name in given.networks.split(",") if name),
        )  # fmt: skip
        return run_stage(given.stage, given.out, setting, bound_s=given.bound)


if __name__ == "__main__":
    sys.exit(main())

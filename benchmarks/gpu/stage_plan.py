"""Stage g: the planner and the bench on this GPU, as a user runs them, over the model and the trace of a processor."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.environment import load_cuda_libraries
from benchmarks.gpu.nets.making import ensure_subject
from benchmarks.gpu.record import Record
from benchmarks.gpu.stages import CUDA_BACKEND, Setting

RUN = "run"
PLANS = ((256, 0.1), (32, 0.2))  # batch size, --stay-allowance
_OPEN = """
import sys
from engines.ort.cuda_session import open_cuda_session
session = open_cuda_session(sys.argv[1], index=0, stream=None, what="open the demo")
assert "torch" not in sys.modules
print(session.get_providers())
"""


def measure(record: Record, setting: Setting) -> None:
    """Plans and measures the demo for a large batch and for the usual one."""
    if setting.prebuilt is None or not (setting.prebuilt / RUN).is_dir():
        record.add("plan", skipped="no run was brought along: python -m benchmarks.gpu.prepare DIR --run RUN")
        return
    if not setting.rehearsal:
        record.attempt(f"{CUDA_BACKEND} without torch", partial(_open_by_itself, setting))
    record.attempt("CUDA libraries", load_cuda_libraries)
    for size, allowance in ((4, 0.1),) if setting.rehearsal else PLANS:
        run = setting.scratch / f"run-{size}"
        shutil.copytree(setting.prebuilt / RUN, run)
        title = f"batches of {size}, a stay allowance of {allowance}"
        planned = record.attempt(f"plan, {title}", partial(_plan, run, setting, size, allowance), needs_s=20)
        if planned is not None:
            record.attempt(f"bench, {title}", partial(_bench, run, setting), needs_s=10)


def _open_by_itself(setting: Setting) -> dict[str, Any]:
    """Opens a session in a process that never imports torch: do pip's CUDA libraries serve?"""
    subject = ensure_subject(setting.demos[0][0], setting)
    path = str(subject.folder / subject.spec.full.file)
    command = [sys.executable, "-c", _OPEN, path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return {"providers": done.stdout.strip()}


def _plan(run: Path, setting: Setting, size: int, allowance: float) -> dict[str, Any]:
    from planner.commands.main import main

    few = ("--batch-sizes", f"1,{size}", "--rounds", "2", "--certify", "none", "--tolerance", "0.5")
    options = few if setting.rehearsal else ("--tolerance", "0.01", "--time-budget", "25")
    asked = ["--engine", CUDA_BACKEND, "--batch-size", str(size), "--stay-allowance", str(allowance)]
    return _run(main, ["--run", str(run), *asked, *options])


def _bench(run: Path, setting: Setting) -> dict[str, Any]:
    from runtime.bench.command import main

    samples = ("--rounds", "1", "--samples", "64") if setting.rehearsal else ("--rounds", "5")
    return _run(main, ["--run", str(run), *samples])


def _run(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> dict[str, Any]:
    """Runs a command in this process; returns the object that it writes as JSON.

    Raises:
        RuntimeError: it failed; the log has its words.
    """
    target = Path(arguments[1]) / "said.json"
    code = main([*arguments, "--json", str(target)])
    if code:
        raise RuntimeError(f"exit code {code}: {' '.join(arguments)}")
    said: dict[str, Any] = json.loads(target.read_text())
    return said

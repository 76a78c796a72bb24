"""``python -m tests.faults.sweeping FOLDER few|all [COMMAND ...]``: faults at the writes of commands that fill a run.

Every command begins where another ended. What was tried and what was wrong goes to stdout as one JSON object.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts import ArtifactError, RunFolder, open_artifact, read_manifest
from tests.faults.disk_faults import (
    CUT,
    FULL,
    KILLED,
    TERMINATED,
    Ending,
    Fault,
    copy_world,
    find_faults,
    run_forked,
)
from tests.planner.source_worlds import write_dense_file, write_right_data


def serve_rows(folder: Path) -> None:
    """Lets a host see rows at every exit of the run's bundle, and log them to ``log``."""
    from calibration import as_batch, load_run_data
    from runtime import Runtime

    run = RunFolder(root=folder / "runs" / "dense")
    samples = load_run_data(run, str(folder / "data.npz"))
    batch = as_batch(samples.inputs(samples.indices_of("test")))
    with Runtime.load(run.bundle, shadow_log=folder / "log", shadow_fraction=1.0, log_inputs=True) as runtime:
        for _ in range(4):
            runtime.run(batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command that is swept.

    Attributes:
        module: has its ``main``.
        words: its arguments.
        after: the command that it begins where it ended; ``None``: in a folder with a network and data.
        prepare: done in that folder before it.
    """

    module: str
    words: str
    after: str | None = None
    prepare: Callable[[Path], object] | None = None


_QUICK = "--threads 1 --rounds 3 --contenders 1 --batch-size 4"
_PLAN = f"--run runs/dense --tolerance 0.9 --certify none --stay-allowance 10 {_QUICK}"
_ENDED = "--json ended.json"
COMMANDS: dict[str, Command] = {
    "export": Command(module="export.cli", words="dense.onnx --segments"),
    "calibration": Command(
        module="calibration.cli", words="dense --data data.npz --threads 1 --epochs 1 --head-share 1", after="export"
    ),
    "unlabelled": Command(
        module="calibration.cli", words="dense --data blank.npz --threads 1 --epochs 1 --head-share 1", after="export"
    ),
    "family": Command(
        module="export.cli", words="resnet --segments --weights random --input-shape 1,8,8 --every 4 --run runs/family"
    ),
    "joint": Command(
        module="calibration.cli", after="family",
        words="--run runs/family --data ten.npz --threads 1 --train joint --epochs 2 --backbone-epochs 1 --force",
    ),
    "planner": Command(module="planner.commands.main", words=_PLAN, after="calibration"),
    "sweep": Command(
        module="planner.commands.main", after="calibration",
        words=f"--run runs/dense --sweep 0.1,0.2 --certify none {_QUICK} {_ENDED}",
    ),
    "variants": Command(
        module="planner.commands.main", after="planner",
        words=f"dense.onnx {_PLAN} --data data.npz --epochs 1 --head-share 1 --precisions fp32,int8",
    ),
    "compare": Command(
        module="planner.commands.main", words=f"compare --run runs/dense {_ENDED} --plot ended.png", after="variants"
    ),
    "validate": Command(
        module="planner.commands.main", after="planner",
        words=f"validate --run runs/dense --tolerance 0.2 --resplits 3 --batch-size 4 {_ENDED} --plot ended.png",
    ),
    "recalibrate": Command(
        module="planner.commands.main", after="planner", prepare=serve_rows,
        words="recalibrate --run runs/dense --log log --tolerance 0.9",
    ),
    "retime": Command(module="planner.commands.main", words=f"--retime --run runs/dense {_ENDED}", after="planner"),
    "bench": Command(
        module="runtime.bench.command", words=f"--run runs/dense --rounds 2 {_ENDED} --plot ended.png", after="planner"
    ),
    "simulate": Command(
        module="runtime.simulate.command", words=f"--run runs/dense --requests 200 {_ENDED}", after="planner"
    ),
    "loadtest": Command(
        module="runtime.loadtest.command", after="planner",
        words="--run runs/dense --samples 20 --policies chain --slo-ms 200 --seconds 0.1 --repeats 1 --steps 1 "
        f"--threads 1 {_ENDED} --plot ended.png",
    ),
    "report": Command(module="planner.commands.main", words="report --run runs/dense", after="planner"),
    "portable": Command(
        module="planner.commands.main", words="portable --run runs/dense --output net.onnx --samples 20",
        after="planner",
    ),
    "repository": Command(
        module="runtime.triton_repository.command", words=f"runs/dense/bundle repository {_ENDED}", after="planner"
    ),
    "scout": Command(module="planner.commands.main", words=f"scout dense.onnx --data data.npz --threads 1 {_ENDED}"),
}  # fmt: skip
FEW = {
    "export": ((FULL, "open runs/dense/.model.new-*/cuts.json"), (CUT, "open runs/dense/.model.new-*/full.onnx"),
               (TERMINATED, "open runs/dense/.model.new-*/parity.json")),
    "calibration": ((KILLED, "os.mkdir runs/dense/training/.timing.new-*/heads_N"),),
    "unlabelled": ((FULL, "open runs/dense/training/.result.new-*/manifest.json"),),
    "planner": ((CUT, "open runs/dense/.plan.new-*/grid.npz"), (KILLED, "os.rename runs/dense/bundle")),
    "bench": ((KILLED, "open .ended.json.new-*"), (CUT, "open .ended.png.new-*")),
    "simulate": ((FULL, "open .ended.json.new-*"), (FULL, "open .ended.json.new-try*")),
    "portable": ((FULL, "open .net.onnx.new-*/no rows/net.onnx"),),
}  # fmt: skip
"""Command -> the faults of the quick sweep, each a different mechanism."""
_IMPORTED_FIRST = ("torch", "onnxruntime", "onnx_ir", "matplotlib.pyplot", "calibration.training.frozen")
_EXIT_CODES = {FULL: 1, CUT: 1, KILLED: -9, TERMINATED: 143}
_ENDS = ("ended.json", "ended.png", "net.onnx", "runs/dense/report.html")


def main(argv: Sequence[str]) -> int:
    """Runs the sweep; returns 1 where something was wrong."""
    root, extent, chosen = Path(argv[0]), argv[1], argv[2:] or tuple(COMMANDS)
    for name in (*_IMPORTED_FIRST, *(command.module for command in COMMANDS.values())):
        importlib.import_module(name)
    worlds = Worlds(root)
    found: dict[str, Any] = {"tried": 0, "wrong": []}
    for name in chosen:
        few = [Fault(kind=kind, write=write) for kind, write in FEW.get(name, ())]
        if extent == "few" and not few:
            continue
        before, ending, after = worlds.before(name), *worlds.run(name)
        for fault in few if extent == "few" else find_faults(ending.writes, tuple(_EXIT_CODES)):
            wrong = _try(name, fault, before, copy_world(before, root / "tried"), _read_state(after))
            found["tried"] += 1
            found["wrong"] += [f"{name}, {fault.kind} at {fault.write}: {problem}" for problem in wrong]
            print(f"{name}, {fault.kind} at {fault.write}: {wrong or 'right'}", file=sys.stderr, flush=True)
            shutil.rmtree(root / "tried")
    print(json.dumps(found))
    return int(bool(found["wrong"]))


class Worlds:
    """The folders that commands begin with and end with, each made once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._first = root / "first"
        self._first.mkdir(parents=True)
        write_right_data(write_dense_file(self._first, end=60_000), self._first / "data.npz")
        with np.load(self._first / "data.npz") as data:
            images = data["images"]
        np.savez(self._first / "blank.npz", images=images)
        np.savez(self._first / "ten.npz", images=images, labels=np.arange(len(images)) % 10)
        self._before: dict[str, Path] = {}
        self._runs: dict[str, tuple[Ending, Path]] = {}

    def before(self, name: str) -> Path:
        """Returns the folder that a command begins with."""
        if name not in self._before:
            command = COMMANDS[name]
            folder = self._first if command.after is None else self.run(command.after)[1]
            if command.prepare is not None:
                folder = copy_world(folder, self._root / f"{name} prepared")
                command.prepare(folder)
            self._before[name] = folder
        return self._before[name]

    def run(self, name: str) -> tuple[Ending, Path]:
        """Returns how a command ends without a fault, and the folder that it ends with."""
        if name not in self._runs:
            folder = copy_world(self.before(name), self._root / name)
            ending = _run(name, folder)
            if ending.code != 0:
                raise RuntimeError(f"{name} without a fault: {ending.text}")
            self._runs[name] = ending, folder
        return self._runs[name]


def _run(name: str, folder: Path, fault: Fault | None = None) -> Ending:
    command = COMMANDS[name]
    return run_forked(command.module, command.words.split(), folder, fault)


def _try(name: str, fault: Fault, before: Path, folder: Path, after: dict[str, str]) -> list[str]:
    """Returns what is wrong when a command meets a fault, and then is run again without one."""
    ending = _run(name, folder, fault)
    wrong = [] if fault.write in ending.writes else ["the write did not come"]
    if ending.code != _EXIT_CODES[fault.kind]:
        wrong.append(f"exit code {ending.code}: {ending.text[-300:]}")
    if "Traceback" in ending.text:
        wrong.append(f"a stack: {ending.text[-600:]}")
    if fault.kind in (FULL, CUT) and not any(words in ending.text for words in ("no space left", "ulimit -f")):
        wrong.append(f"the reason is not told: {ending.text[-300:]}")
    states = _read_state(before), after
    for place, state in _read_state(folder).items():
        if state.startswith("broken"):
            wrong.append(f"{place} is {state}")
        elif place in _ENDS and not any(place in known for known in states):
            wrong.append(f"{place} came from nowhere")
    if fault.kind != KILLED and (left := _find_leftovers(folder)):
        wrong.append(f"left behind: {left}")
    again = _run(name, folder)
    if again.code != 0 or "Traceback" in again.text:
        wrong.append(f"the next run ends with {again.code}: {again.text[-300:]}")
    left = _find_leftovers(folder)
    if fault.kind == KILLED:  # what a killed process had in the folder for temporary files is the system's to remove
        left = [name for name in left if not name.startswith("tmp/")]
    if left:
        wrong.append(f"left behind after the next run: {left}")
    if missing := sorted(set(after) - set(_read_state(folder))):
        wrong.append(f"not there after the next run: {missing}")
    return wrong


def _read_state(folder: Path) -> dict[str, str]:
    """Returns artifact or file -> ``whole``, or what is broken about it."""
    state = {}
    for manifest in sorted(folder.rglob("manifest.json")):
        place = manifest.parent
        name = place.relative_to(folder).as_posix()
        if "engines/" in name or any(part.startswith(".") for part in Path(name).parts):
            continue  # engines have names of their own; hidden folders are nobody's yet
        try:
            open_artifact(place, kind=read_manifest(place).kind, remedy="")
            state[name] = "whole"
        except ArtifactError as error:
            state[name] = f"broken: {error}"
    for name in _ENDS:
        if (folder / name).exists():
            state[name] = "whole" if _is_whole(folder / name) else "broken"
    return state


def _is_whole(path: Path) -> bool:
    content = path.read_bytes()
    if path.suffix == ".json":
        try:
            json.loads(content)
        except ValueError:
            return False
    ends = {".png": b"IEND\xaeB`\x82", ".html": b"</html>"}
    return bool(content) and content.rstrip().endswith(ends.get(path.suffix, b""))


def _find_leftovers(folder: Path) -> list[str]:
    """Returns hidden siblings of what commands write, and temporary files that are ours."""
    hidden = [path for path in folder.rglob(".*") if path.name not in (".cache", ".config")]
    temporary = [path for path in folder.glob("tmp/*") if not path.name.startswith("torchinductor")]
    return sorted(path.relative_to(folder).as_posix() for path in (*hidden, *temporary))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

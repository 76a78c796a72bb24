"""``python -m tests.faults.sweeping FOLDER few|all [COMMAND ...]``: faults at the writes of commands that fill a run.

Every command begins where the one before it ended. What was tried and what was wrong goes to stdout as one JSON object.
"""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from artifacts import ArtifactError, open_artifact, read_manifest
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

COMMANDS: dict[str, tuple[str, str]] = {
    "export": ("export.cli", "dense.onnx --segments"),
    "calibration": ("calibration.cli", "dense --data data.npz --threads 1 --epochs 1 --head-share 1"),
    "planner": (
        "planner.commands.main",
        "--run runs/dense --tolerance 0.2 --certify none --threads 1 --rounds 3 --contenders 1 --batch-size 4",
    ),
    "bench": ("runtime.bench.command", "--run runs/dense --rounds 2 --json bench.json --plot bench.png"),
    "report": ("planner.commands.main", "report --run runs/dense"),
    "portable": ("planner.commands.main", "portable --run runs/dense --output net.onnx --samples 20"),
    "repository": ("runtime.triton_repository.command", "runs/dense/bundle repository"),
}
"""Name -> module with its ``main``, and arguments; in the order in which they are run."""
FEW = {
    "export": ((FULL, "open runs/dense/.model.new-*/cuts.json"), (CUT, "open runs/dense/.model.new-*/full.onnx"),
               (TERMINATED, "open runs/dense/.model.new-*/parity.json")),
    "calibration": ((KILLED, "os.mkdir runs/dense/training/.timing.new-*/heads_N"),),
    "planner": ((CUT, "open runs/dense/.plan.new-*/grid.npz"), (KILLED, "os.rename runs/dense/bundle")),
    "bench": ((KILLED, "open .bench.json.new-*"), (CUT, "open .bench.png.new-*")),
    "portable": ((FULL, "open .net.onnx.new-*/no rows/net.onnx"),),
}  # fmt: skip
"""Command -> the faults of the quick sweep, each a different mechanism."""
_IMPORTED_FIRST = ("torch", "onnxruntime", "onnx_ir", "matplotlib.pyplot", "calibration.training.frozen")
_EXIT_CODES = {FULL: 1, CUT: 1, KILLED: -9, TERMINATED: 143}
_ENDS = ("bench.json", "bench.png", "net.onnx", "runs/dense/report.html")


def main(argv: Sequence[str]) -> int:
    """Runs the sweep; returns 1 where something was wrong."""
    root, extent, chosen = Path(argv[0]), argv[1], argv[2:] or tuple(COMMANDS)
    for name in (*_IMPORTED_FIRST, *(module for module, _ in COMMANDS.values())):
        importlib.import_module(name)
    before = root / "before"
    before.mkdir(parents=True)
    write_right_data(write_dense_file(before), before / "data.npz")
    found: dict[str, Any] = {"tried": 0, "wrong": []}
    for name in COMMANDS:
        after = copy_world(before, root / name)
        ending = _run(name, after)
        if ending.code != 0:
            raise RuntimeError(f"{name} without a fault: {ending.text}")
        if name in chosen:
            few = [Fault(kind=kind, write=write) for kind, write in FEW.get(name, ())]
            faults = few if extent == "few" else find_faults(ending.writes, tuple(_EXIT_CODES))
            for fault in faults:
                wrong = _try(name, fault, before, copy_world(before, root / "tried"), _read_state(after))
                found["tried"] += 1
                found["wrong"] += [f"{name}, {fault.kind} at {fault.write}: {problem}" for problem in wrong]
                print(f"{name}, {fault.kind} at {fault.write}: {wrong or 'right'}", file=sys.stderr, flush=True)
                shutil.rmtree(root / "tried")
        before = after
    print(json.dumps(found))
    return int(bool(found["wrong"]))


def _run(name: str, folder: Path, fault: Fault | None = None) -> Ending:
    module, words = COMMANDS[name]
    return run_forked(module, words.split(), folder, fault)


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
    if left := _find_leftovers(folder):
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

"""Forked processes: they refuse what was opened before the fork, open their own, and end by themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
if not hasattr(os, "fork"):
    pytest.skip("needs fork", allow_module_level=True)

FORKED = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
{first}
from engines import GraphRunner
graph, x = Path(sys.argv[1]), np.ones((3, 1, 6, 6), np.float32)
runner = GraphRunner(graph, threads=2)  # a pool of threads
runner.run({{"x": x}})
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends it with a signal where it hangs
    said = []
    try:
        runner.run({{"x": x}})
    except Exception as error:
        said.append(str(error))
    runner.close()
    with GraphRunner(graph, threads=2) as own:
        said.append(own.run({{"x": x}})["logits"].shape[0])
    Path(sys.argv[2]).write_text(json.dumps(said))
    sys.exit(7)
_, status = os.waitpid(child, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), os.environ.get("ORT_DISABLE_TELEMETRY")]))
"""


@pytest.mark.parametrize("first", ["", "import onnxruntime"], ids=["ours", "the host's"])
def test_a_forked_process_refuses_opens_its_own_and_ends(onnx_file: Path, tmp_path: Path, first: str) -> None:
    said = tmp_path / "said.json"
    done = subprocess.run(
        [sys.executable, "-c", FORKED.format(first=first), onnx_file, said],
        capture_output=True, text=True, timeout=60, check=True,
        env={name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"},
    )  # fmt: skip
    assert json.loads(done.stdout) == [7, None]
    refusal, rows = json.loads(said.read_text())
    assert "forked" in refusal
    assert "Open it again after the fork" in refusal
    assert rows == 3


WORKERS = """
import gc, multiprocessing, sys
from pathlib import Path
import numpy as np
from engines import GraphRunner
graph, x = Path(sys.argv[1]), np.ones((3, 1, 6, 6), np.float32)
runner = GraphRunner(graph, threads=2)
runner.run({"x": x})
def work():  # drops what the parent opened, as a worker does that replaces its globals
    global runner
    runner = None
    gc.collect()
context = multiprocessing.get_context("fork")
worker = context.Process(target=work)
worker.start()
worker.join(20)
print(worker.exitcode)
worker.kill()
runner.run({"x": x})
"""


def test_a_worker_may_drop_what_its_parent_opened(onnx_file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WORKERS, onnx_file], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "0"

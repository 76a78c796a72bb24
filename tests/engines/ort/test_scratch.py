"""Sessions of one process that share an arena, in processes of their own, since an arena stays registered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnxruntime")
if not Path("/proc/self/status").exists():
    pytest.skip("needs Linux", allow_module_level=True)


MEASURE = """
import sys
from pathlib import Path
import numpy as np
from onnx import TensorProto, helper, numpy_helper
import engines
from engines import GraphRunner, share_scratch

def graph(seed):
    nodes = [helper.make_node("Sin" if layer % 2 else "Cos", [f"x{layer}"], [f"x{layer + 1}"]) for layer in range(4)]
    nodes.append(helper.make_node("ReduceMean", ["x4"], ["y"], keepdims=0, axes=[1]))
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    made = helper.make_graph(nodes, f"g{seed}", [value("x0", ["n", 1_000_000])], [value("y", ["n"])])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    return model.SerializeToString()

if sys.argv[1] == "shared":
    share_scratch()
rows = np.linspace(0, 1, 4_000_000, dtype=np.float32).reshape(4, -1)
runners = [GraphRunner(graph(seed), threads=1) for seed in range(8)]
found = [runner.run({"x0": rows})["y"] for runner in runners for _ in range(2)]
assert all(np.array_equal(found[0], other) for other in found)
peak, = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(peak) // 1024)  # not ru_maxrss, which is that of the parent if that is more
"""


def peak_mb(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", MEASURE, how], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_sessions_that_share_an_arena_hold_the_scratch_memory_of_one() -> None:
    apart, together = peak_mb("apart"), peak_mb("shared")
    assert apart - together > 5 * 16  # each of eight holds a tensor or two of 16 MB when it runs


def test_asking_for_a_shared_arena_loads_no_backend() -> None:
    code = "import sys, engines; engines.share_scratch(); sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0

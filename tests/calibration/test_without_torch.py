"""Calibration and planning without torch: a run whose exit heads are trained needs it no more."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ROOT / "tests" / "fixtures" / "run_0.1.0"
QUICK = [
    "--batch-size", "4", "--threads", "1", "--rounds", "1", "--contenders", "1", "--tail-share", "0",
    "--stay-allowance", "9", "--certify", "none", "--tolerance", "0.1",
]  # fmt: skip


def run_without_torch(command: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in an interpreter in which torch and what comes with it cannot be imported."""
    code = textwrap.dedent(f"""
        import runpy, sys
        from importlib.abc import MetaPathFinder
        class Absent(MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in ("torch", "torchvision", "onnxscript", "safetensors"):
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Absent())
        sys.argv = {[command, *words]!r}
        runpy.run_module({command!r}, run_name="__main__", alter_sys=True)
    """)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    """A run with model, exit heads and data."""
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    for made in ("trace", "plan", "bundle", "itm"):
        shutil.rmtree(run / made)
    return run


def test_a_run_with_trained_heads_is_traced_and_planned_without_torch(complete: Path) -> None:
    pytest.importorskip("onnxruntime", reason="runs the engines: pip install 'pame[onnxruntime]'")
    words = ["--run", str(complete), "--data", str(complete / "data.npz")]
    traced = run_without_torch("calibration", *words, "--threads", "1")
    assert traced.returncode == 0, traced.stderr
    assert (complete / "trace" / "trace.npz").is_file()
    planned = run_without_torch("planner", *words, *QUICK)
    assert planned.returncode == 0, planned.stderr
    assert "collecting the trace" not in planned.stderr
    assert (complete / "bundle" / "bundle.json").is_file()


def test_missing_heads_name_the_extra_that_trains_them(complete: Path) -> None:
    pytest.importorskip("onnx_ir", reason="reads the model folder: pip install 'pame[export]'")
    from dataclasses import replace

    from artifacts import new_artifact, open_model, write_model_spec

    model = open_model(complete / "model", remedy="")
    shutil.copytree(complete / "model", complete / "before")
    with new_artifact(complete / "model", kind="model") as staging:
        for path in (complete / "before").glob("*.onnx"):
            shutil.copy(path, staging)
        write_model_spec(staging, replace(model.spec, heads={}))
    for command in ("calibration", "planner"):
        done = run_without_torch(command, "--run", str(complete), "--data", str(complete / "data.npz"))
        assert done.returncode == 1
        assert "torch is not installed. Install it with: pip install 'pame[train]'" in done.stderr
        assert "Traceback" not in done.stderr

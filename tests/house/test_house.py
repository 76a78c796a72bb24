"""Tests of the house: imports without optional packages, shipped files, help and messages of the commands."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("artifacts", "calibration", "engines", "export", "planner", "runtime")
COMMANDS = (
    "calibration", "engines", "export", "planner", "runtime.bench", "runtime.loadtest", "runtime.serve",
    "runtime.simulate", "runtime.triton_repository",
)  # fmt: skip
OPTIONAL = (
    "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors", "rich", "matplotlib", "PIL",
    "tensorrt", "tensorrt_rtx", "tensorrt_bindings", "tensorrt_rtx_bindings", "cuda", "pycuda", "cupy", "polygraphy",
    "transformers", "starlette", "uvicorn", "httptools", "orjson", "prometheus_client", "tritonclient", "grpc",
    "grpc_health", "google",
)  # fmt: skip


def run_bare(script: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in an interpreter in which no optional package can be imported."""
    block = f"""
        import sys
        from importlib.abc import MetaPathFinder
        class Absent(MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {OPTIONAL!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Absent())
    """
    code = textwrap.dedent(block) + textwrap.dedent(script)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_without_any_optional_package_and_starts_nothing(room: str) -> None:
    done = run_bare(f"""
        import threading, {room}
        assert threading.active_count() == 1
        assert len(set({room}.__all__)) == len({room}.__all__)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


@pytest.mark.parametrize("room", ["artifacts", "engines", "runtime"])
def test_every_module_of_what_a_host_embeds_imports_without_any_optional_package(room: str) -> None:
    modules = sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / room).rglob("*.py")
        if path.stem != "__main__"
    )
    assert len(modules) >= {"artifacts": 11, "engines": 48, "runtime": 15}[room]
    done = run_bare(f"""
        import importlib
        for name in {modules!r}:
            importlib.import_module(name)
    """)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"])
def test_a_gpu_without_its_packages_is_a_message(backend: str) -> None:
    done = run_bare(f"""
        from artifacts import PameError
        from engines import open_device
        try:
            open_device({backend!r})
        except PameError as error:
            print(error)
    """)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "cuda-bindings is not installed. Install it with: pip install 'pame[cuda]'\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_works_without_any_optional_package(command: str) -> None:
    done = run_bare(f"""
        import runpy
        sys.argv = ["{command}", "--help"]
        runpy.run_module("{command}", run_name="__main__", alter_sys=True)
    """)
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


@pytest.mark.parametrize("command", ["scout", "validate", "recalibrate", "import-trace"])
def test_help_of_further_planner_commands_works_without_any_optional_package(command: str) -> None:
    done = run_bare(f"""
        import runpy
        sys.argv = ["planner", "{command}", "--help"]
        runpy.run_module("planner", run_name="__main__", alter_sys=True)
    """)
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


@pytest.mark.parametrize("command", ["calibration", "export", "planner"])
def test_a_missing_extra_is_named(command: str, tmp_path: Path) -> None:
    done = run_bare(f"""
        import runpy
        sys.argv = ["{command}", "--run", {str(tmp_path / "run")!r}]
        if "{command}" == "export": sys.argv.append("resnet")
        runpy.run_module("{command}", run_name="__main__", alter_sys=True)
    """)
    assert done.returncode == 1, done.stderr
    assert "pip install 'pame[" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_exists(room: str) -> None:
    module = __import__(room)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_what_is_shipped() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["name"] == "pame"
    assert project["project"]["dependencies"] == ["numpy>=1.26"]
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert sorted(patterns) == [f"{room}*" for room in sorted(ROOMS)]
    folders = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
    extras = {
        "onnxruntime", "onnxruntime-cuda", "images", "loadtest", "tables", "export", "train", "report", "cuda",
        "pycuda", "tensorrt", "tensorrt-rtx", "openvino", "openvino-bf16", "hf", "text", "compare", "serve", "signing",
        "otel", "ray",
        "all",
        "dev",
    }  # fmt: skip
    assert set(project["project"]["optional-dependencies"]) == extras


def test_module_entry_points_are_four_lines() -> None:
    for room in ("calibration", "engines", "export", "planner"):
        lines = [line for line in (ROOT / room / "__main__.py").read_text().splitlines() if line.strip()]
        assert len(lines) <= 4, room

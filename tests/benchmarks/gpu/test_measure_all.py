"""The measurement on a GPU, rehearsed: every stage on the fake CUDA driver, cut off, without what it needs.

Nothing here was measured on a GPU; the records say so themselves.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.rehearsal import build_driver
from benchmarks.gpu.stages import STAGES

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "benchmarks" / "gpu" / "measure_all.sh"
LETTERS = [stage.letter for stage in STAGES]
UNASKED = [stage.letter for stage in STAGES if not stage.on_request]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # the bounds below are for a machine that does much else
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a shell script for Linux"),
]


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Returns what starts the script on a fake CUDA driver, which is built once."""
    if shutil.which("g++") is None:
        pytest.skip("compiles a fake CUDA driver: needs g++")
    driver = build_driver(tmp_path_factory.mktemp("fake_cuda"))

    def begin(out: Path, *options: str) -> subprocess.Popen[str]:
        bounds = [option for letter in LETTERS for option in ("--bound", f"{letter}=300")]
        command = ["bash", str(SCRIPT), "--rehearse", "--driver", str(driver), "--python", sys.executable]
        command += ["--out", str(out), "--budget", "2000", *bounds, *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return begin


def read(out: Path, letter: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / f"{letter}.json").read_text())
    return content


def summary(out: Path) -> dict[str, dict[str, Any]]:
    content = json.loads((out / "summary.json").read_text())
    assert content["rehearsal"] is not None
    return {stage["stage"]: stage for stage in content["stages"]}


NOT_CAPTURED = "RuntimeError: a chain was not captured; the log has the driver's words"  # a session of the processor


def errors(content: dict[str, Any]) -> str:
    return "\n".join(str(row["error"]) for row in content["rows"] if "error" in row)


def find_rows(content: dict[str, Any], part: str) -> list[dict[str, Any]]:
    found = [row for row in content["rows"] if part in row["row"]]
    assert found, f"no row '{part}' among {[row['row'] for row in content['rows']]}"
    return found


@pytest.fixture(scope="module")
def rehearsed(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a whole rehearsal."""
    for package in ("cuda.bindings.driver", "onnxruntime", "onnx", "torch"):
        pytest.importorskip(package)
    out = tmp_path_factory.mktemp("measured")
    process = start(out, "--only", ",".join(LETTERS))
    said, _ = process.communicate(timeout=800)
    assert process.returncode in (0, 1), said
    assert said.count("a rehearsal: nothing below was measured on a GPU") == 1
    return out


@pytest.mark.parametrize("letter", LETTERS)
def test_every_stage_comes_to_its_end_and_says_that_it_is_a_rehearsal(rehearsed: Path, letter: str) -> None:
    content = read(rehearsed, letter)
    assert content["state"] == "ended", content
    assert content["rehearsal"] is True
    assert content["environment"]["packages"]["numpy"]
    assert content["seconds"] > 0
    assert content["log"]
    assert content["rc"] == int(bool(errors(content)))
    assert find_rows(content, "the stage as a whole")[0].get("error") is None
    assert summary(rehearsed)[letter]["state"] == "ended"


def test_a_file_per_stage_and_two_are_all_there_is(rehearsed: Path) -> None:
    names = sorted(path.name for path in rehearsed.iterdir())
    assert names == [*(f"{letter}.json" for letter in LETTERS), "stages.log", "summary.json"]


def test_the_tests_are_counted_by_file(rehearsed: Path) -> None:
    content = read(rehearsed, "a")
    assert errors(content) == ""
    (counts,) = content["tests"].values()
    assert counts["passed"] >= 10


def test_the_chain_is_compared_timed_and_its_waits_counted(rehearsed: Path) -> None:
    content = read(rehearsed, "b")
    assert errors(content) == ""
    for row in find_rows(content, "answers, batches of"):
        assert row["rows_compared"] >= 15
        assert row["exit_flips"] == 0
    for row in find_rows(content, "driver calls, stay"):
        assert row["calls"]["cuEventSynchronize"] == 2 + 1 + 1  # two cuts, the end of the last stage, the answers
        assert row["calls"]["cuLaunchKernel"] == 2 + 1
    for row in find_rows(content, "host to host"):
        assert set(row["ways"]) == {"full", "exits", "stay"}
        assert row["overhead_stay"]["ratio"] >= 1


def test_a_refusal_of_tensorrt_rtx_is_kept_in_its_own_words(rehearsed: Path) -> None:
    content = read(rehearsed, "c")
    loaded = find_rows(content, "load and identify")[0]
    if "error" in loaded:
        assert "is not installed" in loaded["error"]
        return
    assert loaded["among_the_targets_of_portable_engines"] is False  # the pretended GPU is of Hopper's capability
    assert all(row["bytes"] > 0 for row in find_rows(content, "tensorrt-rtx: build toy"))
    assert all("TensorRT-RTX" in row["error"] for row in find_rows(content, "built here"))
    assert "run without vetting" in {row["row"].partition(": ")[2] for row in content["rows"]}


def test_networks_are_timed_by_engine_and_end_to_end(rehearsed: Path) -> None:
    content = read(rehearsed, "d")
    assert errors(content) == ""
    row = find_rows(content, "engines, batch 8")[0]
    assert set(row["tails"]) == {"behind exit 0", "behind exit 1"}
    assert set(row["parts_ms"]) == {"head_0", "head_1", "gather_0", "gather_1"}
    assert "a graph of one memset" in find_rows(content, "the cost of a launch")[0]["host_us"]


def test_torch_is_timed_in_both_kinds_of_float32(rehearsed: Path) -> None:
    content = read(rehearsed, "h")
    assert errors(content) == ""
    assert len(find_rows(content, "toy in torch, cpu, plain, float32")) == 2
    assert len(find_rows(content, "toy in torch, cpu, plain, TF32")) == 2


def test_a_plan_without_a_run_says_what_to_bring(rehearsed: Path) -> None:
    (skipped,) = [row["skipped"] for row in read(rehearsed, "g")["rows"] if row["row"] == "plan"]
    assert "benchmarks.gpu.prepare" in skipped


def test_graphs_are_compared_and_captured(rehearsed: Path) -> None:
    content = read(rehearsed, "e")
    assert find_rows(content, "onnxruntime-cuda: graphs on and off")[0]["answers_equal"] is True
    assert NOT_CAPTURED in errors(content)
    assert "STREAM_CAPTURE_UNSUPPORTED" in find_rows(content, "captured by us, batch 1")[0]["error"]
    assert "Can't allocate memory on the device" in errors(content)  # a session of the processor has no CUDA graph


def test_memory_and_threads_are_watched(rehearsed: Path) -> None:
    content = read(rehearsed, "f")
    assert find_rows(content, "memory over")[0]["growth"]["gpu_used_bytes"] == 0
    assert find_rows(content, "two runtimes")[0]["wrong"] == 0
    assert len(find_rows(content, "memory so far")) >= 3


# ---------------------------------------------------------------- cut off


def wait_for_rows(process: subprocess.Popen[str], out: Path, letter: str, rows: int) -> dict[str, Any]:
    until = time.monotonic() + 600
    while time.monotonic() < until and process.poll() is None:
        if (out / f"{letter}.json").is_file():
            content = read(out, letter)  # sound at any moment
            if len(content["rows"]) >= rows and "process" in content:
                return content
        time.sleep(0.02)
    raise AssertionError(f"stage {letter} wrote no {rows} rows: {process.communicate()[0]}")


@pytest.mark.parametrize("letter", UNASKED)
def test_a_stage_that_is_terminated_keeps_its_rows(start: Start, letter: str, tmp_path: Path) -> None:
    process = start(tmp_path, "--only", f"{letter},f")
    before = wait_for_rows(process, tmp_path, letter, 2)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    content = read(tmp_path, letter)
    assert content["state"] == "cut off"
    assert content["error"].startswith("cut off by SIGTERM after ")
    assert content["rows"][: len(before["rows"])] == before["rows"]
    assert summary(tmp_path)[letter]["rc"] == 143
    if letter != "f":
        assert summary(tmp_path)["f"]["state"] == "not run"
    assert not is_running(content["process"])


def test_a_stage_that_is_killed_loses_itself_alone(start: Start, tmp_path: Path) -> None:
    process = start(tmp_path, "--only", "b,d,f", "--bound", "f=1")
    for letter in ("b", "d"):
        os.kill(wait_for_rows(process, tmp_path, letter, 2)["process"], signal.SIGKILL)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 1, said
    for letter in ("b", "d"):
        assert (read(tmp_path, letter)["state"], read(tmp_path, letter)["rc"]) == ("cut off", 137)
    assert (read(tmp_path, "f")["state"], read(tmp_path, "f")["rc"]) == ("cut off", 124)
    assert read(tmp_path, "f")["error"].startswith("cut off by its time bound after ")


def test_whatever_kills_everything_at_once_leaves_sound_files(start: Start, tmp_path: Path) -> None:
    process = start(tmp_path, "--only", "b,c")
    content = wait_for_rows(process, tmp_path, "b", 3)
    process.kill()
    os.kill(content["process"], signal.SIGKILL)
    process.communicate(timeout=120)
    assert read(tmp_path, "b")["state"] == "running"
    assert len(read(tmp_path, "b")["rows"]) >= 3
    assert summary(tmp_path)["b"]["state"] == "running"


def is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_spent_budget_is_a_record(start: Start, tmp_path: Path) -> None:
    process = start(tmp_path, "--only", "a,c", "--budget", "0")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert read(tmp_path, "c")["error"] == "the budget of 0 s is spent; run it with --only c"
    assert "(c) TensorRT-RTX: refused or measured: skipped" in said


# ---------------------------------------------------------------- without what it needs


@pytest.fixture
def run_without(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs a stage where importing some packages fails with these words; returns its record."""

    def run(letter: str, **broken: str) -> dict[str, Any]:
        for package, words in broken.items():
            folder = tmp_path / "site" / package
            folder.mkdir(parents=True)
            (folder / "__init__.py").write_text(f"raise ImportError({words!r})\n")
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path / 'site'}"}
        command = [sys.executable, "-m", "benchmarks.gpu.run_stage", letter, "--out", str(tmp_path), "--rehearse"]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stdout + done.stderr
        content = read(tmp_path, letter)
        assert content["state"] == "ended"
        return content

    return run


WRONG = "numpy: the C extension was built for CPython 3.12 and cannot be imported"


@pytest.mark.parametrize("letter", LETTERS[1:])
def test_a_wheel_of_another_python_is_the_exact_message(letter: str, run_without: Callable[..., Any]) -> None:
    content = run_without(letter, numpy=WRONG)
    assert find_rows(content, "import benchmarks.gpu.stage_")[0]["error"] == f"ImportError: {WRONG}"


def test_a_library_that_onnxruntime_misses_is_named(run_without: Callable[..., Any]) -> None:
    missing = "libcudnn.so.9: cannot open shared object file: No such file or directory"
    content = run_without("b", onnxruntime=missing)
    assert f"<- ImportError: {missing}" in errors(content)


def test_missing_pytest_is_named(run_without: Callable[..., Any]) -> None:
    assert "No module named 'pytest'" in errors(run_without("a", pytest="No module named 'pytest'"))


@pytest.mark.parametrize("letter", ["b", "f"])
def test_a_machine_without_a_gpu_is_told_so(letter: str, run_without: Callable[..., Any]) -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU here")
    content = run_without(letter)
    assert find_rows(content, "stand-ins")[0]["stand_ins"] == "none: there is no fake CUDA driver"
    assert "onnxruntime-gpu is not installed" in errors(content) or "NVIDIA" in errors(content)


def test_list_and_usage() -> None:
    listed = subprocess.run(
        ["bash", SCRIPT, "--list", "--python", sys.executable], capture_output=True, text=True, check=True
    )
    assert [line.split()[0] for line in listed.stdout.splitlines()] == UNASKED
    assert sum(int(line.split()[1]) for line in listed.stdout.splitlines()) < 9 * 60
    for options, message in (
        (["--what"], "no such option: --what"),
        (["--out"], "--out wants a value"),
        (["--bound", "b=soon"], "--bound b=soon: expected STAGE=SECONDS"),
        (["--only", "z", "--python", sys.executable], "there is no stage 'z'; there are a, b, c, d, e, f, g, h"),
    ):
        done = subprocess.run(["bash", SCRIPT, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert message in done.stderr

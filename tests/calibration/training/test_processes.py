"""Several processes train what one does; the first alone writes and speaks; batches in pieces teach the same."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from artifacts import UsageError
from calibration.cli import main
from calibration.launch import Launch
from calibration.training.config import FrozenConfig, describe_training
from calibration.training.minibatches import Share
from calibration.training.processes import Processes
from tests.calibration.test_calibrating import write_bars
from tests.calibration.training import joint_worker
from tests.calibration.training.chain_worlds import export_chain

ROOT = Path(__file__).parents[3]


def start_two(words: Sequence[str]) -> list[subprocess.CompletedProcess[str]]:
    """Runs a command in two processes, as ``torchrun`` starts them; returns how they ended."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    together = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={
                **os.environ, **together, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
            },
        )
        for rank in range(2)
    ]  # fmt: skip
    ended = []
    for process in started:
        out, err = process.communicate(timeout=250)
        ended.append(subprocess.CompletedProcess(words, process.returncode, out, err))
    return ended


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    ended = start_two(["-m", "tests.calibration.training.joint_worker", str(tmp_path)])
    assert [process.returncode for process in ended] == [0, 0], [process.stderr for process in ended]
    both = [load_file(tmp_path / f"of-{rank}.safetensors") for rank in range(2)]
    (tmp_path / "alone").mkdir()
    alone = joint_worker.train(tmp_path / "alone", dataclasses.replace(joint_worker.CONFIG, accumulate=1), None)
    pieces = joint_worker.train(tmp_path / "pieces", joint_worker.CONFIG, None)
    for name, value in alone.items():
        assert torch.equal(both[0][name], both[1][name]), name
        torch.testing.assert_close(both[0][name], value, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(pieces[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_the_command_trains_in_two_processes_and_the_first_one_speaks(tmp_path: Path) -> None:
    data = write_bars(tmp_path / "bars.npz")
    run, _ = export_chain(tmp_path, layers=4)
    shutil.copytree(run.root, tmp_path / "two")
    flags = [
        "--data", str(data), "--epochs", "6", "--train-batch-size", "32", "--threads", "1", "--force",
        "--max-candidates", "2", "--head-share", "1",
    ]  # fmt: skip
    out = tmp_path / "out.json"
    assert main(["--run", str(run.root), *flags, "--json", str(out)]) == 0
    one = {row["exit"]: row["metric"] for row in json.loads(out.read_text())["exits"]}
    first, second = start_two(["-m", "calibration", "--run", str(tmp_path / "two"), *flags, "--json", "-"])
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout == ""
    assert "epoch" not in second.stderr
    assert "note" not in second.stderr
    assert "in 2 processes" in first.stderr
    assert first.stderr.count("epoch 6/6") == 1
    two = {row["exit"]: row["metric"] for row in json.loads(first.stdout)["exits"]}
    assert two["final"] == one["final"]  # which exits there are is decided by measured times
    assert min(two.values()) > min(one.values()) - 0.15, "64 samples: a standard error is 0.06"


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ("torchrun", "--standalone", "--nproc-per-node", "2"),
        ("accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--dynamo_backend", "no",
         "--mixed_precision", "no", "--main_process_port", "0"),
    ],
    ids=["torchrun", "accelerate"],
)  # fmt: skip
def test_the_launchers_themselves_start_two_processes_on_processors(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    binary = Path(sys.executable).with_name(launcher[0])
    if not binary.is_file():
        pytest.skip(f"{binary} is not installed")
    run, _ = export_chain(tmp_path, layers=4)
    shutil.copytree(run.root, tmp_path / "runs" / "chain")
    flags = [
        "--data", str(write_bars(tmp_path / "bars.npz")), "--epochs", "1", "--train-batch-size", "32", "--threads", "2",
        "--force", "--max-candidates", "1", "--workers", "0", "--json", "-",
    ]  # fmt: skip
    done = subprocess.run(
        [str(binary), *launcher[1:], "-m", "calibration", "chain", *flags], cwd=tmp_path, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "in 2 processes" in done.stderr
    assert done.stderr.count("epoch 1/1") == 1
    assert "final" in {row["exit"] for row in json.loads(done.stdout)["exits"]}


def test_a_process_that_was_started_with_others_does_not_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="started together"):
        Processes()


@pytest.mark.parametrize("said", [{"RANK": "2", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "many"}, {"RANK": "-1"}])
def test_launches_that_cannot_be(said: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="in the environment"):
        Launch.read(said)


@pytest.mark.parametrize(("batch", "count", "pieces", "size"), [(128, 1, 1, 128), (128, 2, 4, 16), (12, 3, 2, 2)])
def test_a_batch_is_divided(batch: int, count: int, pieces: int, size: int) -> None:
    assert Share(count=count, pieces=pieces).size(batch) == size


@pytest.mark.parametrize(("batch", "count", "pieces"), [(128, 3, 1), (8, 4, 2)])
def test_a_batch_that_cannot_be_divided(batch: int, count: int, pieces: int) -> None:
    with pytest.raises(UsageError, match="--train-batch-size must be a multiple"):
        Share(count=count, pieces=pieces).size(batch)


def test_float16_needs_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(UsageError, match="needs a GPU"):
        Processes("fp16")


def test_what_later_releases_added_is_recorded_where_it_is_used() -> None:
    assert "accumulate" not in describe_training(FrozenConfig())
    assert describe_training(FrozenConfig(mixed_precision="bf16"))["mixed_precision"] == "bf16"


@pytest.mark.parametrize(
    ("wrong", "message"), [({"accumulate": 0}, "--accumulate 0"), ({"mixed_precision": "fp8"}, "fp8")]
)
def test_settings_that_cannot_be(wrong: dict[str, int | str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FrozenConfig(**wrong)  # type: ignore[arg-type]

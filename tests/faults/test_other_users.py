"""Tests of commands that are run by a user whom this machine does not know, in folders that are not theirs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from planner.commands.main import main
from tests.planner.source_worlds import QUICK, write_dense_file, write_right_data

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
USER = "12345"
MAY_READ = "-all,+dac_read_search"  # the interpreter may lie in another user's home, as it does where pyenv built it


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of root's with a network, data, and a run that was planned."""
    for module, extra in (("torch", "train"), ("onnxruntime", "onnxruntime"), ("matplotlib", "report")):
        pytest.importorskip(module, reason=f"pip install 'pame[{extra}]'")
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("runs commands as another user: needs root, and setpriv of util-linux")
    root = tmp_path_factory.mktemp("other")
    write_right_data(write_dense_file(root, end=60_000), root / "data.npz")
    words = [str(root / "dense.onnx"), "--data", str(root / "data.npz"), "--run", str(root / "run")]
    assert main([*words, "--tolerance", "0.9", "--certify", "none", *QUICK]) == 0
    return root


@contextmanager
def started(folder: Path, *words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Starts ``python -m ...`` in a folder as a user without a name, and without a HOME unless one is given."""
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    command += [f"--{kind}={MAY_READ}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    known = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(
        [*command, sys.executable, "-m", *words], cwd=folder, env=known | environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def run(folder: Path, *words: str, **environment: str) -> tuple[int, str, str]:
    """Runs ``python -m ...`` to its end; returns exit code, stdout and stderr."""
    with started(folder, *words, **environment) as child:
        printed, said = child.communicate(timeout=300)
    assert "Traceback" not in said, said
    return child.returncode, printed, said


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of the user's own."""
    folder = tmp_path / "own"
    folder.mkdir()
    for place in (tmp_path.parent, tmp_path):
        place.chmod(0o755)
    os.chown(folder, int(USER), int(USER))
    return folder


def test_a_user_without_a_name_or_a_home_plans_in_a_folder_of_their_own(world: Path, own: Path) -> None:
    words = (str(world / "dense.onnx"), "--data", str(world / "data.npz"), "--tolerance", "0.9", "--certify", "none")
    code, printed, said = run(own, "planner", *words, *QUICK, "--json", "-")
    assert code == 0, said
    assert json.loads(printed)["bundle"]
    assert (own / "runs" / "dense" / "bundle" / "manifest.json").stat().st_uid == int(USER)


@pytest.mark.parametrize("home", ["none", "absent", "read-only"])
def test_another_users_bundle_is_measured(world: Path, own: Path, home: str) -> None:
    homes = {"none": {}, "absent": {"HOME": str(own / "nowhere")}, "read-only": {"HOME": str(world)}}
    words = ("--run", str(world / "run"), "--rounds", "2", "--json", "found.json", "--plot", "found.png")
    code, _, said = run(own, "runtime.bench", *words, **homes[home])
    assert code == 0, said
    assert json.loads((own / "found.json").read_text())["samples"] > 0
    assert (own / "found.png").stat().st_size > 5000


def test_what_cannot_be_written_is_said_before_the_measurement(world: Path, own: Path) -> None:
    words = ("--run", str(world / "run"), "--json", "found.json", "--plot", str(world / "found.png"))
    code, _, said = run(own, "runtime.bench", *words)
    assert code == 2
    assert f"cannot write --plot {world / 'found.png'}: permission denied: {world};" in said
    assert not list(own.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("planner", "--tolerance", "0.5", "--certify", "none", *QUICK[:-4]),
        ("planner", "--sweep", "0.1,0.2", "--certify", "none", *QUICK[:-4]),
    ],
)
def test_another_users_run_is_left_as_it_is(world: Path, own: Path, words: tuple[str, ...]) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in (world / "run").rglob("*"))
    code, _, said = run(own, *words, "--run", str(world / "run"))
    assert code == 1
    assert f"nothing can be written to the run {world / 'run'}: permission denied: {world / 'run'};" in said
    assert "search" not in said
    assert "training" not in said
    assert "fix the permissions or name another place" in said
    assert sorted((path, path.stat().st_mtime_ns) for path in (world / "run").rglob("*")) == before


def test_another_users_bundle_is_served(world: Path, own: Path) -> None:
    pytest.importorskip("uvicorn", reason="serves: pip install 'pame[serve]'")
    words = ("--bundle", f"net={world / 'run' / 'bundle'}", "--threads", "1", "--http", "127.0.0.1:0", "--grpc", "off",
             "--metrics", "off")  # fmt: skip
    with started(own, "runtime.serve", *words) as child:
        lines: list[str] = []
        assert child.stderr is not None
        started_at = time.monotonic()
        while not any("http" in line for line in lines):
            lines.append(child.stderr.readline())
            assert lines[-1], "".join(lines)
            assert time.monotonic() - started_at < 120
        child.send_signal(signal.SIGTERM)
        _, rest = child.communicate(timeout=60)
    assert child.returncode == 0, "".join(lines) + rest
    assert "Traceback" not in "".join(lines) + rest

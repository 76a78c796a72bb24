"""Packing for a GPU machine: in parts, checked when they are unpacked, opened there."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from artifacts import MANIFEST, ModelSpec, RunFolder, new_artifact, write_model_spec
from benchmarks.gpu.nets.making import ensure_subject, make_subject
from benchmarks.gpu.nets.subjects import publish_bundle
from benchmarks.gpu.prepare import copy_subject, take_bundle
from benchmarks.gpu.stages import Setting
from benchmarks.gpu.store_wheels import blank_other_code

FOLDER = Path(__file__).parents[3] / "benchmarks" / "gpu"
RECORD = "thing-1.0.dist-info/RECORD"


def write_wheel(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "thing-1.0-py3-none-any.whl"
    files = {
        "thing/__init__.py": "ANSWER = 42\n",
        "thing/libonnxruntime_providers_tensorrt.so": "x" * 1000,
        "thing-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n",
        "thing-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as target:
        for name, text in files.items():
            target.writestr(name, text)
        target.writestr(RECORD, "".join(f"{name},,\n" for name in [*files, RECORD]))
    return wheel


def fatbin(*entries: tuple[int, bytes]) -> bytes:
    """Returns a fat binary with code by architecture, laid out as NVIDIA's tools do."""
    packed = b"".join(struct.pack("<HHIQ12xI32x", 2, 257, 64, len(code), arch) + code for arch, code in entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(packed)) + packed


def test_code_for_other_gpus_becomes_zeros() -> None:
    both, alone = fatbin((80, b"eighty" * 4), (90, b"ninety" * 4)), fatbin((80, b"only" * 4))
    chance = struct.pack("<I", 0xBA55ED50) + b"no fat binary at all"
    library = b"code" + both + chance + alone + b"end"
    found = blank_other_code(library, 90)
    assert found == b"code" + fatbin((80, bytes(24)), (90, b"ninety" * 4)) + chance + alone + b"end"
    assert blank_other_code(library, 75) == library


@pytest.fixture
def download_nothing(tmp_path: Path) -> Path:
    """Returns a Python whose ``pip download`` makes one wheel; all else is the real one's."""
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/bash\n"
        'if [[ $* == *"pip download"* ]]; then\n'
        '  while (($#)); do if [[ $1 == --dest ]]; then cp "$WHEEL" "$2"; fi; shift; done; exit\n'
        f'fi\nexec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    return script


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *map(str, command)], env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_what_was_packed_is_checked_and_installed(tmp_path: Path, download_nothing: Path) -> None:
    prebuilt = tmp_path / "prebuilt"
    prebuilt.mkdir()
    (prebuilt / "noise").write_bytes(os.urandom(9_000))
    wheel = write_wheel(tmp_path / "made")
    parts = tmp_path / "parts"
    done = run(
        FOLDER / "pack.sh", parts, "--prebuilt", prebuilt, "--part-size", 4096, "base",
        PYTHON=str(download_nothing), WHEEL=str(wheel),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in parts.iterdir()) == ["part-00", "part-01", "part-02"]
    joined = tmp_path / "joined"
    joined.mkdir()
    for path in parts.glob("part-*/*"):
        path.rename(joined / path.name)
    done = run(joined / "unpack.sh", joined, PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    site = joined / "site"
    assert f"export PYTHONPATH={site}" in done.stdout
    assert f"export PREBUILT={joined / 'prebuilt'}" in done.stdout
    assert (joined / "prebuilt" / "noise").read_bytes() == (prebuilt / "noise").read_bytes()
    assert (site / "thing" / "__init__.py").read_text() == "ANSWER = 42\n"
    assert not list(site.rglob("libonnxruntime_providers_tensorrt.so"))


def test_a_damaged_or_missing_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "content").write_text("anything")
    with tarfile.open(tmp_path / "all.tar.xz", "w:xz") as target:
        target.add(tmp_path / "content", "wheels/content")
    digest = run("-c", f"cd {tmp_path} && sha256sum all.tar.xz > all.sha256")
    assert digest.returncode == 0
    (tmp_path / "piece-00").write_bytes((tmp_path / "all.tar.xz").read_bytes()[:-1])
    done = run(FOLDER / "unpack.sh", tmp_path)
    assert done.returncode == 1
    assert "unpack.sh: a part is missing or damaged; the pieces here: piece-00" in done.stderr
    assert not (tmp_path / "wheels").exists()


def test_usage_of_packing(tmp_path: Path) -> None:
    for options, message in (
        ([], "usage: pack.sh DIR"),
        ([tmp_path / "new", "gpu"], "a group is base, ort or rtx, not 'gpu'"),
        ([tmp_path], "exists; remove it or name another"),
        ([tmp_path / "new", "--prebuilt", tmp_path / "none"], "make it with: python -m benchmarks.gpu.prepare"),
    ):
        done = run(FOLDER / "pack.sh", *options)
        assert done.returncode == 2
        assert message in done.stderr


def test_a_subject_made_ahead_is_opened_instead_of_made(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    made = make_subject("toy", tmp_path / "made")
    copied = copy_subject(made, tmp_path / "ahead" / "toy")
    assert (copied.spec.thresholds, copied.rows) == (made.spec.thresholds, made.rows)
    setting = Setting(scratch=tmp_path / "scratch", prebuilt=tmp_path / "ahead")
    assert ensure_subject("toy", setting).folder == copied.folder
    assert all((copied.folder / graph.file).is_file() for graph in (*copied.spec.stages, *copied.spec.heads))


def test_the_demo_is_the_bundle_that_a_run_has(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    toy, run = make_subject("toy", tmp_path / "made"), RunFolder(root=tmp_path / "run")
    published = publish_bundle(toy, "onnxruntime", tmp_path / "bundles", max_batch_size=8)
    with new_artifact(run.bundle, kind="bundle") as staging:
        shutil.copytree(published, staging, dirs_exist_ok=True)
        (staging / MANIFEST).unlink()
        for graph in toy.spec.stages:
            shutil.copyfile(toy.folder / graph.file, staging / graph.file)
    heads = dict(zip(("stage_00", "stage_01"), toy.spec.heads, strict=True))
    with new_artifact(run.model, kind="model") as staging:
        for graph in (toy.spec.full, *toy.spec.heads):
            shutil.copyfile(toy.folder / graph.file, staging / graph.file)
        spec = ModelSpec(name="toy", family="onnx", task="classification", full=toy.spec.full, heads=heads)
        write_model_spec(staging, spec)
    taken = take_bundle(run, tmp_path / "ahead" / "demo", toy.batch(5))
    assert (taken.name, taken.rows, taken.spec.thresholds) == ("demo", 5, toy.spec.thresholds)
    for graph in (taken.spec.full, *taken.spec.stages, *taken.spec.heads):
        assert (taken.folder / graph.file).is_file()

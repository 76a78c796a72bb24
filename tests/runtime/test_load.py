"""``Runtime.load`` on a real bundle over ONNX Runtime, and what it refuses."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artifacts import (
    BUNDLE_JSON,
    COMMAND,
    CorruptArtifactError,
    MissingArtifactError,
    SchemaError,
    StaleArtifactError,
    UsageError,
    new_artifact,
    read_json,
    write_json,
)
from engines.identity.keys import ENGINE_JSON
from runtime import Runtime


@pytest.fixture
def bundle(toy_run: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_run.bundle, tmp_path / "bundle"))


def test_a_bundle_answers_as_numpy_does(toy_run: Any) -> None:
    queries = toy_run.inputs[:50]
    by_stage = [toy_run.answer_by_numpy(queries, index) for index in range(2)]
    expected = np.where(by_stage[0][1] >= toy_run.threshold, 0, 1)
    assert 5 < expected.sum() < 45
    with Runtime.load(str(toy_run.bundle), threads=1) as runtime:
        assert runtime.stage_count == 2
        for count in (1, 2, 3, 8, 9, 50):
            result = runtime.run(queries[:count])
            np.testing.assert_array_equal(result.exit_index, expected[:count])
            for stage, (logits, confidence) in enumerate(by_stage):
                here = np.flatnonzero(expected[:count] == stage)
                np.testing.assert_allclose(result.outputs[here], logits[here], rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(result.confidence[here], confidence[here], rtol=1e-5)
            assert 0 < result.engine_ms < result.latency_ms.max()


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(MissingArtifactError, match="Make it with: python -m planner$"):
        Runtime.load(tmp_path / "bundle")


def test_no_bundle_in_a_run_names_the_run(tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    with pytest.raises(MissingArtifactError, match=f"python -m planner --run {tmp_path / 'mine'}"):
        Runtime.load(tmp_path / "mine" / "bundle")


def test_the_remedy_is_the_command_that_made_the_bundle(bundle: Path) -> None:
    command = "python -m planner --tolerance 0.05 --run runs/mine"
    reseal(bundle, {"stages": threshold_of_first(bundle, 0.123)}, notes={COMMAND: command})
    with pytest.raises(SchemaError, match=f"has threshold 0.123, but the exit plan .* Make it again with: {command}$"):
        Runtime.load(bundle)


def threshold_of_first(bundle: Path, threshold: float) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = read_json(bundle / BUNDLE_JSON, dict)["stages"]
    stages[0]["threshold"] = threshold
    return stages


@pytest.mark.parametrize("threads", [0, -1])
def test_impossible_threads(threads: int, toy_run: Any) -> None:
    with pytest.raises(UsageError, match=f"threads={threads}: expected a number from 1"):
        Runtime.load(toy_run.bundle, threads=threads)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add"])
def test_damaged_bundles(damage: str, bundle: Path) -> None:
    victim = bundle / "engines" / "stage_01" / ENGINE_JSON
    if damage == "flip":
        content = bytearray(victim.read_bytes())
        content[-3] ^= 1
        victim.write_bytes(content)
    elif damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "remove":
        victim.unlink()
    else:
        (bundle / "extra").write_text("x")
    with pytest.raises(CorruptArtifactError, match="python -m planner"):
        Runtime.load(bundle)


def reseal(bundle: Path, changed: Mapping[str, Any], *, notes: Mapping[str, str] | None = None) -> None:
    """Publishes the bundle again with another ``bundle.json``."""
    spec = read_json(bundle / BUNDLE_JSON, dict) | changed
    before = bundle.parent / "before"
    shutil.copytree(bundle, before)
    with new_artifact(bundle, kind="bundle", notes=notes or {}) as staging:
        for name in ("engines", "stages"):
            shutil.copytree(before / name, staging / name)
        write_json(staging / BUNDLE_JSON, spec)


def test_an_engine_outside_the_bundle_is_refused(bundle: Path) -> None:
    stages = read_json(bundle / BUNDLE_JSON, dict)["stages"]
    stages[0]["engine"] = "../engines/stage_00"
    reseal(bundle, {"stages": stages})
    with pytest.raises(CorruptArtifactError, match=r"lists no file '\.\./engines"):
        Runtime.load(bundle)


def test_an_unknown_key_is_refused(bundle: Path) -> None:
    reseal(bundle, {"stagez": []})
    with pytest.raises(SchemaError, match="stagez"):
        Runtime.load(bundle)


def test_an_artifact_of_another_kind_is_refused(toy_run: Any) -> None:
    with pytest.raises(SchemaError, match=r"not a bundle.*python -m planner"):
        Runtime.load(toy_run.bundle / "engines" / "stage_00")


def test_a_bundle_from_another_machine_is_refused(toy_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.backends import opening

    identity = opening.identify_backend("onnxruntime")
    other = dataclasses.replace(identity, device="another processor")
    monkeypatch.setattr(opening, "identify_backend", lambda backend, index: other)
    with pytest.raises(StaleArtifactError, match="another processor"):
        Runtime.load(toy_run.bundle)


def test_what_a_host_imports(toy_run: Any) -> None:
    script = f"""
import sys, threading, runtime
heavy = {{"torch", "onnx", "onnx_ir", "onnxruntime", "matplotlib", "rich", "planner", "calibration", "export"}}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert not [name for name in sys.modules if name.startswith("runtime.bench")]
assert threading.active_count() == 1
import numpy
with runtime.Runtime.load({str(toy_run.bundle)!r}) as rt:
    rt.run(numpy.zeros((3, 1, 4, 4), numpy.float32))
found = (heavy - {{"onnxruntime"}}) & set(sys.modules)
assert not found, found
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


@pytest.mark.parametrize(
    ("asked", "given"),
    [(None, 1), (3, 3)],  # the bundle was timed with 1
)
def test_engines_get_the_threads_that_were_asked_for(
    asked: int | None, given: int, toy_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runtime import loading

    seen: list[int] = []
    open_engine = loading.open_engine

    def recording(folder: Path, graph: Any, *, threads: int, device: Any) -> Any:
        seen.append(threads)
        return open_engine(folder, graph, threads=1, device=device)

    monkeypatch.setattr(loading, "open_engine", recording)
    Runtime.load(toy_run.bundle, threads=asked).close()
    assert seen == [given, given]

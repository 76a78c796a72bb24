"""Bundles of released formats: they open and answer as they did, or say which command makes them do so here."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from artifacts import FINAL_HEAD_LABEL, CorruptArtifactError, StaleArtifactError, load_arrays
from engines.cli import main as engines_main
from engines.identity.keys import ENGINE_JSON
from runtime import Runtime

pytest.importorskip("onnx", reason="rebuilds engines: pip install 'pame[onnxruntime]'")
pytest.importorskip("onnxruntime", reason="runs them: pip install 'pame[onnxruntime]'")

RELEASED = Path(__file__).parents[1] / "fixtures" / "run_0.1.0"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RELEASED / "bundle", tmp_path / "bundle"))


def rebuild_as_told(error: StaleArtifactError, bundle: Path) -> None:
    """Runs the command at the end of the message."""
    _, _, command = str(error).rpartition("with: ")
    words = shlex.split(command)
    assert words == ["python", "-m", "engines", "build", "--bundle", str(bundle)]
    assert engines_main(words[3:]) == 0


def open_here(bundle: Path) -> Runtime:
    """Opens a bundle on this machine, building its engines again if they are of another one."""
    try:
        return Runtime.load(bundle)
    except StaleArtifactError as error:
        rebuild_as_told(error, bundle)
        return Runtime.load(bundle)


def carry_to_another_machine(bundle: Path) -> None:
    """Makes the engines those of another processor, digests included."""
    for engine in sorted((bundle / "engines").iterdir()):
        path = engine / ENGINE_JSON
        key = json.loads(path.read_text())
        path.write_text(json.dumps(key | {"device": "another processor"}))
        seal(engine, [ENGINE_JSON])
        seal(bundle, [f"engines/{engine.name}/{name}" for name in (ENGINE_JSON, "manifest.json")])


def seal(folder: Path, changed: Sequence[str]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["schema_version"] == 1
    for entry in manifest["files"]:
        if entry["path"] in changed:
            content = (folder / entry["path"]).read_bytes()
            entry.update(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    (folder / "manifest.json").write_text(json.dumps(manifest))


def check_answers(runtime: Runtime) -> None:
    """The answers that release 0.1.0 gave; another processor may round otherwise."""
    answers = load_arrays(RELEASED / "answers.npz")
    result = runtime.run(answers["inputs"])
    np.testing.assert_array_equal(result.exit_index, answers["exit_index"])
    np.testing.assert_allclose(result.outputs, answers["outputs"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.confidence, answers["confidence"], rtol=1e-4)
    for row in (0, 17, 63):
        alone = runtime.run(answers["inputs"][row : row + 1])
        np.testing.assert_allclose(alone.outputs[0], answers["outputs"][row], rtol=1e-4, atol=1e-5)


def test_a_bundle_of_0_1_0_serves_and_answers_as_it_did(bundle: Path) -> None:
    with open_here(bundle) as runtime:
        assert (runtime.spec.name, runtime.stage_count) == ("small", 2)
        assert runtime.spec.preprocessing is None
        check_answers(runtime)
        stats = runtime.stats()
    assert [exit_.name for exit_ in stats.exits] == ["h2", FINAL_HEAD_LABEL]
    assert stats.queries == 64 + 3
    assert stats.drift is not None
    assert stats.drift.reference_samples == 201


def test_a_bundle_of_0_1_0_is_shadowed(bundle: Path) -> None:
    with open_here(bundle) as runtime:
        assert runtime.spec.task == "classification"
    with Runtime.load(bundle, shadow_fraction=1.0) as runtime:
        check_answers(runtime)
        stats = runtime.stats()
    assert stats.shadowed == stats.exits[0].count
    assert stats.exits[0].mean_agreement == stats.exits[0].agreements / stats.exits[0].shadowed


def test_on_another_machine_it_is_refused_until_the_command_of_the_message_has_run(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carry_to_another_machine(bundle)
    with pytest.raises(StaleArtifactError, match="another processor") as refused:
        Runtime.load(bundle)
    rebuild_as_told(refused.value, bundle)
    assert "rebuilt the engines" in capsys.readouterr().out
    with Runtime.load(bundle) as runtime:
        check_answers(runtime)


@pytest.mark.parametrize("file", ["bundle.json", "stages/stage_00.onnx", "engines/stage_00/graph.bin"])
def test_its_bytes_are_checked(bundle: Path, file: str) -> None:
    path = bundle / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=path.name):
        Runtime.load(bundle)

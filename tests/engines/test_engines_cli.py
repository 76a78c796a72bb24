"""``python -m engines`` in this process."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts import GraphSpec, new_artifact, open_artifact, write_json
from engines import BuildOptions, ensure_engine, open_engine
from engines.cache.bundled import find_bundle_engines
from engines.cli import main
from engines.gpu.detection import find_gpu
from engines.identity.keys import ENGINE_JSON, open_key
from engines.ort.cuda_build import copy_graph

pytest.importorskip("onnxruntime")


@pytest.fixture
def bundle(make_onnx: Callable[..., Path], graph: GraphSpec, tmp_path: Path, cache: Path) -> Path:
    """A bundle with one stage and the full network, as far as engines are concerned."""
    folder = tmp_path / "bundle"
    with new_artifact(folder, kind="bundle", inputs={"plan": "p"}, parameters={"a": 1}) as new:
        (new / "bundle.json").write_text("{}")
        for seed, name in enumerate(("stage_00", "full")):
            onnx = make_onnx(seed=seed)
            shutil.copyfile(onnx, new / f"{name}.onnx")
            built = ensure_engine(
                onnx, graph, cache, backend="onnxruntime", options=BuildOptions(max_batch_size=4 + seed)
            )
            shutil.copytree(built, new / "engines" / name)
    return folder


def read(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_build_makes_every_engine_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--run", str(run), "--json", "-", "--max-batch-size", "4"]) == 0
    built = read(capsys)
    assert [item["graph"] for item in built] == ["tiny", "exit_c"]
    assert not any(item["reused"] for item in built)
    assert main(["build", "--run", str(run), "--json", "-", "--max-batch-size", "4"]) == 0
    assert all(item["reused"] for item in read(capsys))
    assert main(["build", "--run", str(run), "--json", "-", "--batch-size", "2", "--batch-size", "4"]) == 0
    assert not any(item["reused"] for item in read(capsys))
    assert main(["list", "--run", str(run), "--json", "-"]) == 0
    listed = read(capsys)
    assert sorted(item["key"]["batch_sizes"] for item in listed) == [[], [], [2, 4], [2, 4]]
    assert all(item["valid"] and item["size_bytes"] > 0 and item["built"] for item in listed)


def test_list_and_verify_report_problems(
    republish: Callable[..., Any], flip: Callable[..., Any], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["build", "--run", str(run)])
    first, second = sorted((run / "engines").iterdir())
    assert main(["verify", "--run", str(run)]) == 0
    assert capsys.readouterr().out.count(" valid\n") == 2
    republish(first, device="another processor")
    flip(second / "graph.onnx")
    assert main(["list", "--run", str(run), "--json", "-"]) == 0  # trusts the manifest, so sees the first only
    assert [item["valid"] for item in read(capsys)] == [False, True]
    assert main(["verify", "--run", str(run), "--json", "-"]) == 1
    captured = capsys.readouterr()
    assert [item["valid"] for item in json.loads(captured.out)] == [False, False]
    assert "device is 'another processor'" in captured.err
    assert f"python -m engines build --run {run}" in captured.err
    assert main(["build", "--run", str(run)]) == 0
    assert main(["verify", "--run", str(run)]) == 0


def test_a_bundle_is_rebuilt_whole(
    republish: Callable[..., Any], bundle: Path, graph: GraphSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = bundle / "engines" / "stage_00"
    files = {path.name: path.read_bytes() for path in bundle.glob("*.onnx")}
    with new_artifact(bundle, kind="bundle", inputs={"plan": "p"}, parameters={"a": 1}) as new:
        shutil.copytree(bundle, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        for name in ("stage_00", "full"):
            shutil.copyfile(bundle / "engines" / name / "manifest.json", new / "engines" / name / "manifest.json")
            republish(new / "engines" / name, backend_version="0.9")
    assert main(["verify", "--bundle", str(bundle)]) == 1
    assert f"python -m engines build --bundle {bundle}" in capsys.readouterr().err

    assert main(["build", "--bundle", str(bundle), "--json", "-"]) == 0
    assert sorted(item["graph"] for item in read(capsys)) == ["full.onnx", "stage_00.onnx"]
    assert main(["verify", "--bundle", str(bundle)]) == 0
    artifact = open_artifact(bundle, kind="bundle", remedy="")
    assert (artifact.manifest.inputs, artifact.manifest.parameters) == ({"plan": "p"}, {"a": 1})
    assert {path.name: path.read_bytes() for path in bundle.glob("*.onnx")} == files
    engine = open_engine(stage, graph, threads=1, onnx=bundle / "stage_00.onnx")
    assert engine.key.max_batch_size == 4
    engine.close()


def test_a_bundle_that_lacks_a_graph_stays_as_it_is(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with new_artifact(bundle, kind="bundle") as new:
        shutil.copytree(bundle, new, dirs_exist_ok=True, ignore=shutil.ignore_patterns("full.onnx"))
        (new / "manifest.json").unlink()
    digest = open_artifact(bundle, kind="bundle", remedy="").digest
    assert main(["build", "--bundle", str(bundle)]) == 1
    assert "lacks the graph of its engine full" in capsys.readouterr().err
    assert open_artifact(bundle, kind="bundle", remedy="").digest == digest
    assert len(find_bundle_engines(bundle)) == 2


def test_an_engine_of_the_cuda_provider_is_described(
    run: Path, onnx_file: Path, ort_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if find_gpu() is not None:
        pytest.skip("this machine has a GPU, for which the engine here was not built")
    _, key = open_key(ort_folder)
    key = dataclasses.replace(key, backend="onnxruntime-cuda", device="another GPU")
    with new_artifact(run / "engines" / "cuda", kind="engine") as new:
        copy_graph(onnx_file, new)
        write_json(new / ENGINE_JSON, key)
    assert main(["inspect", "--run", str(run), "--json", "-", "cuda"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found["key"]["backend"] == "onnxruntime-cuda"
    assert found["inputs"] == ["x: tensor(float) [1, 6, 6] a row"]
    assert found["outputs"] == ["logits: tensor(float) [4] a row", "confidence: tensor(float) [] a row"]
    assert found["profiles"] == ["any batch of 1 to 16 rows"]
    assert "without a GPU" in captured.err


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["build", "--engine", "onnxruntim"], 2, "Did you mean 'onnxruntime'"),
        (["build", "--batch-size", "0"], 2, "must lie within 1"),
        (["build", "--run", "none"], 1, "python -m export path/to/model.onnx --segments --run none"),
        (["build", "--bundle", "none"], 1, "there is no bundle at none"),
        (["build", "--bundle", "none", "--engine", "onnxruntime"], 2, "omit --engine"),
        (["list", "--bundle", "none"], 2, "there is no bundle"),
    ],
)
def test_bad_usage_is_reported(
    run: Path, argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--run" not in argv and "--bundle" not in argv:
        argv = [*argv, "--run", str(run)]
    assert main(argv) == code
    assert message in capsys.readouterr().err


def test_an_empty_cache_has_nothing_to_list(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--run", str(run), "--json", "-"]) == 0
    assert read(capsys) == []
    assert main(["verify", "--run", str(run)]) == 0


def test_the_module_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "engines", "list", "--bundle", "none"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "there is no bundle" in done.stderr
    assert done.stdout == ""

"""``python -m engines`` with TensorRT-RTX: build, list, verify, inspect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from artifacts import GraphSpec, new_artifact, open_artifact
from engines import BuildOptions, ensure_engine
from engines.cache.bundled import rebuild_bundle
from engines.cli import main
from engines.gpu.detection import find_gpu
from engines.identity.keys import open_key

pytestmark = pytest.mark.usefixtures("rtx")
UNVERIFIED = "whether TensorRT-RTX runs it here cannot be verified without a GPU"


def call(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> Any:
    assert main([*argv, "--json", "-"]) == code
    return json.loads(capsys.readouterr().out)


def test_build_list_verify_inspect(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--run", str(run))
    options = ("--engine", "tensorrt-rtx", "--profiles", "per-batch", "--batch-size", "1", "--batch-size", "8")
    built = call(capsys, "build", *where, *options)
    assert [item["reused"] for item in built] == [False, False]
    assert all(item["reused"] for item in call(capsys, "build", *where, *options))
    assert not any(item["reused"] for item in call(capsys, "build", *where, "--engine", "tensorrt-rtx"))
    for command in ("list", "verify"):
        listed = call(capsys, command, *where)
        assert len(listed) == 4
        assert all(item["valid"] and item["build_s"] > 0 for item in listed)
        assert {item["key"]["options"]["profiles"] for item in listed} == {"per-batch", "range"}
        assert {item["untold"] for item in listed} == {UNVERIFIED if find_gpu() is None else None}
    name = Path(built[0]["engine"]).name
    found = call(capsys, "inspect", name[:10], *where)
    assert found["inputs"] == ["x: float32 [1, 6, 6] a row"]
    assert found["outputs"] == ["logits: float32 [4] a row", "confidence: float32 [] a row"]
    assert found["profiles"] == [
        "engine.trt profile 0: 1 to 1 rows, tuned for 1", "engine.trt profile 1: 8 to 8 rows, tuned for 8",
    ]  # fmt: skip
    assert all(size > 0 for size in found["activation_bytes"])
    assert (found["untold"] is None) == (find_gpu() is not None)


def test_printed_tables(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["build", "--run", str(run), "--engine", "tensorrt-rtx"])
    main(["build", "--run", str(run)])
    capsys.readouterr()
    assert main(["list", "--run", str(run)]) == 0
    printed = capsys.readouterr()
    assert printed.out.count(" valid\n") == (2 if find_gpu() is None else 4)
    assert printed.out.count(" sound\n") == (2 if find_gpu() is None else 0)
    assert (UNVERIFIED in printed.err) == (find_gpu() is None)
    for folder in sorted((run / "engines").glob("[0-9a-f]*")):
        assert main(["inspect", folder.name, "--run", str(run)]) == 0
        printed = capsys.readouterr()
        assert "input       x" in printed.out
        assert "output      logits" in printed.out
        assert "profile     " in printed.out


def test_verify_reports_problems(
    republish: Callable[..., Any], flip: Callable[..., Any], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["build", "--run", str(run), "--engine", "tensorrt-rtx"])
    first, second = sorted((run / "engines").glob("[0-9a-f]*"))
    republish(first, backend_version="1.6.1.120")
    flip(second / "engine.trt")
    capsys.readouterr()
    assert main(["verify", "--run", str(run)]) == 1
    error = capsys.readouterr().err
    assert f"{first.name}: the engine at {first} was built for something else: backend_version is '1.6.1.120'" in error
    assert f"{second.name}: {second / 'engine.trt'} differs from the SHA-256" in error
    assert error.count(f"python -m engines build --run {run}") == 2
    assert main(["inspect", second.name, "--run", str(run)]) == 1


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["build", "--engine", "tensorrt-rtz"], 2, "Did you mean 'tensorrt-rtx'"),
        (["build", "--profiles", "range"], 2, "onnxruntime has no shape profiles"),
        (["build", "--engine", "tensorrt-rtx", "--batch-size", "4"], 2, "takes any from 1 to 4"),
        (["build", "--precision", "fp16"], 2, "is fp32, and that is part of its graph. Export it anew"),
        (["build", "--precision", "fp61"], 2, "Did you mean 'fp16'"),
        (["build", "--bundle", "none", "--profiles", "range"], 2, "--profiles"),
        (["inspect", "nothing"], 2, "unknown engine 'nothing'"),
    ],
)
def test_bad_usage_is_reported(
    run: Path, argv: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if "--bundle" not in argv:
        argv = [*argv, "--run", str(run)]
    assert main(argv) == code
    assert message in capsys.readouterr().err


def test_a_bundle_is_rebuilt_with_the_profiles_it_had(
    republish: Callable[..., Any], onnx_file: Path, graph: GraphSpec, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    built = ensure_engine(
        onnx_file, graph, tmp_path / "cache", backend="tensorrt-rtx",
        options=BuildOptions(max_batch_size=8, batch_sizes=(1, 8), profiles="separate"),
    )  # fmt: skip
    with new_artifact(bundle, kind="bundle") as new:
        (new / "bundle.json").write_text("{}")
        shutil.copyfile(onnx_file, new / "stage_00.onnx")
        shutil.copytree(built, new / "engines" / "stage_00")
        republish(new / "engines" / "stage_00", backend_version="1.6.1")
    (rebuilt,) = rebuild_bundle(bundle)
    open_artifact(bundle, kind="bundle", remedy="")
    _, key = open_key(rebuilt.folder)
    assert key == open_key(built)[1]
    assert {path.name for path in rebuilt.folder.glob("*.trt")} == {"engine_b1.trt", "engine_b8.trt"}

"""Every kind of engine that must not be opened, refused before a byte of it reaches TensorRT."""

from __future__ import annotations

import dataclasses
import re
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artifacts import (
    MANIFEST,
    CorruptArtifactError,
    EngineError,
    EngineKey,
    GraphSpec,
    MissingExtraError,
    StaleArtifactError,
    TensorSpec,
    new_artifact,
    read_json,
    to_plain,
    write_json,
)
from engines import BuildOptions, builder, ensure_engine, list_engines, open_engine, read_onnx_facts
from engines.gpu.detection import Gpu
from engines.identity.keys import ENGINE_JSON, open_key
from engines.trt import backend as backend_module
from engines.trt import library as library_module
from engines.trt import vetting as vetting_module
from engines.trt.cache_files import read_blob, update_blob
from engines.trt.files import PROFILES_JSON, EngineFiles
from engines.trt.library import PORTABLE_DEVICE, identify_tensorrt, load_tensorrt
from engines.trt.profiles import engine_options
from engines.trt.timing_cache import stored_timings, timing_file
from engines.trt.vetting import check_validity, name_diagnostics

H100 = Gpu(name="NVIDIA H100 80GB HBM3", capability=(9, 0), driver="580.95.05")
RTX_4090 = Gpu(name="NVIDIA GeForce RTX 4090", capability=(8, 9), driver="580.95.05")


@pytest.fixture
def folder(rtx_folder: Path, tmp_path: Path) -> Path:
    """A copy of a sound engine, for a test to damage."""
    shutil.copytree(rtx_folder, tmp_path / "engines" / rtx_folder.name)
    return tmp_path / "engines" / rtx_folder.name


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of engines that vetting let through to the runner."""
    passed: list[Path] = []
    runner = types.ModuleType("engines.trt.run")
    runner.open_trt_engine = lambda folder, key, graph, files, device: passed.append(folder)  # type: ignore[attr-defined]
    monkeypatch.setattr(backend_module, "require_cuda_device", lambda backend, device: device)
    monkeypatch.setitem(sys.modules, "engines.trt.run", runner)
    return passed


@pytest.fixture
def put_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Gpu | None], None]:
    def put(gpu: Gpu | None) -> None:
        for module in (library_module, vetting_module):
            monkeypatch.setattr(module, "find_gpu", lambda index=0: gpu)

    return put


def rewrite_files(folder: Path, change: Callable[[EngineFiles], EngineFiles]) -> None:
    """Publishes an engine again with another ``profiles.json``, its manifest in order."""
    _, key = open_key(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}
    record = change(read_json(folder / PROFILES_JSON, EngineFiles))
    with new_artifact(folder, kind="engine", inputs={"onnx": key.onnx_digest}, parameters=to_plain(key)) as new:
        for name, data in files.items():
            (new / name).write_bytes(data)
        write_json(new / PROFILES_JSON, record)


def test_a_sound_engine_reaches_the_runner(
    folder: Path, graph: GraphSpec, onnx_file: Path, opened: list[Path], put_gpu: Callable[..., None]
) -> None:
    for gpu in (None, RTX_4090):
        put_gpu(gpu)
        open_engine(folder, graph, threads=1, onnx=onnx_file)
    assert opened == [folder, folder]


OPTIONS = engine_options("tensorrt-rtx", "range")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend_version": "1.6.1.120"}, "backend_version is '1.6.1.120', here '1.7"),
        ({"device": "GPUs of 8.6"}, f"device is 'GPUs of 8.6', here '{PORTABLE_DEVICE}'"),
        ({"precision": "float16"}, "precision is 'float16', here 'float32'"),
        ({"onnx_digest": "f" * 64}, f"onnx_digest is '{'f' * 64}', here '"),
        ({"max_batch_size": 16}, "profiles are 1 to 8 rows (engine.trt #0), here 1 to 16 rows (engine.trt #0)"),
        ({"batch_sizes": (1, 8)}, "profiles are 1 to 8 rows (engine.trt #0), here 1 rows (engine.trt #0), 8 rows"),
        ({"options": {**OPTIONS, "tf32": "on"}}, "option tf32 is 'on', here 'off'"),
        ({"options": {**OPTIONS, "compute_capabilities": "8.6"}}, "compute_capabilities is '8.6', here 'portable'"),
        ({"options": {**OPTIONS, "strip_plan": "on"}}, "option strip_plan is 'on', here absent"),
        ({"options": {**OPTIONS, "format": "0"}}, "option format is '0', here '1'"),
    ],
)  # fmt: skip
def test_each_mismatch_of_the_key_is_refused(
    folder: Path, graph: GraphSpec, onnx_file: Path, opened: list[Path], republish: Callable[..., EngineKey],
    changes: dict[str, Any], message: str,
) -> None:  # fmt: skip
    republish(folder, **changes)
    with pytest.raises(StaleArtifactError, match=f"{re.escape(message)}.*Build it again with: python -m engines build"):
        open_engine(folder, graph, threads=1, onnx=onnx_file)
    assert opened == []
    if not {"precision", "onnx_digest"} & set(changes):  # for which the graph is needed
        assert message in str(list_engines(folder.parent)[0].problem)


def test_the_other_flavour_is_refused(
    folder: Path, graph: GraphSpec, opened: list[Path], republish: Callable[..., EngineKey],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    republish(folder, backend="tensorrt")
    if not _is_installed("tensorrt"):
        with pytest.raises(MissingExtraError, match=r"tensorrt is not installed.*pame\[tensorrt\]"):
            open_engine(folder, graph, threads=1)
    fake_classic(monkeypatch)
    with pytest.raises(StaleArtifactError, match="backend_version is '1.7.*', here '11.4.0.106'; device is 'GPUs of"):
        open_engine(folder, graph, threads=1)
    assert opened == []


def _is_installed(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def fake_classic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs a fake TensorRT that has only a version."""
    module = types.ModuleType("tensorrt")
    module.__version__ = "11.4.0.106"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    load_tensorrt.cache_clear()


@pytest.fixture(autouse=True)
def _forget_fakes() -> Iterator[None]:
    yield
    load_tensorrt.cache_clear()


def test_a_gpu_that_rtx_does_not_target_is_refused_with_its_name(
    folder: Path, graph: GraphSpec, opened: list[Path], put_gpu: Callable[..., None]
) -> None:
    put_gpu(H100)
    with pytest.raises(EngineError, match=re.escape(f"does not run on {H100.description}, only on {PORTABLE_DEVICE}")):
        open_engine(folder, graph, threads=1)
    assert opened == []
    assert "H100" in str(list_engines(folder.parent)[0].problem)


def test_an_engine_of_classic_tensorrt_belongs_to_one_gpu_and_driver(
    onnx_file: Path, put_gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_classic(monkeypatch)
    monkeypatch.setattr("engines.trt.build.find_gpu", lambda: H100)
    put_gpu(H100)
    key = builder("tensorrt", BuildOptions(max_batch_size=8)).key(onnx_file)
    assert (key.backend_version, key.device) == ("11.4.0.106", H100.description)
    assert key.batch_sizes == (1, 2, 4, 8)
    assert "compute_capabilities" not in key.options
    for other in (dataclasses.replace(H100, driver="590.10"), RTX_4090):
        put_gpu(other)
        assert identify_tensorrt("tensorrt").device != key.device
    put_gpu(None)
    assert identify_tensorrt("tensorrt").device == "no GPU"
    monkeypatch.setattr("engines.trt.build.find_gpu", lambda: None)
    with pytest.raises(EngineError, match="this machine has none.*--engine tensorrt-rtx"):
        builder("tensorrt", BuildOptions(max_batch_size=8)).key(onnx_file)


X16 = TensorSpec(name="x", dtype="float16", row_shape=(1, 6, 6))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("inputs", X16, "inputs are x float32 [1, 6, 6] a row, here x float16 [1, 6, 6] a row"),
        ("inputs", dataclasses.replace(X16, dtype="float32", row_shape=(1, 6, 7)), "here x float32 [1, 6, 7] a row"),
        ("inputs", dataclasses.replace(X16, name="image"), "here image float16"),
        ("outputs", TensorSpec(name="logits", dtype="float32", row_shape=(4,)), "outputs are confidence float32 [] a"),
    ],
)  # fmt: skip
def test_another_interface_is_refused(
    folder: Path, graph: GraphSpec, opened: list[Path], field: str, value: TensorSpec, message: str
) -> None:
    changed: dict[str, Any] = {field: (value,)}
    with pytest.raises(StaleArtifactError, match=f"{re.escape(message)}.*python -m engines build"):
        open_engine(folder, dataclasses.replace(graph, **changed), threads=1)
    assert opened == []


def test_profiles_that_are_not_those_of_the_key_are_refused(folder: Path, graph: GraphSpec, opened: list[Path]) -> None:
    def narrow(files: EngineFiles) -> EngineFiles:
        return dataclasses.replace(files, profiles=(dataclasses.replace(files.profiles[0], most=4),))

    rewrite_files(folder, narrow)
    with pytest.raises(StaleArtifactError, match=r"profiles are 1 to 4 rows .* here 1 to 8 rows"):
        open_engine(folder, graph, threads=1)
    assert opened == []


@pytest.mark.parametrize("name", ["engine.trt", ENGINE_JSON, PROFILES_JSON])
def test_a_flipped_bit_never_gets_further(
    flip: Callable[..., None], folder: Path, graph: GraphSpec, opened: list[Path], name: str
) -> None:
    flip(folder / name)
    with pytest.raises(CorruptArtifactError, match=f"{name} differs .*python -m engines build"):
        open_engine(folder, graph, threads=1)
    assert opened == []
    assert "differs" in str(list_engines(folder.parent, check_bytes=True)[0].problem)


def test_foreign_bytes_in_the_folder_never_get_further(folder: Path, graph: GraphSpec, opened: list[Path]) -> None:
    (folder / "engine.trt").write_bytes(b"\0" * (folder / "engine.trt").stat().st_size)
    with pytest.raises(CorruptArtifactError, match="differs from the SHA-256"):
        open_engine(folder, graph, threads=1)
    (folder / "engine.trt").unlink()
    with pytest.raises(CorruptArtifactError, match="missing"):
        open_engine(folder, graph, threads=1)
    assert opened == []


def test_a_stale_engine_in_the_cache_is_built_again(
    folder: Path, graph: GraphSpec, onnx_file: Path, republish: Callable[..., EngineKey]
) -> None:
    republish(folder, options={**OPTIONS, "tf32": "on"})
    assert (
        ensure_engine(onnx_file, graph, folder.parent, backend="tensorrt-rtx", options=BuildOptions(max_batch_size=8))
        == folder
    )
    assert list_engines(folder.parent)[0].problem is None


def test_without_a_gpu_validity_is_unverified(folder: Path, put_gpu: Callable[..., None], graph: GraphSpec) -> None:
    put_gpu(None)
    (found,) = list_engines(folder.parent, check_bytes=True)
    assert found.problem is None
    assert found.unverified == "whether TensorRT-RTX runs it here cannot be verified without a GPU"
    put_gpu(RTX_4090)
    assert list_engines(folder.parent)[0].unverified is None


def test_a_refusal_of_the_runtime_is_passed_on(
    rtx: str, folder: Path, graph: GraphSpec, opened: list[Path], put_gpu: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    trt = load_tensorrt(rtx)
    headers: list[bytes] = []

    class Runtime:
        """TensorRT-RTX on a machine whose driver is too old."""

        engine_header_size = 64

        def __init__(self, _logger: object) -> None: ...

        def get_engine_validity(self, header: bytes) -> tuple[Any, int]:
            headers.append(header)
            old = trt.EngineInvalidityDiagnostics.OLD_CUDA_DRIVER
            return trt.EngineValidity.INVALID, int(old) | int(trt.EngineInvalidityDiagnostics.UNSUPPORTED_CC)

    monkeypatch.setattr(trt, "Runtime", Runtime)
    put_gpu(RTX_4090)
    with pytest.raises(StaleArtifactError, match="does not run on NVIDIA GeForce RTX 4090.*: .*OLD_CUDA_DRIVER"):
        open_engine(folder, graph, threads=1)
    assert opened == []
    assert [len(header) for header in headers] == [64]


def test_an_invalid_verdict_needs_a_diagnosis(rtx: str, folder: Path) -> None:
    """Without a driver the real check says INVALID and gives no reason."""
    check_validity(folder / "engine.trt")
    trt = load_tensorrt(rtx)
    assert name_diagnostics(trt, 0) == ()
    both = int(trt.EngineInvalidityDiagnostics.VERSION_MISMATCH) | int(trt.EngineInvalidityDiagnostics.UNSUPPORTED_CC)
    assert set(name_diagnostics(trt, both)) == {"VERSION_MISMATCH", "UNSUPPORTED_CC"}


def test_facts_of_the_graph_are_checked_where_it_is_given(
    folder: Path, graph: GraphSpec, opened: list[Path], make_onnx: Callable[..., Path]
) -> None:
    other = make_onnx(seed=5)
    with pytest.raises(StaleArtifactError, match=f"onnx_digest is '.*', here '{read_onnx_facts(other).digest}'"):
        open_engine(folder, graph, threads=1, onnx=other)
    open_engine(folder, graph, threads=1)
    assert opened == [folder]


class TimingCache:
    """A fake of TensorRT's timing cache, which needs a GPU: a set of lines."""

    def __init__(self, data: bytes) -> None:
        self.lines = set(data.splitlines())

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.lines |= other.lines
        return True

    def serialize(self) -> bytes:
        return b"\n".join(sorted(self.lines))


class TimingConfig:
    """The part of a builder's config that has the timing cache."""

    def __init__(self, *, accepts: Callable[[TimingCache], bool] = lambda _: True) -> None:
        self.accepts = accepts
        self.cache: TimingCache | None = None

    def create_timing_cache(self, data: bytes) -> TimingCache:
        return TimingCache(data)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if not self.accepts(cache):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache:
        assert self.cache is not None
        return self.cache


def test_times_are_stored_and_merged_with_those_of_other_processes(tmp_path: Path) -> None:
    path = timing_file(tmp_path, version="11.4", device="a")
    assert path != timing_file(tmp_path, version="11.4", device="b")
    config = TimingConfig()
    with stored_timings(config, path):
        config.get_timing_cache().lines.add(b"conv 1")
        update_blob(path, lambda _: b"from another process")
    assert read_blob(path) == b"conv 1\nfrom another process"
    config = TimingConfig()
    with stored_timings(config, path):
        assert config.get_timing_cache().lines == {b"conv 1", b"from another process"}
    refusing = TimingConfig(accepts=lambda cache: not cache.lines)
    with stored_timings(refusing, path):
        assert refusing.get_timing_cache().lines == set()
    with stored_timings(TimingConfig(), None):
        pass

"""The table of backends: every backend has every factory, and everything that depends on a backend goes through it."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import engines
from artifacts import EngineKey, GraphSpec, UsageError, new_artifact, to_plain, write_json
from artifacts.environment import PACKAGES
from engines import (
    BACKENDS,
    DEFAULT_BACKEND,
    BuildOptions,
    Device,
    DeviceOptions,
    Engine,
    FakeEngine,
    HostDevice,
    builder,
    fixed_batch_sizes,
    list_engines,
    open_device,
    open_engine,
)
from engines.backends import table
from engines.backends.table import TABLE, choose_backend, find_backend
from engines.cli import main
from engines.identity.description import EngineDescription
from engines.identity.keys import ENGINE_JSON, KIND, BackendIdentity
from engines.protocols import Backend, EngineBuilder

ROOT = Path(__file__).parents[3]
ENGINES = Path(engines.__file__).parent
OWN_FOLDERS = ("ort", "ov", "trt")


def test_every_backend_has_every_factory() -> None:
    assert tuple(backend.name for backend in TABLE) == BACKENDS
    assert len(set(BACKENDS)) == len(BACKENDS)
    assert DEFAULT_BACKEND in BACKENDS
    factories = [
        field.name for field in dataclasses.fields(Backend) if field.name not in ("name", "packages", "tensors")
    ]
    assert [backend.name for backend in TABLE if backend.tensors is not None] == [
        "onnxruntime", "openvino", "openvino-bf16"
    ]  # fmt: skip
    for backend in TABLE:
        assert find_backend(backend.name) is backend
        assert all(callable(getattr(backend, name)) for name in factories), backend.name


@pytest.mark.parametrize("backend", TABLE, ids=lambda backend: backend.name)
def test_a_backend_is_installed_by_the_extra_of_its_name_and_recorded_by_its_packages(backend: Backend) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert backend.name in project["optional-dependencies"]
    assert backend.packages
    assert set(backend.packages) <= set(PACKAGES)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_builder_knows_its_backend_and_only_some_fix_batch_sizes(backend: str) -> None:
    options = BuildOptions(max_batch_size=8, batch_sizes=(1, 8))
    assert builder(backend, BuildOptions(max_batch_size=8)).backend == backend
    assert fixed_batch_sizes(backend, options) in ((), (1, 8))


def test_an_unknown_backend_is_refused_everywhere() -> None:
    options = BuildOptions(max_batch_size=8)
    for use in (
        lambda: open_device("onnxruntim"),
        lambda: builder("onnxruntim", options),
        lambda: fixed_batch_sizes("onnxruntim", options),
    ):
        with pytest.raises(UsageError, match=r"engine backend 'onnxruntim'. Did you mean 'onnxruntime'\?"):
            use()


def test_no_backend_is_named_outside_its_folder_and_the_table() -> None:
    """Adding a backend must need its folder, a line of the table and an extra, and nothing else."""
    pattern = re.compile(r"\bif .*backend (==|!=|in|not in)\b|TENSORRT|ONNXRUNTIME|OPENVINO")
    allowed = {ENGINES / "backends" / "table.py"}
    sources = [
        path
        for path in sorted(ENGINES.rglob("*.py"))
        if path.relative_to(ENGINES).parts[0] not in OWN_FOLDERS and path not in allowed
    ]
    assert len(sources) > 30
    found = [
        f"{path.relative_to(ENGINES)}: {line.strip()}"
        for path in sources
        for line in path.read_text().splitlines()
        if pattern.search(line)
    ]
    assert found == []


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A backend that exists in the table only, as one that a newcomer adds."""

    class Builder:
        backend = "other"

        def key(self, onnx: Path) -> EngineKey:
            raise NotImplementedError

        def build(self, onnx: Path, folder: Path, key: EngineKey) -> None:
            raise NotImplementedError

    def make_builder(options: BuildOptions) -> EngineBuilder:
        return Builder()

    def open_other(artifact: Any, key: EngineKey, graph: GraphSpec, *, threads: int, device: Device | None) -> Engine:
        return FakeEngine(graph)

    def describe(artifact: Any, key: EngineKey) -> EngineDescription:
        return EngineDescription(
            engine=artifact.folder.as_posix(), key=key, inputs=("x",), outputs=("y",), profiles=("any",)
        )

    def open_host(options: DeviceOptions) -> Device:
        return HostDevice()

    backend = Backend(
        name="other",
        packages=("other",),
        identify=lambda index: BackendIdentity(version="1", device="any"),
        open=open_other,
        builder=make_builder,
        fixed_batch_sizes=lambda options: options.batch_sizes,
        vet=lambda artifact, key: "whether it is fast",
        describe=describe,
        device=open_host,
    )
    monkeypatch.setattr(table, "_BY_NAME", {**table._BY_NAME, "other": backend})
    return backend


def test_a_backend_of_the_table_is_opened_listed_verified_and_inspected(
    other: Backend, graph: GraphSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = EngineKey(
        onnx_digest="0" * 64, backend=other.name, backend_version="1", device="any", precision="float32",
        batch_sizes=(), max_batch_size=8, options={},
    )  # fmt: skip
    run = tmp_path / "runs" / "tiny"
    with new_artifact(run / "engines" / "abc", kind=KIND, parameters=to_plain(key)) as staging:
        write_json(staging / ENGINE_JSON, key)

    assert isinstance(open_engine(run / "engines" / "abc", graph, threads=1), FakeEngine)
    (listed,) = list_engines(run / "engines")
    assert (listed.problem, listed.unverified) == (None, "whether it is fast")
    for command in (["list"], ["verify"], ["inspect", "abc"]):
        assert main([*command, "--run", str(run), "--json", "-"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found if command[0] == "inspect" else found[0])["key"]["backend"] == "other"
    assert builder("other", BuildOptions(max_batch_size=8)).backend == "other"
    assert fixed_batch_sizes("other", BuildOptions(max_batch_size=8, batch_sizes=(2,))) == (2,)
    assert open_device("other").name == "cpu"


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("openvino", "bf16", ("openvino-bf16", None)),
        ("openvino-bf16", "bf16", ("openvino-bf16", None)),
        ("openvino", "int8+bf16", ("openvino-bf16", "int8")),
        ("openvino", "fp16", ("openvino", "fp16")),
        ("onnxruntime", None, ("onnxruntime", None)),
        ("nonsense", "fp32", ("nonsense", "fp32")),
    ],
)
def test_a_precision_may_be_arithmetic_of_a_backend(
    name: str, precision: str | None, expected: tuple[str, str | None]
) -> None:
    assert choose_backend(name, precision) == expected


def test_arithmetic_that_a_backend_does_not_have_names_one_that_does() -> None:
    with pytest.raises(UsageError, match="onnxruntime does not compute in it; use --engine openvino-bf16"):
        choose_backend("onnxruntime", "bf16")
    with pytest.raises(UsageError, match="onnxruntime does not compute in it; use --engine openvino-bf16"):
        choose_backend("onnxruntime", "int8+bf16")
    with pytest.raises(UsageError, match="openvino has no arithmetic 'fp64'; use int8, or int8.bf16"):
        choose_backend("openvino", "int8+fp64")

"""Names of TensorRT: each that this code uses exists in the real bindings of every supported version.

The bindings are small wheels that import ten C symbols. A stub with these symbols lets them be imported on any machine
with a C compiler, and then Python can be asked what is there. That is all it proves: nothing is built or run.

The names are read off our own sources: what is taken from ``trt``, and what from a variable that is always called the
same for objects of one class (``OBJECTS``).
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

import engines

SOURCES = sorted(
    path for path in Path(engines.__file__).parent.rglob("*.py") if path.match("trt_*.py") or path.match("trt/*.py")
)
assert len(SOURCES) >= 9
VERSIONS = {"10.16.1.11": "10", "11.4.0.106": "11", "rtx 1.7": "1"}
LIBRARIES = {
    "10": ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"),
    "11": ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11"),
    "1": ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"),
}
OBJECTS = {
    "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser", "config": "IBuilderConfig",
    "shapes": "IOptimizationProfile", "tensor": "ITensor", "parser_error": "ParserError", "runtime": "Runtime",
    "engine": "ICudaEngine", "inspector": "EngineInspector", "cache": "ITimingCache", "ours": "ITimingCache",
    "serialised": "IHostMemory", "run_config": "IRuntimeConfig", "kernels": "IRuntimeCache",
    "context": "IExecutionContext",
}  # fmt: skip
RTX_ONLY = {
    "BuilderFlag.REQUIRE_USER_ALLOCATION", "EngineValidity", "EngineValidity.INVALID", "EngineInvalidityDiagnostics",
    "Runtime.engine_header_size", "Runtime.get_engine_validity", "CudaGraphStrategy", "CudaGraphStrategy.DISABLED",
    "DynamicShapesKernelSpecializationStrategy", "DynamicShapesKernelSpecializationStrategy.EAGER",
    "IRuntimeConfig.cuda_graph_strategy", "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache", "IExecutionContext.is_stream_capturable",
    "IRuntimeCache.deserialize", "IRuntimeCache.serialize",
}  # fmt: skip
OVERRIDDEN = {
    "IProgressMonitor.phase_start", "IProgressMonitor.phase_finish", "IProgressMonitor.step_complete", "ILogger.log",
}  # fmt: skip
NOT_OURS = {"__init__", "__version__", "__members__"}


def read_names(source: str, objects: Mapping[str, str] = MappingProxyType(OBJECTS)) -> Iterator[str]:
    """Yields the dotted names of TensorRT that some code uses.

    Args:
        source: the code.
        objects: variable, or attribute of ``self`` or of ``parsed`` -> class of TensorRT.
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or node.attr in NOT_OURS:
            continue
        chain = [node.attr]
        value: ast.expr = node.value
        while isinstance(value, ast.Attribute):
            chain.insert(0, value.attr)
            value = value.value
        if isinstance(value, ast.Name):
            chain.insert(0, value.id)
        if "trt" in chain[:-1]:
            yield ".".join(chain[chain.index("trt") + 1 :])
        elif len(chain) > 1 and chain[-2] in objects and chain[:-2] in ([], ["self"], ["parsed"]):
            yield f"{objects[chain[-2]]}.{chain[-1]}"


def used_names() -> set[str]:
    names = {name for path in SOURCES for name in read_names(path.read_text())}
    return {name.removesuffix(".__init__") for name in names if name} | OVERRIDDEN


def test_names_are_read_off_the_sources() -> None:
    found = set(read_names("x = parsed.trt.A.B(1); parsed.builder.make(); config.go; other.thing; trt.__version__"))
    assert found == {"A.B", "A", "Builder.make", "IBuilderConfig.go"}
    assert set(read_names("device.engine.go; self._context.run", {"engine": "E", "_context": "C"})) == {"C.run"}
    names = used_names()
    assert len(names) > 40
    assert {"OnnxParser.parse_from_file", "ParserError.node_operator", "BuilderFlag.TF32", "ILogger"} <= names
    assert "Runtime.get_engine_validity" in names


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stub libraries of every version."""
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C compiler, so the bindings of TensorRT cannot be given stub libraries")
    folder = tmp_path_factory.mktemp("stubs")
    for names in LIBRARIES.values():
        for name in names:
            source = Path(__file__).with_name("trt_stub.c")
            command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(folder / name), str(source)]
            subprocess.run(command, check=True, capture_output=True)
    return folder


def find_bindings(version: str, folder: Path) -> tuple[Path, str]:
    """Returns where to import a version's bindings from and what they are called."""
    if version.startswith("rtx"):
        spec = __import__("importlib.util").util.find_spec("tensorrt_rtx_bindings")
        if spec is None or spec.origin is None:
            pytest.skip("tensorrt_rtx_cu13_bindings is not installed (make test does it)")
        return Path(spec.origin).parents[1], "tensorrt_rtx_bindings"
    wheels = sorted((Path(sys.prefix) / "bindings").glob(f"tensorrt_cu13_bindings-{version}-*.whl"))
    if not wheels:
        pytest.skip(
            f"the wheel of tensorrt_cu13_bindings {version} is not in {sys.prefix}/bindings (make test gets it)"
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(folder)
    return folder, "tensorrt_bindings"


ASK = """
import ctypes, functools, importlib, json, sys
libraries, package, names = json.loads(sys.argv[1])
for library in libraries:
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
trt = importlib.import_module(package)
def exists(name):
    try:
        functools.reduce(getattr, name.split("."), trt)
    except AttributeError:
        return False
    return True
print(json.dumps({"version": trt.__version__, "missing": [name for name in names if not exists(name)]}))
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists_in_every_version(version: str, stubs: Path, tmp_path: Path) -> None:
    place, package = find_bindings(version, tmp_path)
    libraries = [str(stubs / name) for name in LIBRARIES[VERSIONS[version]]]
    question = json.dumps([libraries, package, [*sorted(used_names()), "NoSuchThing"]])
    environment = {**os.environ, "PYTHONPATH": str(place)}
    command = [sys.executable, "-c", ASK, question]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["version"].startswith(version.removeprefix("rtx "))
    expected = {"NoSuchThing"} if version.startswith("rtx") else {"NoSuchThing", *(RTX_ONLY & used_names())}
    assert set(answer["missing"]) == expected

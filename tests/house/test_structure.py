"""Tests of the structure: sizes of modules, folders and signatures, circles, and the words that modules begin with."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("artifacts", "calibration", "engines", "export", "planner", "runtime")
LARGEST_MODULE = 400  # lines
LARGEST_FOLDER = 14  # modules
LARGEST_SIGNATURE = 6  # parameters, self and cls not counted
# their documented keywords are the product's own interface
LONG_SIGNATURES = {"runtime.runtime.Runtime.load", "runtime.hosting.async_runtime.AsyncRuntime.load"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def functions(tree: ast.AST, where: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{where}.{node.name}", node
            yield from functions(node, f"{where}.{node.name}")
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{where}.{node.name}")
        else:
            yield from functions(node, where)


def test_the_rooms_are_all_there() -> None:
    assert len(sources(*ROOMS)) >= 190  # a glob that finds nothing would let every test below pass


def test_no_module_is_too_long() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in sources(*ROOMS, "tests")}
    assert {path: count for path, count in lines.items() if count > LARGEST_MODULE} == {}


def test_no_folder_is_crowded() -> None:
    modules: dict[Path, int] = {}
    for path in sources(*ROOMS):
        if path.stem not in ("__init__", "__main__"):
            modules[path.parent] = modules.get(path.parent, 0) + 1
    assert {str(folder.relative_to(ROOT)): n for folder, n in modules.items() if n > LARGEST_FOLDER} == {}


def test_no_signature_is_too_long() -> None:
    long = {}
    for path in sources(*ROOMS):
        for name, function in functions(ast.parse(path.read_text()), module_of(path)):
            arguments = function.args
            names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            if (count := len([argument for argument in names if argument not in ("self", "cls")])) > LARGEST_SIGNATURE:
                long[name] = count
    assert {name: count for name, count in long.items() if name not in LONG_SIGNATURES} == {}


@pytest.mark.parametrize("room", ROOMS)
def test_no_modules_import_each_other_in_a_circle(room: str) -> None:
    graph = grimp.build_graph(*ROOMS, include_external_packages=False, exclude_type_checking_imports=True)
    modules = sorted(module for module in graph.modules if module.split(".")[0] == room)
    assert len(modules) > 3
    packages = {module_of(path.parent / "__init__.py") for path in sources(room) if path.stem == "__init__"}
    circles = []
    for module in modules:
        for imported in graph.find_modules_directly_imported_by(module):
            # a package's table of lazily fetched names is its public face; its modules never import the package
            if module in packages or imported in packages:
                continue
            if graph.chain_exists(importer=imported, imported=module):
                circles.append((module, imported))
    assert circles == []


def test_modules_are_reached_through_the_package_of_their_room() -> None:
    public = {
        "artifacts.console",
        "runtime.bench",
    }  # packages and modules that are meant to be imported by their own name
    deep = []
    for path in sources(*ROOMS, "examples"):  # benchmarks look inside on purpose
        room = path.relative_to(ROOT).parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                other, _, inside = node.module.partition(".")
                if other in ROOMS and other != room and inside and node.module not in public:
                    deep.append(f"{path.relative_to(ROOT)}: {node.module}")
    assert deep == []


def test_every_module_begins_with_a_noun_phrase() -> None:
    bad = {}
    for path in sources(*ROOMS, "tests", "benchmarks", "examples"):
        text = ast.get_docstring(ast.parse(path.read_text()))
        if text is None:
            if path.stem not in ("__main__",) and path != ROOT / "tests" / "__init__.py":
                bad[str(path.relative_to(ROOT))] = "no docstring"
        elif re.match(r"(What|Who|How|Where|When|Which|Why)\b", text):
            bad[str(path.relative_to(ROOT))] = text.splitlines()[0]
    assert bad == {}


def test_no_loop_variable_is_called_one() -> None:
    found = []
    for path in sources(*ROOMS, "tests", "benchmarks", "examples"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = []
            if isinstance(node, (ast.For, ast.AsyncFor, ast.comprehension)):
                targets = [name.id for name in ast.walk(node.target) if isinstance(name, ast.Name)]
            if "one" in targets:
                found.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', node.target.lineno)}")
    assert found == []

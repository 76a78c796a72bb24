"""Tests of the documents: files, modules, links, commands and flags in them exist; the tour lists every folder."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("artifacts", "calibration", "engines", "export", "planner", "runtime")
FOLDERS = (*ROOMS, "benchmarks", "docs", "examples", "tests")
TOUR = "docs/tour.md"
HELP = (
    ("calibration",), ("engines",), ("engines", "build"), ("export",), ("export", "resnet"), ("planner",),
    ("planner", "scout"), ("planner", "validate"), ("planner", "report"), ("planner", "import-trace"),
    ("planner", "recalibrate"), ("runtime.bench",), ("runtime.loadtest",), ("runtime.serve",), ("runtime.simulate",),
    ("runtime.triton_repository",),
)  # fmt: skip
FOREIGN_FLAGS = {
    "--index-url",
    "--no-deps",
    "--wheels",
    "--output",
    "--rounds",
    "--candidates",
    "--count",
    "--model-repository",
}  # pip's, benchmarks' and Triton's
CODE_SPAN = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"python (?:-m ([\w.]+)|([\w./]+\.py))")


def documents() -> list[str]:
    found = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def guides() -> list[str]:
    """The documents about the present code; the changelog also names what is gone."""
    return [document for document in documents() if document != "CHANGELOG.md"]


def read(document: str) -> str:
    return (ROOT / document).read_text()


def paths_in(text: str) -> list[str]:
    spans = CODE_SPAN.findall(FENCE.sub("", text))
    return [span for span in spans if re.fullmatch(r"\w+(/[\w-][\w.-]*)*/?", span) and span.split("/")[0] in FOLDERS]


def modules_in(text: str) -> list[str]:
    spans = CODE_SPAN.findall(FENCE.sub("", text))
    return [span for span in spans if re.fullmatch(r"\w+(\.\w+)+", span) and span.split(".")[0] in ROOMS]


def is_module(name: str) -> bool:
    base = ROOT.joinpath(*name.split("."))
    return base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()


def exists(name: str) -> bool:
    """Tells whether a dotted name is a module, or a public name of a room."""
    if is_module(name):
        return True
    room, _, attribute = name.partition(".")
    return hasattr(importlib.import_module(room), attribute)


def anchors_of(document: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", read(document)), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


def wings() -> list[str]:
    """Every folder of the rooms with code in it."""
    inits = [path for room in ROOMS for path in (ROOT / room).rglob("__init__.py")]
    return sorted(f"{path.parent.relative_to(ROOT).as_posix()}/" for path in inits)


@pytest.mark.parametrize("document", guides())
def test_every_path_that_a_document_names_exists(document: str) -> None:
    assert [path for path in paths_in(read(document)) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("document", guides())
def test_every_module_that_a_document_names_exists(document: str) -> None:
    assert [name for name in modules_in(read(document)) if not exists(name)] == []


@pytest.mark.parametrize("document", documents())
def test_every_link_leads_somewhere(document: str) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", read(document))):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        path = (ROOT / document).parent / target if target else ROOT / document
        if not path.exists() or (anchor and anchor not in anchors_of(path.resolve().relative_to(ROOT).as_posix())):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", guides())
def test_every_command_that_a_document_shows_exists(document: str) -> None:
    commands = COMMAND.findall(read(document))
    modules = [module for module, _ in commands if module and module.split(".")[0] in ROOMS]
    scripts = [script for _, script in commands if script]
    assert [name for name in modules if not (is_module(name) or is_module(f"{name}.__main__"))] == []
    assert [script for script in scripts if not (ROOT / script).is_file()] == []


def test_every_flag_of_the_readme_is_a_flag_of_a_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
    for words in HELP:
        monkeypatch.setattr(sys, "argv", [*words, "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        assert ended.value.code == 0
    offered = set(flag.findall(capsys.readouterr().out)) | FOREIGN_FLAGS
    assert len(offered) > 50
    assert set(flag.findall(read("README.md"))) - offered == set()


def test_the_tour_has_a_line_for_every_folder_of_the_rooms() -> None:
    lines = re.findall(r"^\| `([\w/]+/)` \|", read(TOUR), flags=re.MULTILINE)
    assert len(lines) == len(set(lines))
    assert len(wings()) >= 30
    assert sorted(set(wings()) - set(lines)) == []


def test_the_readme_has_a_line_for_every_room_and_leads_to_the_tour() -> None:
    readme = read("README.md")
    assert re.findall(r"^(\w+)/ {2,}\S", readme, flags=re.MULTILINE) == [
        "artifacts", "engines", "export", "calibration", "planner", "runtime",
    ]  # fmt: skip
    assert f"]({TOUR})" in readme


def test_the_checks_find_what_does_not_exist() -> None:
    text = "`planner/joint.py` `planner.nowhere` `artifacts.store` `runs/resnet` [x](docs/gone.md)"
    assert paths_in(f"{text}\n```\n`runtime/x.py`\n```") == ["planner/joint.py"]
    assert [name for name in modules_in(text) if not exists(name)] == ["planner.nowhere"]
    assert LINK.findall(text) == ["docs/gone.md"]


def test_the_table_of_foreign_files_is_the_one_that_its_benchmark_writes() -> None:
    source = read("benchmarks/foreign_onnx.py")
    (head,) = re.findall(r'^HEAD = """(.*?)"""', source, flags=re.DOTALL | re.MULTILINE)
    assert read("docs/foreign-onnx.md").startswith(head)


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    releases = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", read("CHANGELOG.md"), flags=re.MULTILINE)
    assert releases[0][0] in (project["version"], "Unreleased")
    assert project["version"] in [version for version, _ in releases]
    assert all(date for version, date in releases if version != "Unreleased")

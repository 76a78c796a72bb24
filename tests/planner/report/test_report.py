"""The report's command: what it writes, what it refuses, and the remedies that it names."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from artifacts import COMMAND, MANIFEST, RunFolder, new_artifact
from planner.commands.main import main
from tests.planner.report.pages import FIGURES, SECTIONS, Page
from tests.planner.report_worlds import bundle_digest, make_bench, make_report, write_run

pytest.importorskip("matplotlib", reason="draws figures: pip install 'pame[report]'")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return write_run(tmp_path / "runs" / "small", make_report())


def report(run: RunFolder, *arguments: str) -> int:
    return main(["report", "--run", str(run.root), *arguments])


def test_the_command(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.root / "bench.json").write_text(json.dumps(make_bench(bundle_digest(run))))
    target = tmp_path / "result.json"
    assert report(run, "--json", str(target)) == 0
    found = json.loads(target.read_text())
    assert (found["report"], found["bench"]) == (str(run.root / "report.html"), True)
    assert [Path(path).stem for path in found["figures"]] == list(FIGURES)
    assert all(Path(path).read_bytes().startswith(b"\x89PNG") for path in found["figures"])
    page = Page((run.root / "report.html").read_text())
    assert page.ids() == list(SECTIONS)
    text = "".join(page.text)
    assert "another one" in text  # the benchmark ran on another machine than the timing, and the page says so
    assert f"python -m planner --run {run.root} --data 'my data' --tolerance 0.05" in text
    assert "--batch-size 8" in text
    assert "--tail-share 0.0" in text
    assert "--batch-size 8 --rounds 2 --samples 200 --json" in text
    assert "python -m export small.onnx --segments --every 1 --head pooled" in text
    before = (run.root / "report.html").read_bytes()
    assert report(run) == 0  # the sweep is reused, and the page is the same to the byte
    assert (run.root / "report.html").read_bytes() == before
    assert not list(run.root.rglob(".*"))


def test_another_place(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert report(run, "--output", str(page)) == 0
    assert page.is_file()
    assert len(list((tmp_path / "page_figures").glob("*.png"))) == len(FIGURES) - 1
    assert f"python -m runtime.bench --run {run.root} --json {run.root / 'bench.json'}" in capsys.readouterr().err
    assert not (run.root / "report.html").exists()


def test_the_sweep_leaves_plan_and_bundle_alone(run: RunFolder) -> None:
    before = {path: path.read_bytes() for name in ("plan", "bundle", "itm") for path in (run.root / name).rglob("*.*")}
    assert report(run) == 0
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--output", "page.pdf"), 2, "name it page.html"),
        (("--output", "nowhere/page.html"), 2, "there is no folder nowhere"),
        (("--bench", "nowhere.json"), 2, "there is no such file. Measure with: python -m runtime.bench"),
    ],
)
def test_usage_errors(
    arguments: tuple[str, ...], code: int, message: str, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(run, *arguments) == code
    assert message in capsys.readouterr().err
    assert not (run.root / "report.html").exists()


def test_no_run(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--run", str(tmp_path / "none")]) == 1
    assert "there is no run at" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 2
    assert "there is no run here yet" in capsys.readouterr().err


def test_no_plan_yet(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(run.plan)
    assert report(run) == 1
    assert f"Make it with: python -m planner --run {run.root}\n" in capsys.readouterr().err


def test_a_plan_of_other_measurements_is_stale(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    content = (run.itm / "itm.json").read_bytes()
    with new_artifact(run.itm, kind="itm", inputs={"model": "another"}) as folder:
        (folder / "itm.json").write_bytes(content)
    assert report(run) == 1
    assert "was made from another itm than the run holds now" in capsys.readouterr().err


def test_a_benchmark_of_another_bundle(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench = run.root / "bench.json"
    bench.write_text(json.dumps(make_bench("other")))
    assert report(run, "--bench", str(bench)) == 1
    assert "another bundle" in capsys.readouterr().err
    assert report(run) == 0
    assert "another bundle than the run holds now" in "".join(Page((run.root / "report.html").read_text()).text)
    bench.write_text(json.dumps({"samples": 3, "full": 4}))
    assert report(run) == 1
    assert "is no result of runtime.bench: it lacks batch_size" in capsys.readouterr().err
    bench.write_text("no json")
    assert report(run) == 1
    assert "is not JSON" in capsys.readouterr().err


def test_without_matplotlib_the_extra_is_named(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert report(run) == 1
    assert "pip install 'pame[report]'" in capsys.readouterr().err
    assert not (run.root / "report.html").exists()


def test_help_needs_no_matplotlib(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["report", "--help"])
    assert "--output" in capsys.readouterr().out


MINE = "python -m export mine.onnx --segments --run elsewhere/mine --every 2"


def test_remedies_are_the_commands_of_this_run(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Never the export of another network into the user's own run."""
    rewrite(run.model, kind="model", command=MINE)
    (run.model / "model.json").write_text("{}")
    assert report(run) == 1
    said = capsys.readouterr().err
    assert MINE in said
    assert "resnet" not in said
    assert main(["report", "--run", str(tmp_path / "none")]) == 1
    said = capsys.readouterr().err
    assert f"python -m export path/to/model.onnx --segments --run {tmp_path / 'none'}" in said
    assert "resnet" not in said


def test_the_remedy_of_a_stale_plan_is_the_command_that_made_it(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = f"python -m planner --run {run.root} --tolerance 0.05 --objective batch"
    rewrite(run.plan, kind="plan", command=planned)
    assert report(run) == 1
    assert f"Plan it again with: {planned}\n" in capsys.readouterr().err


def rewrite(folder: Path, *, kind: str, command: str) -> None:
    """Publishes an artifact again, without its inputs, with a recorded command line."""
    contents = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}
    with new_artifact(folder, kind=kind, notes={COMMAND: command}) as staging:
        for name, content in contents.items():
            (staging / name).write_bytes(content)

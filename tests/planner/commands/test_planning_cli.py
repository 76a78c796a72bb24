"""The planner's command line and its public names, without a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import planner
from planner.commands.main import COMMANDS, main
from tests.planner.foreign.test_importing import arrays, write_npz, write_times


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--tolerance", "1"), "--tolerance"),
        (("--tolerance", "-0.5"), "--tolerance"),
        (("--tolerance", "nan"), "--tolerance"),
        (("--batch-size", "0"), "--batch-size"),
        (("--batch-sizes", "8,1"), "--batch-sizes"),
        (("--engine", "onnxruntim"), "Did you mean 'onnxruntime'"),
        (("--grid-step", "0"), "--grid-step"),
        (("--rounds", "0"), "--rounds"),
        (("--threads", "0"), "--threads"),
        (("--contenders", "0"), "--contenders"),
        (("--tail-share", "2"), "--tail-share"),
        (("--delta", "0"), "--delta"),
        (("--delta", "nan"), "--delta"),
        (("--certify-seed", "-1"), "--certify-seed"),
    ],
)
def test_usage_errors_exit_with_2(
    arguments: tuple[str, ...], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run", str(tmp_path / "none"), *arguments]) == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_every_public_name_is_there() -> None:
    assert len(set(planner.__all__)) == len(planner.__all__)
    for name in planner.__all__:
        assert getattr(planner, name) is not None
    with pytest.raises(AttributeError, match="plan_everything"):
        _ = planner.plan_everything


def test_an_imported_run_is_planned_swept_and_validated_without_torch_or_onnx(tmp_path: Path) -> None:
    """Nothing is trained there, nothing is merged and no engine is built."""
    files = (
        "--trace",
        str(write_npz(tmp_path / "trace.npz", **arrays(400))),
        "--itm",
        str(write_times(tmp_path / "t.csv")),
    )
    run = ("--run", str(tmp_path / "theirs"))
    commands = [
        ["import-trace", *run, *files], [*run, "--tolerance", "0.2", "--batch-size", "8"],
        [*run, "--sweep", "0.1,0.2", "--batch-size", "8"],
        ["validate", *run, "--resplits", "2", "--tolerance", "0.2", "--batch-size", "8"],
    ]  # fmt: skip
    script = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnx_ir', 'onnxruntime'): sys.modules[name] = None\n"
        "from planner.commands.main import main\n"
        f"assert [main(words) for words in {commands!r}] == [0, 0, 0, 0]\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "no model to bundle" in done.stdout


def test_help_names_every_further_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    words = " ".join(capsys.readouterr().out.split()).replace("- ", "-")  # lines may end within a name
    for name in COMMANDS:
        assert f"python -m planner {name}" in words
        with pytest.raises(SystemExit, match="0"):
            main([name, "--help"])
        assert "--json" in capsys.readouterr().out


def test_a_mistyped_command_is_not_taken_for_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    for typed, meant in (("scuot", "scout"), ("validat", "validate"), ("reprot", "report")):
        assert main([typed, "--run", "runs/none"]) == 2
        assert f"Did you mean: python -m planner {meant}?" in capsys.readouterr().err
    assert main(["resnext", "--data", "none"]) == 2
    assert "Did you mean 'resnet'" in capsys.readouterr().err


def test_help_needs_no_heavy_package() -> None:
    script = (
        "import sys; sys.argv = ['planner', '--help']\n"
        "import runpy\n"
        "try: runpy.run_module('planner', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'matplotlib', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--tolerance" in done.stdout

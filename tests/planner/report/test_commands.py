"""The commands of a report: what makes a run again."""

from __future__ import annotations

from pathlib import Path

from artifacts import COMMAND, Manifest, RunFolder, digest_of, new_artifact, open_model, write_model_spec
from planner import Load, MeasureConfig, PlanConfig, TimingConfig
from planner.report.commands import RunRecord, reproduce_run, training_arguments
from planner.report.gathering import find_training
from tests.planner.report_worlds import make_report


def test_the_training_that_the_model_holds_is_among_the_commands(tmp_path: Path) -> None:
    run, parameters = RunFolder(root=tmp_path), {"mode": "frozen", "epochs": 4, "seed": 1, "weight_decay": 0.01}
    for folder, settings in ((run.training / "result", {"mode": "joint"}), (run.training / "weights", parameters)):
        with new_artifact(folder, kind="training", parameters=settings):
            pass
    with new_artifact(run.model, kind="model", inputs={"training": digest_of(parameters)}) as folder:
        write_model_spec(folder, make_report().spec)
    record = find_training(run, open_model(run.model, remedy=""))
    assert training_arguments(record) == ["--train", "frozen", "--epochs", "4", "--seed", "1"]
    assert training_arguments(None) == []


def record_of(tmp_path: Path, config: PlanConfig, *, command: str | None = None) -> RunRecord:
    environment = {} if command is None else {COMMAND: command}
    manifest = Manifest(kind="model", schema_version=2, files=(), environment=environment)
    return RunRecord(
        run=tmp_path, spec=make_report().spec, model=manifest, trace=manifest, training=None, config=config
    )


def test_a_recorded_export_is_the_command_of_the_export(tmp_path: Path) -> None:
    mine = "python -m export mine.onnx --segments --run my/run --every 2"
    assert reproduce_run(record_of(tmp_path, PlanConfig(), command=mine))[0] == mine
    made = reproduce_run(record_of(tmp_path, PlanConfig()))[0]
    assert made == f"python -m export small.onnx --segments --every 1 --run {tmp_path}"


def test_the_sweep_has_the_flags_of_the_plan_without_its_tolerance(tmp_path: Path) -> None:
    config = PlanConfig(tolerance=0.05, batch_size=16, threads=3, timing=TimingConfig(batch_sizes=(1, 16)))
    lines = reproduce_run(record_of(tmp_path, config))
    flags = "--batch-size 16 --threads 3 --batch-sizes 1,16"
    assert lines[2] == f"python -m planner --run {tmp_path} --tolerance 0.05 {flags}"
    assert lines[3] == f"python -m planner --sweep --run {tmp_path} {flags}"


def test_what_no_flag_says_is_a_comment(tmp_path: Path) -> None:
    load = Load(batch_sizes=(1, 32), shares=(0.75, 0.25))
    config = PlanConfig(load=load, measure=MeasureConfig(queries=64))
    lines = reproduce_run(record_of(tmp_path, config))
    assert "--batch-distribution FILE" in lines[2]
    assert lines[-2:] == ('# FILE, a JSON file, holds {"1": 0.75, "32": 0.25}', "# measure.queries = 64 has no flag")

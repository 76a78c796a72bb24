"""The planner's flags: one table, from which the parser, the config and the recorded command lines are made."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import to_plain
from calibration import add_calibration_flags
from export import add_network_flags
from planner import Load, MeasureConfig, PlanConfig, TimingConfig
from planner.commands.plan import make_parser
from planner.config import batch_sizes_up_to
from planner.flags import FLAGS, add_flags, list_flagless, planner_command, read_config, read_field, write_flags

PLANNER = ["python", "-m", "planner"]


def read(words: list[str]) -> PlanConfig:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return read_config(parser.parse_args(words))


@given(
    tolerance=st.floats(0, 0.99),
    batch_size=st.integers(1, 100),
    threads=st.integers(1, 8),
    objective=st.sampled_from(["mean", "p99", "batch"]),
    max_exits=st.none() | st.integers(0, 5),
    stay_allowance=st.none() | st.floats(0, 9),
    sizes=st.none() | st.just((1, 3)),
    delta=st.floats(0.01, 0.5),
    contenders=st.integers(1, 5),
)
def test_a_config_written_as_flags_is_read_back(
    tolerance: float, batch_size: int, threads: int, objective: str, max_exits: int | None,
    stay_allowance: float | None, sizes: tuple[int, ...] | None, delta: float, contenders: int,
) -> None:  # fmt: skip
    default = PlanConfig()
    timed = batch_sizes_up_to(batch_size) if sizes is None else (*(size for size in sizes if size < batch_size),
                                                                batch_size)  # fmt: skip
    config = PlanConfig(
        tolerance=tolerance,
        batch_size=batch_size,
        threads=threads,
        objective=objective,
        max_exits=max_exits,
        tail=default.tail if stay_allowance is None else replace(default.tail, stay_allowance=stay_allowance),
        certify=replace(default.certify, delta=delta),
        timing=TimingConfig(batch_sizes=timed),
        measure=MeasureConfig(contenders=contenders),
    )
    assert read(write_flags(config)) == config


def test_only_what_is_not_the_default_is_written() -> None:
    assert write_flags(PlanConfig()) == ["--threads", "1"]
    assert write_flags(PlanConfig(), explicit=("tolerance",)) == ["--tolerance", "0.01"]
    config = PlanConfig(batch_size=100, timing=TimingConfig(batch_sizes=batch_sizes_up_to(100)))
    assert write_flags(config, explicit=()) == ["--batch-size", "100"]


def test_every_flag_sets_its_field_and_every_option_of_the_parser_is_known() -> None:
    for flag in FLAGS:
        read_field(PlanConfig(), flag.field)
    options = {word for action in make_parser()._actions for word in action.option_strings}
    own = {"-h", "--help", "--run", "--json", "-v", "--verbose", "--sweep", "--engines", "--precisions"}
    passed_on = argparse.ArgumentParser(add_help=False)
    add_network_flags(passed_on)
    add_calibration_flags(passed_on)
    theirs = {word for action in passed_on._actions for word in action.option_strings}
    assert options - own - theirs == {flag.name for flag in FLAGS}
    assert not theirs & {flag.name for flag in FLAGS}


def test_a_load_is_written_as_its_file(tmp_path: Path) -> None:
    path = tmp_path / "my load.json"
    path.write_text('{"1": 3, "8": 1}')
    config = read(["--batch-distribution", str(path), "--threads", "2"])
    assert config.load == Load(batch_sizes=(1, 8), shares=(0.75, 0.25))
    command = planner_command(Path("runs/a"), config, distribution=path)
    assert shlex.split(command)[:5] == [*PLANNER, "--run", "runs/a"]
    assert read(shlex.split(command)[5:]) == config
    assert "--batch-distribution FILE" in planner_command(Path("runs/a"), config)


def test_fields_without_a_flag_are_listed() -> None:
    assert list_flagless(PlanConfig()) == []
    assert list_flagless(PlanConfig(measure=MeasureConfig(rounds=3))) == ["measure.rounds = 3"]


def test_command_lines() -> None:
    config, run = PlanConfig(tolerance=0.05), Path("my runs/a")
    plain = "python -m planner --run 'my runs/a'"
    assert planner_command(run, config) == f"{plain} --tolerance 0.05 --threads 1"
    assert planner_command(run, config, data=Path("d.npz")) == f"{plain} --data d.npz --tolerance 0.05 --threads 1"
    assert planner_command(run, config, sweep=()) == "python -m planner --sweep --run 'my runs/a' --threads 1"
    assert planner_command(run, config, sweep=(0, 0.015)).startswith("python -m planner --sweep 0,0.015 --run")


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_defaults_are_those_of_the_config(flag) -> None:
    assert flag.default is None or to_plain(flag.default) == to_plain(read_field(PlanConfig(), flag.field))

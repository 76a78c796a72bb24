"""The load of several batch sizes, and the files that it is read from."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts import InputError, UsageError
from planner import Load, read_load


def test_shares_of_batches_and_of_queries() -> None:
    load = Load(batch_sizes=(1, 4), shares=(3.0, 1.0))
    assert load.shares == (0.75, 0.25)
    assert load.query_shares == pytest.approx((3 / 7, 4 / 7))
    assert load.largest == 4
    assert Load.of(8).query_shares == (1.0,)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("load.json", '{"8": 0.25, "1": 0.75}'),
        ("load.json", '{"1": 300, "8": 100}'),
        ("load.csv", "batch_size,share\n8,0.25\n1,0.75\n"),
        ("load.CSV", "1, 3\n\n8, 1\n"),
    ],
)
def test_files_of_both_forms_are_read(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_load(tmp_path / name) == Load(batch_sizes=(1, 8), shares=(0.75, 0.25))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("load.json", "[1, 2]"),
        ("load.json", '{"1": "many"}'),
        ("load.json", '{"1": true}'),
        ("load.json", '{"one": 1}'),
        ("load.json", "no json"),
        ("load.csv", "1,2,3\n"),
        ("load.csv", "1,2\nx,3\n"),
        ("load.csv", "1,2\n1,3\n"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match="--batch-distribution"):
        read_load(tmp_path / name)


def test_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("sizes", "shares"),
    [((), ()), ((0, 1), (1, 1)), ((2, 1), (1, 1)), ((1,), (1, 1)), ((1,), (0,)), ((1,), (float("nan"),))],
)
def test_what_is_no_distribution_is_refused(sizes: tuple[int, ...], shares: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="batch distribution"):
        Load(batch_sizes=sizes, shares=shares)


def test_empty_file_is_no_distribution(tmp_path: Path) -> None:
    (tmp_path / "load.json").write_text("{}")
    with pytest.raises(InputError, match="batch distribution"):
        read_load(tmp_path / "load.json")

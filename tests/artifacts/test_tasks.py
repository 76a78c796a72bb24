"""Tests of tasks: classification, and tasks found by their name or by a reference."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from artifacts import TASKS, Classification, Task, UsageError, find_task, load_task


def test_every_task_of_the_table_is_a_task_under_its_own_name() -> None:
    assert TASKS
    for name, task in TASKS.items():
        assert isinstance(task, Task)
        assert task.name == name
        assert find_task(name) is task


def test_classes_agree_whatever_their_logits() -> None:
    early, final = np.array([[0.1, 0.9], [0.9, 0.1]]), np.array([[-5.0, 3.0], [0.0, 1.0]])
    agreement = Classification().agreement((early,), (final,))
    assert agreement.dtype == np.float32
    assert agreement.tolist() == [1.0, 0.0]


def test_the_quality_of_a_class_is_whether_it_is_the_right_one() -> None:
    logits = np.array([[3.0, 1.0], [0.0, 1.0], [5.0, -1.0]])
    task = Classification()
    assert task.quality([logits], np.array([0, 1, 1])).tolist() == [1.0, 1.0, 0.0]
    assert task.predictions([logits]).tolist() == [0, 1, 0]
    assert task.counts([logits], np.array([0, 1, 1])) is None


def test_an_unknown_task_is_refused_with_the_nearest_and_the_way_in() -> None:
    with pytest.raises(UsageError, match=r"unknown task 'classificaton'. Did you mean 'classification'.*task=mine"):
        find_task("classificaton")


def test_a_task_of_ones_own_is_loaded_by_module_and_object(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Classification):
        name = "mine"

    module = types.ModuleType("my_tasks")
    module.made, module.Mine, module.other = Mine(), Mine, 3
    monkeypatch.setitem(sys.modules, "my_tasks", module)
    assert load_task("my_tasks:made") is module.made
    assert load_task("my_tasks:Mine").name == "mine"
    assert load_task("classification") is TASKS["classification"]
    for reference, message in (
        ("my_tasks:other", "int is not a task"),
        ("my_tasks:absent", "no attribute 'absent'.*module:object"),
        ("no_such_module_of_mine:x", "No module named.*PYTHONPATH"),
        (":x", "module:object"),
    ):
        with pytest.raises(UsageError, match=message):
            load_task(reference)

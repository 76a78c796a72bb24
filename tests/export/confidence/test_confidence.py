"""Tests of confidence recipes: chosen by name, and applied by what the answers look like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from artifacts import TASKS, TensorSpec, UsageError
from export.confidence.adding import RECIPES, add_confidence, find_recipe
from export.confidence.choice import find_terms, is_choice
from export.confidence.recipe import LOGITS, PROBABILITIES
from export.graphs.loading import load_graph
from export.graphs.probing import open_graph, sample_answers, sample_rows
from tests.export.export_graphs import write_convnet

LOGIT_ROWS = arrays(np.float32, (6, 5), elements=st.floats(-20, 20, width=32))


def softmax(logits: np.ndarray) -> np.ndarray:
    exact = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    shares: np.ndarray = exact / exact.sum(1, keepdims=True)
    return shares


def test_every_task_names_a_recipe_that_is_there() -> None:
    assert {task.confidence for task in TASKS.values()} <= set(RECIPES)
    with pytest.raises(UsageError, match="unknown confidence recipe 'max-softmx'. Did you mean 'max-softmax'"):
        find_recipe("max-softmx")


@given(logits=LOGIT_ROWS)
def test_probabilities_are_found_by_their_values(logits: np.ndarray) -> None:
    shares = softmax(logits)
    for dtype in (np.float16, np.float32, np.float64):
        assert find_terms(shares.astype(dtype)) == PROBABILITIES
        assert is_choice(shares.astype(dtype), False)
    assert find_terms(np.log(np.maximum(shares, 1e-30))) == LOGITS
    assert find_terms(2 * shares) == LOGITS


@given(logits=LOGIT_ROWS)
def test_several_probabilities_that_do_not_sum_to_one_are_several_questions(logits: np.ndarray) -> None:
    logits[0] = 3
    shares = 1 / (1 + np.exp(-logits))
    assert not is_choice(shares, False)
    assert is_choice(shares, True), "logits may lie between 0 and 1 by chance"


def test_what_is_not_one_number_per_class_is_not_a_choice() -> None:
    assert not is_choice(np.zeros((4, 3), np.int64), True)
    assert not is_choice(np.zeros((4, 3, 2), np.float32), True)
    assert not is_choice(np.full(4, 7, np.float32), True)
    assert is_choice(np.array([[3.0, -2], [1, 1]], np.float32), False)


@pytest.mark.parametrize("end", ["", "Softmax"])
def test_the_largest_probability_is_added_under_a_free_name(graph: Any, tmp_path: Path, end: str) -> None:
    loaded = load_graph(write_convnet(graph, tmp_path / "net.onnx", end=end))
    answer = TensorSpec(name=loaded.outputs[0], dtype="float32", row_shape=(5,))
    terms = find_terms(sample_answers(loaded, loaded.outputs)[answer.name])
    assert terms == (PROBABILITIES if end else LOGITS)
    for name in ("confidence", "confidence_0"):
        loaded, added = add_confidence(
            loaded, answer, recipe=find_recipe("max-softmax"), terms=terms, name="confidence"
        )
        assert added == name
    with open_graph(loaded.model) as runner:
        found = runner.run(sample_rows(loaded.inputs, 9))
    shares = found[answer.name] if end else softmax(found[answer.name])
    np.testing.assert_allclose(found["confidence_0"], shares.max(1), rtol=1e-5)

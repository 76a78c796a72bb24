"""Tests of learned confidences in graphs: they compute what the trace holds, at every batch size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from artifacts import GraphError, LearnedConfidence, Model, TensorSpec, describe_choice
from engines import run_graph
from export import merge_stage
from export.confidence.adding import add_confidence, find_recipe
from export.confidence.learned import replace_confidence
from export.confidence.recipe import LOGITS, PROBABILITIES
from export.graphs.files import BATCH, save_graph
from export.graphs.loading import LoadedGraph, prepare_graph
from export.graphs.surgery import make_node

CLASSES = 5
ANSWER = TensorSpec(name="answer", dtype="float32", row_shape=(CLASSES,))
LEARNED = LearnedConfidence(weights=(2.0, -1.0, -0.5, 0.25), bias=0.125, class_biases=(0.0, 1.0, -2.0, 0.5, 0.0))


def answering_graph(terms: str) -> LoadedGraph:
    """A graph whose answer is its input, with the largest probability as its confidence."""
    given = ir.Value(name="given", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([BATCH, CLASSES]))
    node = make_node("Identity", [given], "answer")
    node.outputs[0].type, node.outputs[0].shape = given.type, given.shape
    graph = ir.Graph([given], [node.outputs[0]], nodes=[node], name="answering", opset_imports={"": 17})
    loaded = prepare_graph(ir.Model(graph, ir_version=8), input_shapes={}, where="answering")
    return add_confidence(loaded, ANSWER, recipe=find_recipe("max-softmax"), terms=terms, name="confidence")[0]


@pytest.mark.parametrize("terms", [LOGITS, PROBABILITIES])
@pytest.mark.parametrize("with_classes", [True, False])
def test_the_graph_computes_what_the_trace_holds(terms: str, with_classes: bool, tmp_path: Path) -> None:
    loaded, probabilities = answering_graph(terms), terms == PROBABILITIES
    # the last class never was an answer in fitting, and is one here
    learned = replace(LEARNED, class_biases=LEARNED.class_biases[:-1] if with_classes else ())
    graph = loaded.model.graph
    replace_confidence(
        graph, answer=ANSWER, confidence="confidence", learned=learned, probabilities=probabilities
    )  # fmt: skip
    assert [node.op_type for node in graph].count("ReduceMax") == 0, "the old confidence is gone"
    assert [node.op_type for node in graph].count("Softmax") == 0
    save_graph(loaded.model, tmp_path / "learned.onnx")
    for count in (1, 3, 32):
        rows = np.random.default_rng(count).normal(0, 4, (count, CLASSES)).astype(np.float32)
        if probabilities:
            rows = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
        found = run_graph(tmp_path / "learned.onnx", {"given": rows})
        expected = learned.apply(describe_choice(rows, probabilities=probabilities), rows.argmax(axis=1))
        np.testing.assert_allclose(found["confidence"], expected, atol=2e-6)
        np.testing.assert_array_equal(found["answer"], rows)
        assert count < 32 or CLASSES - 1 in rows.argmax(axis=1)


def test_a_stage_gets_a_learned_confidence(tiny_with_heads: Model, tmp_path: Path) -> None:
    rows = {"input": np.random.default_rng(3).standard_normal((4, 1, 12, 12), dtype=np.float32)}
    learned = LearnedConfidence(weights=LEARNED.weights, bias=0.0, class_biases=(0.5,) * 10)
    stages = [
        merge_stage(tiny_with_heads, after=None, until="layer1.2", path=tmp_path / f"{name}.onnx", confidence=model)
        for name, model in (("given", None), ("learned", learned))
    ]
    given, found = (run_graph(tmp_path / stage.file, rows) for stage in stages)
    assert stages[0].outputs == stages[1].outputs
    confidence = stages[0].confidence
    assert confidence is not None
    for name in given:
        if name != confidence:
            np.testing.assert_array_equal(given[name], found[name])
    answers = given[stages[0].answers[0]]
    expected = learned.apply(describe_choice(answers, probabilities=False), answers.argmax(axis=1))
    np.testing.assert_allclose(found[confidence], expected, atol=2e-6)
    assert not np.allclose(given[confidence], expected, atol=1e-3)


def test_a_graph_without_the_outputs_is_refused() -> None:
    graph = answering_graph(LOGITS).model.graph
    nothing = replace(ANSWER, name="nothing")
    with pytest.raises(GraphError, match="expected nothing and confidence"):
        replace_confidence(graph, answer=nothing, confidence="confidence", learned=LEARNED, probabilities=False)
    larger = replace(LEARNED, class_biases=(0.0,) * 9)
    with pytest.raises(GraphError, match="answers with 5 classes, the learned confidence knows 9"):
        replace_confidence(graph, answer=ANSWER, confidence="confidence", learned=larger, probabilities=False)

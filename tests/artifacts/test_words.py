"""Tests of the words: strict JSON in both directions, checks of traces and matrices, errors that help."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import artifacts
from artifacts import (
    BundleSpec,
    Certificate,
    Cut,
    ExitPlan,
    GraphSpec,
    InferenceTimeMatrix,
    InputError,
    ModelSpec,
    PlannedExit,
    PredictedLatency,
    RunFolder,
    SchemaError,
    StreamReference,
    TensorSpec,
    Trace,
    UsageError,
    canonical_json,
    find_run,
    from_plain,
    read_json,
    unknown_name,
    write_json,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
names = st.text(min_size=1, max_size=12)
numbers = st.floats(0, 1e6)
exits = st.builds(
    PlannedExit, cut=names, threshold=numbers, leaving_share=numbers, metric=st.none() | numbers, arrival_ms=numbers
)
counts = st.lists(st.integers(0, 99), max_size=3).map(tuple)
references = st.builds(
    StreamReference,
    samples=st.integers(0),
    confidence_counts=st.lists(counts, max_size=3).map(tuple),
    agreements=counts,
)
certificates = st.builds(
    Certificate, risk=names, bound=numbers, delta=numbers, finite_sample=st.booleans(), method=names, p_value=numbers,
    observed=numbers, samples=st.integers(1, 99), tuning_samples=st.integers(1, 99), position=st.integers(0, 9),
    seed=st.integers(0, 9), tuning_digest=names, certification_digest=names,
)  # fmt: skip
plans = st.builds(
    ExitPlan, model_digest=names, trace_digest=names, search=names, tolerance=numbers, delta=st.none() | numbers,
    batch_size=st.integers(1, 99), backend=names, threads=st.integers(1, 9),
    exits=st.lists(exits, max_size=3).map(tuple),
    full_metric=numbers, predicted_metric=numbers,
    predicted=st.builds(PredictedLatency, full_ms=numbers, mean_ms=numbers, batch_ms=numbers, oracle_mean_ms=numbers),
    certificate=st.none() | certificates,
    reference=st.none() | references,
)  # fmt: skip
tensors = st.builds(TensorSpec, name=names, dtype=names, row_shape=st.lists(st.integers(1, 9), max_size=3).map(tuple))
graphs = st.builds(
    GraphSpec,
    name=names,
    file=names,
    inputs=st.tuples(tensors),
    outputs=st.tuples(tensors),
    confidence=st.none() | names,
)
models = st.builds(
    ModelSpec, name=names, family=names, task=names, full=graphs, heads=st.dictionaries(names, graphs, max_size=2),
    cuts=st.lists(st.builds(Cut, name=names, main=tensors, carried=st.tuples(tensors)), max_size=2).map(tuple),
    settings=st.dictionaries(names, st.integers() | names | st.booleans() | numbers, max_size=3),
)  # fmt: skip


@given(value=plans | models)
def test_values_survive_the_way_through_json(value: ExitPlan | ModelSpec) -> None:
    text = canonical_json(value)
    back = from_plain(type(value), json.loads(text))
    assert back == value
    assert canonical_json(back) == text


def test_a_bundle_of_every_release_is_read() -> None:
    spec = read_json(FIXTURES / "bundle_0.1.0.json", BundleSpec)
    assert [planned.cut for planned in spec.plan.exits] == ["layer1.1", "layer2.0"]
    assert spec.plan.reference is None


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"name": "x", "dtype": "f"}, "missing keys.*row_shape"),
        ({"name": "x", "dtype": "f", "row_shape": [], "colour": 1}, "unknown keys.*colour"),
        ({"name": 3, "dtype": "f", "row_shape": []}, r"\$\.name: expected str"),
        ({"name": "x", "dtype": "f", "row_shape": [1, "two"]}, r"row_shape\[1\]: expected int"),
        ({"name": "x", "dtype": "f", "row_shape": [True]}, r"row_shape\[0\]: expected int"),
        ({"name": "x", "dtype": "f", "row_shape": 3}, "expected a list"),
        ([], "expected an object"),
    ],
)
def test_another_form_is_refused_by_its_path(plain: object, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        from_plain(TensorSpec, plain)


def test_a_file_name_of_other_bytes_than_utf8_survives(tmp_path: Path) -> None:
    name = os.fsdecode(b"gut\xfc/" + "größe".encode())
    write_json(tmp_path / "x.json", {"data": name})
    assert read_json(tmp_path / "x.json", dict) == {"data": name}
    (tmp_path / "x.json").read_bytes().decode("utf-8")


def test_what_json_cannot_hold_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="finite"):
        canonical_json({"x": math.nan})
    write_json(tmp_path / "x.json", {"b": 1, "a": (1.5, None)})
    assert (tmp_path / "x.json").read_bytes() == b'{"a":[1.5,null],"b":1}\n'
    with pytest.raises(SchemaError, match=r"x\.json"):
        read_json(tmp_path / "x.json", TensorSpec)


def make_trace(**changed: Any) -> Trace:
    arrays = {
        "confidence": np.full((2, 3), 0.5, np.float32),
        "metric": np.ones((2, 3), np.float32),
        "agreement": np.ones((2, 3), bool),
    }
    return Trace(exits=("early",), **{**arrays, **changed})


def test_a_trace_comes_back_from_disk(tmp_path: Path) -> None:
    trace = make_trace(metric=np.array([[0, 0, 1], [1, 0, 1]], np.float32))
    trace.save(tmp_path / "trace.npz")
    back = Trace.load(tmp_path / "trace.npz")
    assert back.exits == ("early",)
    assert np.array_equal(back.metric, trace.metric)
    assert back.full_metric == pytest.approx(2 / 3)
    assert back.sample_count == 3
    assert back.labelled


def test_without_labels_the_metric_is_the_agreement_and_nothing_else(tmp_path: Path) -> None:
    agreement = np.array([[True, False, True], [True] * 3])
    trace = make_trace(metric=agreement.astype(np.float32), agreement=agreement, labelled=False)
    trace.save(tmp_path / "trace.npz")
    back = Trace.load(tmp_path / "trace.npz")
    assert (back.labelled, back.select(np.array([1, 1])).labelled) == (False, False)
    assert [means["metric"] for means in back.summarise()] == [None, None]
    assert back.summarise()[0]["agreement"] == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="without labels the metric is the agreement"):
        make_trace(agreement=agreement, labelled=False)
    with pytest.raises(InputError, match="without labels"):
        make_trace(metric=trace.metric, agreement=agreement, labels=np.zeros(3, np.int32), labelled=False)


@pytest.mark.parametrize(
    "changed",
    [
        {"confidence": np.array([[0.5, np.nan, 0.5]] * 2, np.float32)},
        {"confidence": np.full((2, 3), 1.01, np.float32)},
        {"metric": np.full((2, 3), -0.1, np.float32)},
        {"metric": np.ones((3, 3), np.float32)},
        {"agreement": np.ones((2, 4), bool)},
        {name: np.ones((2, 0), np.float32) for name in ("confidence", "metric", "agreement")},
    ],
)
def test_a_trace_that_is_none_is_refused(changed: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError, match="trace: "):
        make_trace(**changed)


def make_matrix(**changed: object) -> InferenceTimeMatrix:
    values = {
        "backend": "fake", "threads": 1, "batch_sizes": (1, 4), "median_ms": {"full": (1.0, 2.0)},
        "spread_ms": {"full": (0.1, 0.1)}, "fixed": False, "environment": {},
    }  # fmt: skip
    return InferenceTimeMatrix(**{**values, **changed})


@pytest.mark.parametrize(
    "changed",
    [
        {"batch_sizes": ()},
        {"batch_sizes": (4, 1)},
        {"batch_sizes": (0, 1)},
        {"median_ms": {"full": (1.0,)}},
        {"median_ms": {"full": (1.0, math.inf)}},
        {"median_ms": {"full": (1.0, -1.0)}},
        {"median_ms": {"other": (1.0, 1.0)}},
    ],
)
def test_a_matrix_with_holes_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(InputError, match="inference time matrix"):
        make_matrix(**changed)


def test_an_unknown_row_suggests_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'full'"):
        make_matrix().row_ms("fulll")
    assert "Known: none" in str(unknown_name("thing", "x", []))


def test_the_only_run_is_found_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="python -m export"):
        find_run(None)
    Path("runs/one/model").mkdir(parents=True)
    assert find_run(None) == RunFolder(root=Path("runs/one"))
    Path("runs/two/model").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"several runs .*--run runs/one"):
        find_run(None)
    assert find_run(None, name="two").model == Path("runs/two/model")
    assert find_run(Path("elsewhere"), name="two").root == Path("elsewhere")


def test_the_public_names_are_these() -> None:
    assert sorted(set(artifacts.__all__)) == sorted(artifacts.__all__)
    assert all(hasattr(artifacts, name) for name in artifacts.__all__)

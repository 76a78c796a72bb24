"""NetworkCheck: chance and a wrong preprocessing are said before anything is made of the network."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import (
    SAID_BY,
    Classification,
    GraphSpec,
    InputError,
    Model,
    ModelSpec,
    Preprocessing,
    RunFolder,
    TensorSpec,
    find_convention,
    new_artifact,
    open_model,
    write_model_spec,
)
from calibration.data.image_input import image_input
from calibration.data.loading import load_samples
from calibration.data.samples import Samples
from calibration.options import CalibrationOptions
from calibration.tracing.all_exits import EngineChoice, SegmentRunner
from calibration.tracing.network_check import (
    NetworkCheck,
    ask_network,
    check_network,
    compare_with_shuffled,
    name_flag,
    other_ways,
    sign_test,
)
from export.pixels.statements import read_statement

RUN = Path(__file__).parents[2] / "fixtures" / "run_0.1.0"
ENGINE = EngineChoice(backend="onnxruntime", threads=1)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    pytest.importorskip("onnxruntime", reason="runs the network: pip install 'pame[onnxruntime]'")
    shutil.copytree(RUN / "model", tmp_path / "run" / "model")
    return open_model(tmp_path / "run" / "model", remedy="")


def ask(model: Model, data: Path) -> NetworkCheck:
    with opened(model, data) as (runner, samples):
        return check_network(model, runner, samples, Classification(), rows=16)


@contextmanager
def opened(model: Model, data: Path) -> Iterator[tuple[SegmentRunner, Samples]]:
    run = RunFolder(root=model.artifact.folder.parent)
    (spec,) = model.spec.full.inputs
    want = image_input(spec.row_shape, name=spec.name)
    stated = model.spec.stated_preprocessing()
    if stated is not None:
        want = replace(want, preprocessing=stated, stated=True)
    with SegmentRunner(model, run.engines, ENGINE, rows=16, with_heads=False) as runner:
        yield runner, load_samples(data, want)


def ask_aloud(model: Model, data: Path, *, force: bool = False) -> list[str]:
    said: list[str] = []
    options = CalibrationOptions(report=said.append, force=force)
    with opened(model, data) as (runner, samples):
        ask_network(model, runner, samples, Classification(), rows=16, options=options)
    return said


def write_bands(path: Path, *, channel: int | None = None, labelled: bool = True) -> Path:
    """Writes pictures whose upper or lower half is bright, in all channels or in one of three."""
    random = np.random.default_rng(0)
    labels = np.arange(300) % 2
    images = random.integers(20, 90, (300, 1 if channel is None else 3, 8, 8))
    for row, label in enumerate(labels):
        images[row, channel or 0, 4 * label : 4 * label + 4] += 120
    np.savez(path, images=images.astype(np.uint8), **({"labels": labels} if labelled else {}))
    return path


def test_a_network_that_is_right_is_left_alone(model: Model) -> None:
    found = ask(model, RUN / "data.npz")
    assert found.metric > 0.85
    assert found.samples >= 200
    assert found.problems() == ()
    (line,) = ask_aloud(model, RUN / "data.npz")
    assert line.startswith(f"the full network: accuracy {found.metric:.4f} on {found.samples} samples; images are")


def test_labels_of_other_classes_are_chance(model: Model, tmp_path: Path) -> None:
    with np.load(RUN / "data.npz") as data:
        shifted = np.random.default_rng(0).permutation(data["labels"])
        np.savez(tmp_path / "shifted.npz", images=data["images"], labels=shifted)
    with pytest.raises(InputError, match=r"that is chance.*order of the classes.*--force"):
        ask_aloud(model, tmp_path / "shifted.npz")
    *_, warning = ask_aloud(model, tmp_path / "shifted.npz", force=True)
    assert warning.startswith("warning: the network itself is right on")


def test_classes_in_another_order_are_named(tmp_path: Path) -> None:
    model = write_halves(tmp_path / "run")
    stated = find_convention("raw").fit(Preprocessing(height=8, width=8, channel_order="L"))
    model = replace(model, spec=replace(model.spec, preprocessing=stated))
    with np.load(write_bands(tmp_path / "halves.npz")) as data:
        np.savez(tmp_path / "turned.npz", images=data["images"], labels=1 - data["labels"])
    assert ask(model, tmp_path / "halves.npz").problems() == ()
    with pytest.raises(InputError, match=r"100\.0% if '0' is its answer 1, '1' is its answer 0.*classes\.txt"):
        ask_aloud(model, tmp_path / "turned.npz")


def test_pixels_that_another_preprocessing_makes_clear(tmp_path: Path) -> None:
    """A network that scales its pixels itself, as those of several frameworks do."""
    model = write_halves(tmp_path / "run")
    found = ask(model, write_bands(tmp_path / "halves.npz"))
    assert found.better is not None
    assert (found.better.flag, found.better.metric, found.metric) == ("raw", 1.0, 0.5)
    assert len(found.problems()) == 2
    assert "that is chance" in found.problems()[0]
    with pytest.raises(InputError, match=r"1\.000 with 'raw'.*python -m export \S+ --preprocess raw\."):
        ask_aloud(model, tmp_path / "halves.npz")


def test_a_wrong_statement_and_swapped_channels_are_found_too(tmp_path: Path) -> None:
    model = write_halves(tmp_path / "run", weights=(1.0, 0.0, 0.0))
    data = write_bands(tmp_path / "blue.npz", channel=2)
    stated = Preprocessing(height=8, width=8, scale=1.0, interpolation="bilinear")
    model = replace(model, spec=replace(model.spec, preprocessing=stated, settings={SAID_BY: "--preprocess x.json"}))
    found = ask(model, data)
    assert found.better is not None
    assert found.better.metric == 1.0
    assert json.loads(found.better.flag) == {"interpolation": "bilinear", "scale": 1.0, "channel_order": "BGR"}
    with pytest.raises(InputError, match="channels in the order BGR"):
        ask_aloud(model, data)


def test_a_name_is_answered_by_a_name(tmp_path: Path) -> None:
    model = write_halves(tmp_path / "run")
    said = {SAID_BY: "--preprocess inception"}
    stated = find_convention("inception").fit(Preprocessing(height=8, width=8, channel_order="L"))
    found = ask(replace(model, spec=replace(model.spec, preprocessing=stated, settings=said)),
                write_bands(tmp_path / "halves.npz"))  # fmt: skip
    assert found.better is not None
    assert found.better.flag == "raw"
    assert 0 < found.better.p_value < 1e-12


def test_without_labels_what_is_assumed_is_said(tmp_path: Path) -> None:
    model = write_halves(tmp_path / "run")
    (line,) = ask_aloud(model, write_bands(tmp_path / "bare.npz", labelled=False))
    assert "no labels" in line
    assert "assumed to be prepared by the data's own mean and spread" in line


def test_a_rare_class_is_no_chance_and_a_constant_answer_is() -> None:
    labels = (np.arange(256) % 20 == 0).astype(np.int64)
    good, constant = labels.copy(), np.zeros(256, np.int64)
    good[:40:20] = 0
    assert (compare_with_shuffled(good, labels) or 1) < 0.01
    assert compare_with_shuffled(constant, labels) == 1.0
    assert compare_with_shuffled(labels[:20], labels[:20]) is None
    assert compare_with_shuffled(constant, constant) is None


@given(better=st.integers(0, 30), worse=st.integers(0, 30))
def test_the_sign_test_counts_what_a_coin_would_do(better: int, worse: int) -> None:
    mine = np.array([1.0] * better + [0.0] * worse + [0.5] * 3)
    other = np.array([0.0] * better + [1.0] * worse + [0.5] * 3)
    total = better + worse
    expected = sum(math.comb(total, k) for k in range(better, total + 1)) / 2**total
    assert sign_test(mine, other) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_every_flag_leads_to_the_way_that_it_names() -> None:
    now = Preprocessing(height=8, width=8, mean=(0.3,), std=(0.2,))
    ways = dict(other_ways(now))
    assert len(ways) == len({*ways.values()}) == 11
    for way in ways.values():
        fitted = read_statement(name_flag(way, stated=True)).fit(Preprocessing(height=8, width=8))
        assert fitted == way
    assert list(dict(other_ways(now, bytes_alone=True))) == ["the numbers as now, but the channels in the order BGR"]


def write_halves(run: Path, *, weights: tuple[float, ...] = (1.0,)) -> Model:
    """Writes a network, uncut, that tells pictures with a bright upper half from those with a bright lower one."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    halves = np.concatenate([np.repeat(np.eye(2, dtype=np.float32), 32, axis=0) * weight for weight in weights])
    numbers = {"most": np.array(255, np.float32), "dark": np.array(0.37, np.float32), "halves": halves}
    nodes = [
        helper.make_node("Div", ["x", "most"], ["share"]), helper.make_node("Sub", ["share", "dark"], ["lit"]),
        helper.make_node("Relu", ["lit"], ["bright"]), helper.make_node("Flatten", ["bright"], ["flat"]),
        helper.make_node("MatMul", ["flat", "halves"], ["logits"]),
    ]  # fmt: skip
    x = TensorSpec(name="x", dtype="float32", row_shape=(len(weights), 8, 8))
    logits = TensorSpec(name="logits", dtype="float32", row_shape=(2,))
    typed = [
        helper.make_tensor_value_info(spec.name, TensorProto.FLOAT, ["batch", *spec.row_shape]) for spec in (x, logits)
    ]
    graph = helper.make_graph(
        nodes, "full", typed[:1], typed[1:], [numpy_helper.from_array(value, name) for name, value in numbers.items()]
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    with new_artifact(run / "model", kind="model") as staging:
        onnx.save(model, staging / "full.onnx")
        full = GraphSpec(name="full", file="full.onnx", inputs=(x,), outputs=(logits,), answers=("logits",))
        write_model_spec(staging, ModelSpec(name="halves", family="onnx", task="classification", full=full))
    return open_model(run / "model", remedy="")

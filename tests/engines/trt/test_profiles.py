"""Profile layouts, batch sizes, options by name, files and profiles: everything about TensorRT engines that is pure."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import EngineError, EngineKey, GraphSpec, TensorSpec, UsageError, canonical_json, from_plain
from engines import BuildOptions, fixed_batch_sizes
from engines.trt.files import EngineFiles, file_differences, plan_profiles
from engines.trt.profiles import (
    PROFILE_WAYS,
    RANGE,
    SEPARATE,
    choose_batch_sizes,
    choose_profiles,
    engine_options,
    option_differences,
)

X = TensorSpec(name="x", dtype="float32", row_shape=(3, 4))
Y = TensorSpec(name="y", dtype="float16", row_shape=())
GRAPH = GraphSpec(name="g", file="g.onnx", inputs=(X,), outputs=(Y,))


def make_key(layout: str, sizes: tuple[int, ...], largest: int, backend: str = "tensorrt") -> EngineKey:
    return EngineKey(
        onnx_digest="0" * 64, backend=backend, backend_version="11.4.0", device="a GPU", precision="float32",
        batch_sizes=choose_batch_sizes(layout, sizes, largest), max_batch_size=largest,
        options=engine_options(backend, layout),
    )  # fmt: skip


def make_files(key: EngineKey, **changes: Any) -> EngineFiles:
    profiles = plan_profiles(key, separate=key.options["profiles"] == SEPARATE)
    files = EngineFiles(inputs=(X,), outputs=(Y,), profiles=profiles, activation_bytes=(0,))
    return dataclasses.replace(files, **changes)


def test_each_flavour_has_its_own_default_layout() -> None:
    assert choose_profiles("tensorrt", None) == "per-batch"
    assert choose_profiles("tensorrt-rtx", None) == "range"
    assert choose_profiles("tensorrt-rtx", "separate") == "separate"
    with pytest.raises(UsageError, match="Did you mean 'per-batch'"):
        choose_profiles("tensorrt", "per_batch")


def test_batch_sizes_default_to_powers_of_two_and_the_largest() -> None:
    assert choose_batch_sizes("per-batch", (), 32) == (1, 2, 4, 8, 16, 32)
    assert choose_batch_sizes("separate", (), 12) == (1, 2, 4, 8, 12)
    assert choose_batch_sizes("per-batch", (), 1) == (1,)
    assert choose_batch_sizes("per-batch", (8, 1, 8), 32) == (1, 8)
    assert choose_batch_sizes("range", (), 32) == ()


@pytest.mark.parametrize(
    ("layout", "sizes", "largest", "message"),
    [
        ("per-batch", (64,), 32, "within 1 to max_batch_size=32"),
        ("separate", (0, 1), 32, "within 1 to"),
        ("range", (), 0, "max_batch_size=0"),
        ("range", (8,), 32, "takes any from 1 to 32.*--profiles per-batch"),
    ],
)
def test_batch_sizes_that_cannot_be_are_refused(
    layout: str, sizes: tuple[int, ...], largest: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        choose_batch_sizes(layout, sizes, largest)


def test_only_layouts_with_fixed_batch_sizes_get_them() -> None:
    options = BuildOptions(max_batch_size=8, batch_sizes=(1, 8))
    assert fixed_batch_sizes("onnxruntime", options) == ()
    assert fixed_batch_sizes("tensorrt", options) == (1, 8)
    assert fixed_batch_sizes("tensorrt-rtx", options) == ()
    assert fixed_batch_sizes("tensorrt-rtx", dataclasses.replace(options, profiles="separate")) == (1, 8)


@given(st.sampled_from(PROFILE_WAYS), st.sets(st.integers(1, 40), max_size=6), st.integers(40, 70))
def test_every_batch_size_of_a_key_has_its_profile(layout: str, sizes: set[int], largest: int) -> None:
    key = make_key(layout, () if layout == RANGE else tuple(sizes), largest)
    files = make_files(key)
    taken = key.batch_sizes or range(1, largest + 1)
    for size in taken:
        profile = files.profile_of(size)
        assert profile.least <= size <= profile.most
        assert profile.file in files.files
        assert key.batch_sizes == () or profile.best == size
    for size in {0, largest + 1} | (set(range(1, largest)) - set(taken)):
        with pytest.raises(EngineError, match=f"no profile for a batch of {size}"):
            files.profile_of(size)
    numbers = {file: [profile.index for profile in files.profiles if profile.file == file] for file in files.files}
    assert all(found == list(range(len(found))) for found in numbers.values())
    assert len(files.files) == (len(key.batch_sizes) if layout == SEPARATE else 1)
    assert file_differences(files, key, GRAPH) == ()
    assert from_plain(EngineFiles, __import__("json").loads(canonical_json(files))) == files


def test_files_of_another_graph_or_key_differ() -> None:
    key = make_key("per-batch", (1, 8), 8)
    files = make_files(key)
    other = dataclasses.replace(X, dtype="float16")
    assert file_differences(make_files(key, inputs=(other,)), key, GRAPH) == (
        "inputs are x float16 [3, 4] a row, here x float32 [3, 4] a row",
    )
    assert file_differences(make_files(key, outputs=(X,)), key, GRAPH)[0].startswith("outputs are x")
    assert file_differences(make_files(key, outputs=(X,)), key, None) == ()
    wider = dataclasses.replace(key, batch_sizes=(1, 4, 8))
    assert file_differences(files, wider, GRAPH) == (
        (
            "profiles are 1 rows (engine.trt #0), 8 rows (engine.trt #1), "
            "here 1 rows (engine.trt #0), 4 rows (engine.trt #1), 8 rows (engine.trt #2)"
        ),
    )


def test_options_are_compared_by_name() -> None:
    for backend in ("tensorrt", "tensorrt-rtx"):
        for layout in PROFILE_WAYS:
            assert option_differences(backend, engine_options(backend, layout)) == ()
    options = engine_options("tensorrt", "range")
    assert option_differences("tensorrt", {**options, "tf32": "on"}) == ("option tf32 is 'on', here 'off'",)
    assert option_differences("tensorrt", {**options, "novelty": "1"}) == ("option novelty is '1', here absent",)
    without = {name: value for name, value in options.items() if name != "typing"}
    assert option_differences("tensorrt", without) == ("option typing is absent, here 'strong'",)
    assert option_differences("tensorrt", {**options, "profiles": "odd"}) == (
        "option profiles is 'odd', here 'per-batch'",
    )

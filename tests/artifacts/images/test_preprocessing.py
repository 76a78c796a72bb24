"""Tests of preprocessing: pixel arithmetic against its definition, and invalid settings."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import (
    GraphSpec,
    InputError,
    ModelSpec,
    Preprocessing,
    TensorSpec,
    UsageError,
    canonical_json,
    from_plain,
)

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@given(
    pixels=st.binary(min_size=24, max_size=24),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    scale=st.sampled_from([1.0, 1 / 255, 1 / 127.5]),
)
def test_a_pixel_is_scaled_then_normalised_per_channel(pixels: bytes, layout: str, scale: float) -> None:
    images = np.frombuffer(pixels, np.uint8).reshape((2, 3, 2, 2) if layout == "NCHW" else (2, 2, 2, 3))
    found = Preprocessing(height=2, width=2, layout=layout, scale=scale, **IMAGENET).normalise(images)
    assert found.dtype == np.float32
    channel = 1 if layout == "NCHW" else 3
    for at in np.ndindex(images.shape):
        mean, std = IMAGENET["mean"][at[channel]], IMAGENET["std"][at[channel]]
        assert found[at] == pytest.approx((images[at] * scale - mean) / std, rel=1e-5, abs=1e-5)


def test_one_number_stands_for_all_channels() -> None:
    images = np.arange(12, dtype=np.uint8).reshape(1, 3, 2, 2)
    single = Preprocessing(height=2, width=2, mean=(0.4,), std=(0.2,)).normalise(images)
    triple = Preprocessing(height=2, width=2, mean=(0.4,) * 3, std=(0.2,) * 3).normalise(images)
    np.testing.assert_array_equal(single, triple)


def test_it_survives_the_way_through_json() -> None:
    wanted = Preprocessing(
        height=224, width=224, resize="centre-crop", shorter_side=256, channel_order="BGR", **IMAGENET
    )
    assert from_plain(Preprocessing, json.loads(canonical_json(wanted))) == wanted


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"resize": "squish"}, UsageError, "Did you mean 'squash'"),
        ({"layout": "NWHC"}, UsageError, "layout"),
        ({"channel_order": "GBR"}, UsageError, "channel order"),
        ({"channel_order": "any"}, InputError, "goes with channel order 'any' alone"),
        ({"channel_count": 5}, InputError, "goes with channel order 'any' alone"),
        ({"channel_order": "any", "channel_count": 0}, InputError, "at least 1"),
        ({"interpolation": "area"}, UsageError, "interpolation"),
        ({"height": 0}, InputError, "at least 1 x 1"),
        ({"shorter_side": 256}, InputError, "goes with resize 'centre-crop' and 'squash-crop' alone"),
        ({"resize": "centre-crop"}, InputError, "goes with resize 'centre-crop' and 'squash-crop' alone"),
        ({"resize": "centre-crop", "shorter_side": 16}, InputError, "expected at least 32"),
        ({"mean": (0.1, 0.2)}, InputError, "one finite number, or 3"),
        ({"mean": (float("nan"),)}, InputError, "finite"),
        ({"std": (0.0,)}, InputError, "positive"),
        ({"scale": -1.0}, InputError, "positive"),
    ],
)
def test_invalid_settings_are_refused(settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Preprocessing(**{"height": 32, "width": 32, **settings})


def model_of(*rows: tuple[int, ...], **fields: object) -> ModelSpec:
    inputs = tuple(TensorSpec(name=f"x{i}", dtype="float32", row_shape=row) for i, row in enumerate(rows))
    full = GraphSpec(name="full", file="full.onnx", inputs=inputs, outputs=())
    return ModelSpec(name="n", family="resnet", task="classification", full=full, **fields)  # type: ignore[arg-type]


def test_a_model_states_its_preprocessing_also_as_release_0_1_0_did() -> None:
    own = Preprocessing(height=4, width=4, **IMAGENET)
    old = {"mean": 0.25, "std": 0.5}
    assert model_of((3, 4, 4), preprocessing=own, settings=old).stated_preprocessing() == own
    assert model_of((3, 4, 4)).stated_preprocessing() is None
    assert model_of((3, 4, 4), settings={"mean": 0.25}).stated_preprocessing() is None
    assert model_of((7,), settings=old).stated_preprocessing() is None
    found = model_of((1, 28, 14), settings=old).stated_preprocessing()
    assert found == Preprocessing(height=28, width=14, channel_order="L", mean=(0.25,), std=(0.5,))
    assert model_of((3, 28, 14), settings=old).stated_preprocessing() == replace(found, channel_order="RGB")

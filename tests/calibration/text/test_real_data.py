"""Real tables of labelled sentences, where they are given: PAME_REAL_DATA names the folder that holds text/."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from artifacts import TensorSpec, TextEncoder, TextPreprocessing
from calibration.data.splits import PartShare, Splitting
from calibration.text.loading import load_texts
from tests.text_worlds import write_tokenizer

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif("PAME_REAL_DATA" not in os.environ, reason="PAME_REAL_DATA names no folder of real data"),
]
SPECS = tuple(TensorSpec(name=name, dtype="int64", row_shape=(16,)) for name in ("input_ids", "attention_mask"))


@pytest.mark.parametrize(
    ("name", "share", "counts", "classes"),
    [
        ("sst2", "calibrate=train:0.3613", (4420, 3372, 1821), 2),
        ("trec", "calibrate=train:0.2", (4361, 1091, 500), 6),
        ("agnews", "calibrate=train:0.5", (5001, 5000, 7600), 4),
        ("cola", "test=calibrate:0.5", (8551, 264, 263), 2),
    ],
)
def test_real_tables_are_read(tmp_path, name, share, counts, classes):
    wanted = TextPreprocessing(length=16, ids="input_ids", mask="attention_mask")
    encoder = TextEncoder(write_tokenizer(tmp_path), wanted, SPECS)
    splitting = Splitting(share=PartShare.parse(share))
    folder = Path(os.environ["PAME_REAL_DATA"]) / "text" / name
    samples = load_texts(folder, encoder, numbers=False, splitting=splitting, report=lambda _: None)
    found = tuple(len(samples.indices_of(part)) for part in ("train", "calibrate", "test"))
    assert sum(found) == sum(counts)
    assert all(abs(have - want) <= 2 for have, want in zip(found, counts, strict=True))
    assert len(samples.classes) == classes
    inputs = samples.inputs(samples.indices_of("test")[:300])
    assert (inputs["input_ids"][:, 0] == 2).all()  # every text begins with its mark

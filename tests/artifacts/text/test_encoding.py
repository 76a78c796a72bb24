"""Texts as rows of tokens: special tokens, filling up, cutting, pairs, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from artifacts import InputError, TensorSpec, TextEncoder, TextPreprocessing, name_token_inputs
from tests.text_worlds import WORDS, write_tokenizer

NAMES = ("input_ids", "attention_mask", "token_type_ids")
SPECS = tuple(TensorSpec(name=name, dtype="int64", row_shape=(6,)) for name in NAMES)
WANTED = TextPreprocessing(length=6, ids="input_ids", mask="attention_mask", types="token_type_ids")


@pytest.fixture
def encoder(tmp_path):
    return TextEncoder(write_tokenizer(tmp_path), WANTED, SPECS)


def test_a_text_is_marked_and_filled_up(encoder):
    found = encoder.encode(["film ends"])
    assert found.inputs["input_ids"].tolist() == [[2, WORDS.index("film"), WORDS.index("ends"), 3, 0, 0]]
    assert found.inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0]]
    assert found.inputs["token_type_ids"].tolist() == [[0] * 6]
    assert not found.cut.any()


def test_what_is_too_long_is_cut_and_said(encoder):
    found = encoder.encode(["film", "film ends here there", "film ends here there the"])
    assert found.cut.tolist() == [False, False, True]
    assert found.inputs["input_ids"][2, -1] == 3  # the end is marked all the same
    assert found.inputs["attention_mask"][2].all()


def test_the_second_of_a_pair_is_of_the_other_kind(encoder):
    found = encoder.encode([("film", "ends")])
    assert found.inputs["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0]]


def test_a_row_does_not_depend_on_the_others(encoder):
    texts = ["film", "film ends here there the", "a"]
    together = encoder.encode(texts).inputs
    for place, text in enumerate(texts):
        alone = encoder.encode([text]).inputs
        assert all(np.array_equal(alone[name][0], together[name][place]) for name in alone)


def test_endless_texts_are_cut_before_they_are_tokenised(encoder):
    found = encoder.encode(["film " * 1_000_000])
    assert found.cut.tolist() == [True]


@pytest.mark.parametrize("text", [3, None, ("a",) * 3, ["a", 2]])
def test_what_is_no_text_is_refused_with_its_place(encoder, text):
    with pytest.raises(InputError, match="text 1: expected a string or a pair of strings"):
        encoder.encode(["film", text])


def test_files_that_are_no_tokenizer_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such tokenizer"):
        TextEncoder(tmp_path / "tokenizer.json", WANTED, SPECS)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read as a tokenizer"):
        TextEncoder(tmp_path / "tokenizer.json", WANTED, SPECS)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["input_ids", "attention_mask"], {"ids": "input_ids", "mask": "attention_mask"}),
        (["attention_mask", "token_type_ids", "input_ids"],
         {"ids": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}),
        (["input_ids", "pixel_values"], None),
        (["image"], None),
        (["attention_mask"], None),
    ],
)  # fmt: skip
def test_inputs_of_tokens_are_known_by_their_names(names, found):
    assert name_token_inputs(names) == found


@pytest.mark.parametrize("wrong", [{"length": 2}, {"pad_id": -1}])
def test_preprocessing_that_cannot_be_is_refused(wrong):
    with pytest.raises(InputError, match="text preprocessing"):
        TextPreprocessing(**{"length": 6, "ids": "input_ids", **wrong})
